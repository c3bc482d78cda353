"""Files that are either whole or absent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import InputError
from shared.storage import files

REPOSITORY = Path(__file__).resolve().parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with files.replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "half"
    assert mode(path) == 0o600
    assert names(path.parent) == ["file.txt"]


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with files.replacing(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text("x")
    assert names(path) == ["new"]
    assert mode(path) == 0o700
    assert names(tmp_path) == ["folder"]


def test_a_folder_can_take_the_place_of_a_file_and_the_other_way_round(tmp_path):
    path = tmp_path / "thing"
    path.write_text("file")
    with files.replacing(path) as temporary:
        temporary.mkdir()
    assert path.is_dir()


@pytest.mark.parametrize("folder", [False, True])
def test_what_fails_leaves_what_was_there(tmp_path, folder):
    path = tmp_path / "thing"
    path.write_text("before")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        if folder:
            temporary.mkdir()
            (temporary / "part").write_text("x")
        else:
            temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert names(tmp_path) == ["thing"]


def test_what_a_killed_process_left_is_no_file(tmp_path):
    path = tmp_path / "thing"
    program = (
        "import os, signal, sys; from pathlib import Path; from shared.storage import files\n"
        "with files.replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(path)], cwd=REPOSITORY, check=False)
    assert result.returncode == -signal.SIGKILL
    assert not path.exists()
    files.write_json(path, 1)
    assert files.read_json(path) == 1


def test_a_process_clears_its_own_leftovers(tmp_path):
    left = tmp_path / f".thing.{os.getpid()}.partial"
    left.mkdir()
    (left / "old").write_text("x")
    with files.replacing(tmp_path / "thing") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "thing").read_text() == "new"


def test_remove_follows_no_link(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(kept)
    files.remove(link)
    assert not link.is_symlink()
    assert names(kept) == ["file"]
    files.remove(kept)
    files.remove(kept)
    assert not kept.exists()


def test_json_round_trip_in_any_language(tmp_path):
    value = {"패혈증": [1, 2.5, None, True, "≥"]}
    files.write_json(tmp_path / "value.json", value)
    assert files.read_json(tmp_path / "value.json") == value
    assert "패혈증" in (tmp_path / "value.json").read_text(encoding="utf-8")


def test_json_holds_no_nan(tmp_path):
    path = tmp_path / "value.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert names(tmp_path) == []


def test_json_that_is_none(tmp_path):
    path = tmp_path / "value.json"
    with pytest.raises(InputError, match=r"value.json: no such file$"):
        files.read_json(path)
    for content in (b"{'a': 1}", b'{"a": 1', b"", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"value.json: not JSON \("):
            files.read_json(path)
