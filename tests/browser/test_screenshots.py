"""The documentation's screenshots: one command makes them, from pages that are there or from the programs."""

from __future__ import annotations

import importlib

import pytest
from absl import flags

from tests.support import screenshots
from tests.support.shooting import NAMES, REPOSITORY, launch

pytestmark = pytest.mark.slow

WIDEST = 300 * 1024  # bytes of a picture in a repository


def test_those_of_the_documentation_are_there_and_small():
    folder = REPOSITORY / "docs" / "screenshots"
    assert {path.name for path in folder.iterdir()} == NAMES
    assert all(path.stat().st_size < WIDEST for path in folder.iterdir())


@pytest.mark.parametrize("page", screenshots.PAGES)
def test_a_page_that_is_not_there_is_made_by_a_command_that_exists(page):
    _, (program, *words) = screenshots.PAGES[page]
    known = set(flags.FLAGS)
    try:
        importlib.import_module(f"launch.{program}").define_flags()
        for word in words:
            assert word.removeprefix("--").partition("=")[0] in set(flags.FLAGS) - known, word
    finally:
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)


def test_what_is_wrong_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for ended, message in (
        (launch(f"--out={tmp_path / 'file'}"), "is a file; give a directory"),
        (launch(f"--out={tmp_path / 'shots'}", PATH="/nowhere", CREASON_CHROMIUM=""), "install Chromium"),
    ):
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and message in ended.stderr, ended.stderr
    assert not (tmp_path / "shots").exists()


def test_a_program_that_fails_is_named_with_its_last_line(tmp_path):
    with pytest.raises(screenshots.InputError, match=r"launch\.report ended with code 2: error: .*holds no run"):
        screenshots.make("report", tmp_path, ("report", "--workdir=."))
