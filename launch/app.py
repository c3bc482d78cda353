"""How every program of this folder starts: a wrong flag or a bad input ends with one clear line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags

from shared.errors import InputError, TrainingError

EXIT_BAD_INPUT = 2
EXIT_STOPPED = 1  # a run that must not go on


def run(main: Callable[[], None]) -> None:
    """Parse the command line, run `main`, and exit. `main` reads its flags and may raise InputError."""

    def checked(_: Sequence[str]) -> None:
        try:
            main()
        except InputError as error:
            _fail(str(error))
        except TrainingError as error:
            _fail(str(error), EXIT_STOPPED)

    app.run(checked, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    if any(word in ("--help", "-help", "-h") for word in argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)
    for word, following in zip(argv[1:], [*argv, ""][2:], strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        path = (value if equals else following).partition(":")[0]  # what follows a colon is for the file itself
        if name == "config" and not Path(path).is_file():
            _fail(f"--config={path}: no such file")
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        _fail(str(error))
    except (AttributeError, KeyError) as error:  # how ml_collections refuses an override
        field = str(error).strip("'\"")
        words = ", ".join(word for word in argv[1:] if field in word)
        _fail(f"{words or field}: the config has no field {field}; shared/config.py lists them")
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}; every option is a flag such as --name=value, see --help")
    return rest


def _fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)
