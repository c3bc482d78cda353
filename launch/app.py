"""How every program of this folder starts and ends: an error that the user can correct is one clear line, never a traceback.

Exit codes: 2 for a wrong flag, bad input or a place that cannot be written; 1 for a run that must not go on; 130 if the user
interrupted it; 141 if the reader of its output closed the pipe (a shell gives the same code for SIGPIPE).
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

# The error messages of absl and ml_collections for a flag's value -> the text that replaces them.
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

OWNER_ONLY = 0o077  # umask: the programs write patients' data, and models that learned from them

OTHERS: list[
    Any
] = []  # in a run of several JAX processes: the module `creason_jax.distributed`, to tell them of an error
ENDS: list[
    Callable[[int], NoReturn]
] = []  # functions that end this process with an exit code, where Python itself must not
_goes_on: list[bool] = []  # not empty: after an interruption, the same command goes on from the work already done
_made: list[Path] = []  # folders that were made for a flag, the innermost first


def run(main: Callable[[], None], *, expand_home: bool = True) -> None:
    """Parse the command line, run `main`, and exit. `main` reads its flags and may raise InputError.

    `~/` at the start of a flag's value becomes the user's home folder, which shells do not always do. `expand_home=False` is for
    a program whose paths are on another machine. All files that the program and its libraries write from here on are readable
    only by their owner.
    """
    os.umask(OWNER_ONLY)
    _goes_on.clear()
    try:
        app.run(lambda _: _reported(main), flags_parser=functools.partial(_parse, main=main, expand_home=expand_home))
    except SystemExit as ended:
        if not isinstance(ended.code, str):  # Python prints a text itself
            for end in ENDS:
                end(ended.code or 0)
        raise
    except Exception:
        for end in ENDS:
            traceback.print_exc()
            end(EXIT_STOPPED)
        raise


def check_result(flag: str, path: Path, is_earlier: Callable[[Path], bool]) -> str:
    """Check, before any work, that the result file which a flag names may be written.

    An earlier result of the same program, which `is_earlier` recognises, will be replaced: then the result is " (replaced)", for
    the line that names the file; else it is "". Raises InputError if the path is another file or a folder, or cannot be written.
    """
    if path.is_dir():
        raise InputError(f"--{flag}={path}: is a directory; give the name of a file")
    if path.exists() and not is_earlier(path):
        raise InputError(f"--{flag}={path}: exists, and is not an earlier result of this program; give another name")
    files.check_folder(flag, path.absolute().parent)
    return " (replaced)" if path.exists() else ""


def make_folder(flag: str, folder: Path) -> None:
    """Make the directory that a flag names, if it does not exist. Raises InputError if that is not possible.

    If the program fails, the directory is removed again if it is still empty.
    """
    files.check_folder_name(flag, folder)
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--{flag}={folder}: is a file; give a directory")
        _made[:0] = files.make_folder(folder)
    except OSError as error:
        raise InputError(f"--{flag}={folder}: cannot be made ({error.strerror}); give another directory") from None


def goes_on() -> None:
    """From now on, the message after an interruption says that the same command goes on from the work already done."""
    _goes_on.append(True)


def on_terminal() -> bool:
    """Whether standard error is a terminal. It may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()


def read_on_terminal() -> bool:
    """Whether standard output is a terminal: then the user who started the program reads it, and it is stored nowhere."""
    return sys.stdout is not None and sys.stdout.isatty()


def _reported(work: Callable[[], None]) -> None:
    """Call `work`. If it fails with an error that the user can correct, print it in one line and exit."""
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
        # Any other error is raised again. The other processes must be told, or they would wait for ever.
        files.remove_empty(_made)
        for others in OTHERS:
            others.before_report()
            traceback.print_exc()
            others.leave(EXIT_STOPPED)
        raise


def _parse(argv: Sequence[str], *, main: Callable[[], None], expand_home: bool) -> list[str]:
    if any(word in ("--help", "-help", "-h") for word in argv[1:]):
        if sys.stdout is not None:
            _reported(lambda: usage.show(main))
        sys.exit(0)
    quiet = f"--verbosity={logging.WARNING}"  # without it absl shows the informational messages of libraries
    words = [_with_home(word) for word in argv[1:]] if expand_home else list(argv[1:])
    try:
        rest = flags.FLAGS([argv[0], quiet, *words])
    except flags.Error as error:
        _fail(_refused_value(str(error)))
    except (AttributeError, KeyError, TypeError, ValueError):
        # ml_collections raises these for an override of a name that is not a field.
        words = [word for word in words if word.lstrip("-").startswith(("config.", "noconfig."))]
        _fail(f"{', '.join(words)}: the config has no such field; --help lists them")
    for name, value in flags.FLAGS.flag_values_dict().items():
        # The fields of a config (with a dot in their names) are checked by the config.
        if isinstance(value, float) and "." not in name and not math.isfinite(value):
            _fail(f"flag --{name}={value}: must be a finite number")
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}; every option is a flag such as --name=value, see --help")
    return rest


def _refused_value(message: str) -> str:
    """absl's error message; if it is about a flag's value, in plain words."""
    for pattern, words in REFUSED_VALUES:
        match = re.fullmatch(rf"(flag --[^=]+=.*?: ){pattern}", message, re.DOTALL)
        if match:
            options = " ".join(match[number].replace("|", ", ") for number in range(2, match.re.groups + 1))
            return match[1] + words.replace(r"\1", options)
    return message


def _with_home(word: str) -> str:
    """A word of the command line, with `~` replaced by the home folder in a flag's value, or in each value of its list."""
    name, mark, value = word.partition("=")
    return name + mark + HOME.sub(str(Path.home()), f",{value}")[1:] if mark and name.startswith("-") else word


def _fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    line = " ".join(message.split())
    for others in OTHERS:
        others.before_report()  # what looks like bad input may be caused by another process that has ended
    with contextlib.suppress(OSError):
        print(f"error: {line}", file=sys.stderr, flush=True)
    _end(code)


def _end(code: int) -> NoReturn:
    files.remove_empty(_made)
    for stream in (sys.stdout, sys.stderr):
        _give_up(stream)
    for others in OTHERS:  # end at once; an ordinary exit would wait for the other processes
        others.leave(code)
    sys.exit(code)


def _flush() -> None:
    """Flush standard output now, while an error can still be reported; Python itself does it too late."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _give_up(stream: TextIO | None) -> None:
    """Flush a stream. If it cannot be written, send its remaining text to /dev/null, or Python would try again at its exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unread(stream: TextIO | None) -> bool:
    """Whether the stream is a pipe whose reader has closed it."""
    if stream is None:
        return False
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLERR)
    return bool(poll.poll(0))
