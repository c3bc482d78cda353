"""How a program ends where nobody reads it, where nothing can be written, and what it leaves then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import app
from tests.support.commands import REPOSITORY, Ended, environment, here

JOBSET = ("jobset", "--config=c.py", "--topology=v5p:4x4x4", "--image=i", "--claim=c")
SMALL = ("--patients=30", "--valid_patients=10", "--train_questions=20", "--valid_questions=10")
UNREAD = 141  # 128 + SIGPIPE, as a shell says it of other programs


def started(*arguments: str, **streams) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"launch.{arguments[0]}", *arguments[1:]], cwd=REPOSITORY, text=True, **streams
    )


def ended_unread(stream: str, *arguments: str, **variables: str) -> Ended:
    """How a program ends whose standard output, or error, nobody reads from the start."""
    reading, written = os.pipe()
    os.close(reading)
    process = started(*arguments, env=environment(**variables), **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
                      | {stream: written})  # fmt: skip
    os.close(written)
    out, err = process.communicate(timeout=300)
    return Ended(process.returncode, out or "", err or "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_a_quiet_end(unbuffered):
    ended = ended_unread("stdout", *JOBSET, PYTHONUNBUFFERED=unbuffered)
    assert (ended.code, ended.err) == (UNREAD, "")


@pytest.mark.slow
def test_what_was_made_is_there_though_nobody_read_of_it(tmp_path):
    ended = ended_unread("stdout", "prepare", *SMALL, f"--out={tmp_path / 'out'}", "--noprogress", PYTHONUNBUFFERED="")
    assert (ended.code, ended.err) == (UNREAD, "")
    assert (tmp_path / "out" / "questions" / "provenance.json").is_file()


@pytest.mark.slow
def test_stages_of_a_preparation_may_go_unread(tmp_path):
    ended = ended_unread("stderr", "prepare", *SMALL, f"--out={tmp_path / 'out'}")
    assert ended.code == 0 and (tmp_path / "out" / "questions" / "provenance.json").is_file()


def test_help_may_go_unread():
    assert ended_unread("stdout", "jobset", "--help", PYTHONUNBUFFERED="").err == ""


def test_an_error_that_nobody_reads_keeps_its_code():
    assert ended_unread("stderr", "jobset", "--nothing").code == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output(unbuffered):
    with open("/dev/full", "w") as full:
        process = started(*JOBSET, stdout=full, stderr=subprocess.PIPE, env=environment(PYTHONUNBUFFERED=unbuffered))
        _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err == "error: standard output, or a file: No space left on device\n"


def test_closed_streams_are_no_reason_to_fail():
    command = f"{sys.executable} -m launch.{' '.join(JOBSET)}"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        assert subprocess.run(["bash", "-c", f"{command} {closed}"], cwd=REPOSITORY, timeout=300).returncode == 0


@pytest.fixture
def failing(monkeypatch, capfd):
    """Runs a program whose work is `work`, called with its flags."""

    def failing(work, *arguments: str) -> Ended:
        monkeypatch.setattr("launch.jobset.manifest", work)
        monkeypatch.setattr(app, "_made", [])
        return here(*JOBSET, *arguments, monkeypatch=monkeypatch, capfd=capfd)

    return failing


def raising(error: BaseException, folder: Path | None = None, inside: str = ""):
    def work():
        if folder is not None:
            app.make_folder("out", folder)
        if inside:
            (folder / inside).write_text("x")
        raise error

    return work


def test_an_interrupt_is_one_line(failing, tmp_path):
    ended = failing(raising(KeyboardInterrupt(), tmp_path / "a" / "b"))
    assert (ended.code, ended.out, ended.err) == (130, "", "error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_says_where_the_same_command_goes_on(failing):
    def work():
        app.goes_on()
        raise KeyboardInterrupt

    assert failing(work).err == "error: interrupted; the same command goes on where it was\n"


@pytest.mark.parametrize("dry", [False, True])
def test_a_run_that_is_interrupted_can_go_on_and_a_dry_run_has_nothing_to_go_on_from(dry, tmp_path, monkeypatch, capfd):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("shared.runs.dry_run.lines" if dry else "shared.runs.run.run", interrupted)
    flags = ["--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", *(["--dry_run"] if dry else [])]
    ended = here("train", *flags, monkeypatch=monkeypatch, capfd=capfd)
    goes_on = "" if dry else "; the same command goes on where it was"
    assert (ended.code, ended.err) == (130, f"error: interrupted{goes_on}\n")


def test_an_interrupt_by_signal():
    listening = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # whoever started the tests may ignore it
    interrupted = f"app.run(lambda: os.kill(os.getpid(), {int(signal.SIGINT)}))"
    code = f"import os, signal; {listening}; from launch import app; {interrupted}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (130, "error: interrupted\n")


@pytest.mark.parametrize("number", ["EACCES", "EDQUOT", "EIO", "EISDIR", "ENOSPC", "ENOTDIR", "EROFS", "ENAMETOOLONG"])
def test_what_the_system_refuses_is_one_line(failing, number):
    import errno

    code = getattr(errno, number)
    told = failing(raising(OSError(code, os.strerror(code), "runs/x/table.csv"))).refusal
    assert told == f"error: runs/x/table.csv: {os.strerror(code)}"


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(111, "refused"), BrokenPipeError(32, "gone"), RuntimeError("bug")]
)
def test_what_is_a_fault_of_ours_keeps_its_traceback(failing, error, tmp_path):
    with pytest.raises(type(error)):
        failing(raising(error, tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_or_are_filled_stay(failing, tmp_path):
    from shared.errors import InputError, TrainingError

    (tmp_path / "old").mkdir()
    assert failing(raising(InputError("wrong"), tmp_path / "old")).code == 2
    assert failing(raising(TrainingError("wrong"), tmp_path / "old" / "new" / "er")).code == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]
    assert failing(raising(InputError("wrong"), tmp_path / "new" / "er", "answers")).code == 2
    assert (tmp_path / "new" / "er" / "answers").is_file()


def test_home_is_understood_where_a_shell_leaves_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path))
    told = here("curves", "--workdirs=~/a,~/b~c", "--out=~/x", monkeypatch=monkeypatch, capfd=capfd).refusal
    assert f"{tmp_path}/a/summary.json: no such file" in told
    told = here("report", "--workdir=~", monkeypatch=monkeypatch, capfd=capfd).refusal
    assert f"error: {tmp_path}: holds no run" in told
    # Paths in the image of a cluster are not this machine's.
    shown = here(*JOBSET, "--train=--config.model.path=~/phi", monkeypatch=monkeypatch, capfd=capfd)
    assert "--config.model.path=~/phi" in shown.out
