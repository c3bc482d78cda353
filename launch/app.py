"""How every program of this folder starts and ends: whatever its user can mend is one clear line, never a traceback.

Exit codes: 2 for a wrong flag, bad input or a place that cannot be written; 1 for a run that must not go on; 130 where the
user interrupted it; 141 where whoever read its output has gone, as a shell says of a program that a closed pipe ended.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from absl import app, flags, logging

from launch import usage
from launch.exit_codes import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_UNREAD
from shared.errors import InputError, TrainingError
from shared.storage import files

# How absl and ml_collections refuse a flag's value, and what is said in its place.
REFUSED_VALUES = (
    (r"invalid literal for int\(\) .*", "must be a whole number"),
    (r"could not convert string to float: .*", "must be a number"),
    (r"\('Non-boolean argument to boolean flag', .*", "must be true or false"),
    (r"value should be one of <(.*)>", r"must be one of \1"),
    (r"\S+ is not an? (positive|non-negative) integer", r"must be a \1 whole number"),
    (r"\S+ is not (?:an )?integer (.*)", r"must be a whole number \1"),
    (r"\S+ is not (a (?:positive|non-negative) number)", r"must be \1"),
    (r"\S+ is not (?:an? )?(number .*)", r"must be a \1"),
    (r"Failed to parse .* as a ConfigDict: .*", "is a section of the config, not a value; set one of its fields"),
)
HOME = re.compile(r"(?<=,)~(?=/|,|$)")

OWNER_ONLY = 0o077  # umask: what a program writes holds patients' data, or was learned from them

OTHERS: list[Any] = []  # what joins this process with others of its run: `creason_jax.distributed`, once they are there
ENDS: list[Callable[[int], NoReturn]] = []  # what ends this process, with its exit code, where Python must not do it
_goes_on: list[bool] = []  # not empty: the same command goes on from what this one has done
_made: list[Path] = []  # folders made for a flag, the innermost first


def run(main: Callable[[], None], *, expand_home: bool = True) -> None:
    """Parse the command line, run `main`, and exit. `main` reads its flags and may raise InputError.

    `~/` at the start of a flag's value is the user's home, which shells leave to the program; not where `expand_home` is
    false, for a program whose paths are another machine's. Whatever the program and its libraries write from here on is
    readable by its owner only.
    """
    os.umask(OWNER_ONLY)
    _goes_on.clear()
    try:
        app.run(lambda _: _reported(main), flags_parser=functools.partial(_parse, main=main, expand_home=expand_home))
    except SystemExit as ended:
        if not isinstance(ended.code, str):  # a text is for Python to print
            for end in ENDS:
                end(ended.code or 0)
        raise
    except Exception:
        for end in ENDS:
            traceback.print_exc()
            end(EXIT_STOPPED)
        raise


def check_folder(flag: str, folder: Path) -> None:
    """Raise InputError where the directory that a flag names is not there and cannot be made, or cannot be written to."""
    _check_name(flag, folder)
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise InputError(f"--{flag}={folder}: cannot be made ({there} is a file); give another directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--{flag}={folder}: cannot be written ({there} does not allow it); give another directory")


def check_result(flag: str, path: Path, is_earlier: Callable[[Path], bool]) -> str:
    """See to it, before work is spent, that a flag's one result file may be written: the rule of every program that has such.

    What the same program wrote earlier is replaced, as `is_earlier` recognises it, and that is said: " (replaced)" is returned
    for the line that names the file, else "". Raises InputError for any other file, for a folder, and for a place that cannot be
    written.
    """
    if path.is_dir():
        raise InputError(f"--{flag}={path}: is a directory; give the name of a file")
    if path.exists() and not is_earlier(path):
        raise InputError(
            f"--{flag}={path}: is there already, and is no earlier result of this program; give another name"
        )
    check_folder(flag, path.absolute().parent)
    return " (replaced)" if path.exists() else ""


def make_folder(flag: str, folder: Path) -> None:
    """Make the directory that a flag names, if it is not there. Raises InputError where that is not possible.

    Where the program fails, it is removed again if it is still empty.
    """
    _check_name(flag, folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--{flag}={folder}: is a file; give a directory")
        _made[:0] = files.make_folder(folder)
    except OSError as error:
        raise InputError(f"--{flag}={folder}: cannot be made ({error.strerror}); give another directory") from None


def goes_on() -> None:
    """From here on an interruption says that the same command goes on from what this one has done."""
    _goes_on.append(True)


def on_terminal() -> bool:
    """Whether somebody sees what is written to standard error; it may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()


def read_on_terminal() -> bool:
    """Whether standard output is a terminal: what is printed is read by whoever started the program, and kept nowhere."""
    return sys.stdout is not None and sys.stdout.isatty()


def _reported(work: Callable[[], None]) -> None:
    """Do `work`; where it fails, say why in one line and exit."""
    try:
        try:
            work()
        except SystemExit:
            _flush()
            raise
        _flush()
    except InputError as error:
        _fail(str(error))
    except TrainingError as error:
        _fail(str(error), EXIT_STOPPED)
    except KeyboardInterrupt:
        _fail("interrupted" + ("; the same command goes on where it was" if _goes_on else ""), EXIT_INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and (_unread(sys.stdout) or _unread(sys.stderr)):
            _end(EXIT_UNREAD)
        if isinstance(error, OSError) and (reason := files.refusal(error)):
            _fail(f"{error.filename or 'standard output, or a file'}: {reason}")
        # Nothing is swallowed: whatever it is, the other processes must learn of it, or they would wait for ever.
        files.remove_empty(_made)
        for others in OTHERS:
            others.before_report()
            traceback.print_exc()
            others.leave(EXIT_STOPPED)
        raise


def _check_name(flag: str, folder: Path) -> None:
    if re.match(r"\w+:/", str(folder)):
        raise InputError(f"--{flag}={folder}: must be a folder; an address in a bucket is not understood here")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--{flag}={folder}: is a file; give a directory")


def _parse(argv: Sequence[str], *, main: Callable[[], None], expand_home: bool) -> list[str]:
    if any(word in ("--help", "-help", "-h") for word in argv[1:]):
        if sys.stdout is not None:
            _reported(lambda: usage.show(main))
        sys.exit(0)
    quiet = f"--verbosity={logging.WARNING}"  # absl would show what libraries log for their own authors
    words = [_with_home(word) for word in argv[1:]] if expand_home else list(argv[1:])
    try:
        rest = flags.FLAGS([argv[0], quiet, *words])
    except flags.Error as error:
        _fail(_refused_value(str(error)))
    except (AttributeError, KeyError, TypeError, ValueError):
        # How ml_collections refuses an override of what is no field.
        words = [word for word in words if word.lstrip("-").startswith(("config.", "noconfig."))]
        _fail(f"{', '.join(words)}: the config has no such field; --help lists them")
    for name, value in flags.FLAGS.flag_values_dict().items():
        if isinstance(value, float) and "." not in name and not math.isfinite(value):  # a config checks its own fields
            _fail(f"flag --{name}={value}: must be a finite number")
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}; every option is a flag such as --name=value, see --help")
    return rest


def _refused_value(message: str) -> str:
    """What absl says of a command line; where it is about a flag's value, in plain words."""
    for pattern, words in REFUSED_VALUES:
        found = re.fullmatch(rf"(flag --[^=]+=.*?: ){pattern}", message, re.DOTALL)
        if found:
            options = " ".join(found[number].replace("|", ", ") for number in range(2, found.re.groups + 1))
            return found[1] + words.replace(r"\1", options)
    return message


def _with_home(word: str) -> str:
    """A word of the command line, `~` for the home replaced in the value of a flag, or in each value of its list."""
    name, mark, value = word.partition("=")
    return name + mark + HOME.sub(str(Path.home()), f",{value}")[1:] if mark and name.startswith("-") else word


def _fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    line = " ".join(message.split())
    for others in OTHERS:
        others.before_report()  # what looks like bad input may come of one that is gone
    with contextlib.suppress(OSError):
        print(f"error: {line}", file=sys.stderr, flush=True)
    _end(code)


def _end(code: int) -> NoReturn:
    files.remove_empty(_made)
    for stream in (sys.stdout, sys.stderr):
        _give_up(stream)
    for others in OTHERS:  # end without waiting for them, as an ordinary exit would
        others.leave(code)
    sys.exit(code)


def _flush() -> None:
    """Write what was printed while its failure can still be told; Python itself does it too late."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _give_up(stream: TextIO | None) -> None:
    """Where a stream cannot be written, what it still holds goes nowhere; else Python would try again at its end."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unread(stream: TextIO | None) -> bool:
    """Whether this is a pipe that nobody reads any more."""
    if stream is None:
        return False
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLERR)
    return bool(poll.poll(0))
