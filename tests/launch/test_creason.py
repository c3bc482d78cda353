"""The `creason` command: one line for each program, and each started as `python -m launch.NAME` starts it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib

import pytest

from launch import cli
from tests.support.commands import REPOSITORY, environment

LINE = 100  # columns
WATCHED = """
import atexit, sys
atexit.register(lambda: print(*sorted(name for name in sys.modules if name.startswith("launch")), sep="\\n"))
from launch import cli
cli.main()
"""


def test_the_installed_command_is_this_one():
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["creason"].partition(":")
    assert getattr(importlib.import_module(module), name) is cli.main


def test_alone_it_lists_every_program_once_in_one_line():
    programs = [
        path.stem
        for path in (REPOSITORY / "launch").glob("*.py")
        if "app.run(main" in path.read_text(encoding="utf-8") and path.stem != "app"
    ]
    lines = [line.split(maxsplit=1) for line in cli.overview().split("\n") if line.startswith("  ")]
    assert sorted(name for name, _ in lines) == sorted(programs)
    assert [name for name, _ in lines][:5] == ["prepare", "show", "train", "evaluate", "report"]
    assert all(len(line) <= LINE for line in cli.overview().split("\n"))
    assert all(len(said) > 30 and said.endswith(".") for _, said in lines)


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def test_alone_it_loads_nothing_slow():
    program = WATCHED.replace('name.startswith("launch")', "True")
    ended = run("-c", program, cwd=REPOSITORY)
    assert ended.returncode == 0 and ended.stdout.startswith("usage: creason PROGRAM")
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    assert "launch" in loaded and not loaded & {"absl", "numpy", "pandas", "transformers", "jax", "torch"}


@pytest.mark.slow
def test_a_program_is_started_as_the_module_is_and_only_that_is_loaded():
    arguments = ("report", "--workdir=no such 'run'")
    ended = run("-c", WATCHED, *arguments, cwd=REPOSITORY)
    assert ended.stderr.startswith("error: no such 'run': holds no run")
    assert ended.returncode == 2
    assert ended.stdout.split() == ["launch", "launch.app", "launch.cli", "launch.exit_codes", "launch.usage"]
    module = run("-m", "launch.report", arguments[1], cwd=REPOSITORY)
    assert (module.returncode, module.stderr) == (ended.returncode, ended.stderr)


def test_a_module_of_the_users_own_is_found_in_the_working_folder(tmp_path, monkeypatch):
    """As with `python -m`; but never a part of this project from another copy of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.runpy, "run_module", lambda *_, **__: None)
    for copy, wanted in ((False, [str(tmp_path)]), (True, [])):
        if copy:
            (tmp_path / "launch").mkdir()
            (tmp_path / "launch" / "cli.py").touch()
        monkeypatch.setattr(sys, "path", ["installed"])
        monkeypatch.setattr(sys, "argv", ["creason"])
        cli.start("train", ["--progress"])
        assert sys.path == ["installed", *wanted]
        assert sys.argv == ["train", "--progress"]


@pytest.mark.parametrize("words", [("help", "train"), ("train", "--help")])
def test_help_of_a_program(monkeypatch, words):
    started = []
    monkeypatch.setattr(cli, "start", lambda *call: started.append(call))
    monkeypatch.setattr(sys, "argv", ["creason", *words])
    cli.main()
    assert started == [("train", ["--help"])]


@pytest.mark.parametrize("words", [(), ("help",), ("--help",), ("-h",)])
def test_the_list_of_programs(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["creason", *words])
    cli.main()
    assert capsys.readouterr().out == cli.overview() + "\n"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("trian",), "there is no program 'trian'; did you mean train? `creason` alone lists the programs"),
        (("help", "evaluat"), "there is no program 'evaluat'; did you mean evaluate?"),
        (("xyz", "--help"), "there is no program 'xyz'; `creason` alone lists the programs"),
        (("app",), "there is no program 'app'"),
        (("--config=x",), "--config=x: the program comes first, as in `creason train --config=x`"),
    ],
)
def test_what_is_no_program_ends_with_one_line(monkeypatch, capsys, words, wanted):
    monkeypatch.setattr(sys, "argv", ["creason", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.startswith(f"error: {wanted}") and said.err.count("\n") == 1


@pytest.mark.slow
def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "launch"], cwd=REPOSITORY, env=environment(), stdout=write, stderr=subprocess.PIPE,
        timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert ended.returncode == 141 and ended.stderr == b""
