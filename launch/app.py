"""How every program of this folder starts: a wrong flag or a bad input ends with one clear line and exit code 2."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

from shared.errors import InputError, TrainingError

EXIT_BAD_INPUT = 2
EXIT_STOPPED = 1  # a run that must not go on
EXIT_INTERRUPTED = 130

OWNER_ONLY = 0o077  # umask: what a program writes holds patients' data, or was learned from them

OTHERS: list[Any] = []  # what joins this process with others of its run: `creason_jax.distributed`, once they are there


def run(main: Callable[[], None]) -> None:
    """Parse the command line, run `main`, and exit. `main` reads its flags and may raise InputError.

    Whatever the program and its libraries write from here on is readable by its owner only.
    """

    def checked(_: Sequence[str]) -> None:
        try:
            main()
        except InputError as error:
            _fail(str(error))
        except TrainingError as error:
            _fail(str(error), EXIT_STOPPED)
        except KeyboardInterrupt:
            _leave(EXIT_INTERRUPTED)
            raise
        except Exception:
            # Nothing is swallowed: whatever it is, the other processes must learn of it, or they would wait for ever.
            for others in OTHERS:
                others.before_report()
                traceback.print_exc()
                others.leave(EXIT_STOPPED)
            raise

    os.umask(OWNER_ONLY)
    app.run(checked, flags_parser=_parse)


def make_folder(flag: str, folder: Path) -> None:
    """Make the directory that a flag names, if it is not there. Raises InputError where that is not possible."""
    if re.match(r"\w+:/", str(folder)):
        raise InputError(f"--{flag}={folder}: must be a folder; an address in a bucket is not understood here")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--{flag}={folder}: is a file; give a directory")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--{flag}={folder}: cannot be made ({error.strerror}); give another directory") from None


def _parse(argv: Sequence[str]) -> list[str]:
    if any(word in ("--help", "-help", "-h") for word in argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)
    quiet = f"--verbosity={logging.WARNING}"  # absl would show what libraries log for their own authors
    try:
        rest = flags.FLAGS([argv[0], quiet, *argv[1:]])
    except flags.Error as error:
        _fail(str(error))
    except (AttributeError, KeyError, TypeError, ValueError):
        # How ml_collections refuses an override of what is no field.
        words = ", ".join(word for word in argv[1:] if word.lstrip("-").startswith(("config.", "noconfig.")))
        _fail(f"{words}: the config has no such field; shared/config.py lists them")
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}; every option is a flag such as --name=value, see --help")
    return rest


def _fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    line = " ".join(message.split())
    for others in OTHERS:
        others.before_report()  # what looks like bad input may come of one that is gone
    print(f"error: {line}", file=sys.stderr)
    _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """Where there are other processes, end without waiting for them, as an ordinary exit would."""
    for others in OTHERS:
        others.leave(code)
