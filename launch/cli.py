"""The `creason` command starts any program of this folder. It loads only the module of the chosen program.

creason                 lists the programs, in the order in which a user needs them
creason help train      says what a program does, with its flags and examples; the same as `creason train --help`
creason train ...       does the same as `python -m launch.train ...`
"""

from __future__ import annotations

import ast
import difflib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import shared  # noqa: F401  loaded now, so that a folder of the user with this name cannot take its place
from launch.exit_codes import EXIT_BAD_INPUT, EXIT_UNREAD

FOLDER = Path(__file__).parent
PROGRAMS = {
    "From a table to a result": ("prepare", "show", "train", "evaluate", "report"),
    "With a trained model": ("export", "consult", "review", "curves"),
    "Proof and planning": ("parity", "plan", "jobset"),
}
NAMES = [name for names in PROGRAMS.values() for name in names]
HELP = ("help", "--help", "-help", "-h")


def main() -> None:
    """Start the program that the command line names, or list all programs. Exits with the program's exit code."""
    name, *arguments = sys.argv[1:] or ["help"]
    if name in HELP:
        if not arguments:
            _print(overview())
            return
        name, arguments = arguments[0], ["--help"]
    if name not in NAMES:
        print(f"error: {refusal(name)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    start(name, arguments)


def start(name: str, arguments: Sequence[str]) -> None:
    """Do in this process what `python -m launch.NAME ARGUMENTS` does."""
    sys.argv = [name, *arguments]
    # As with `python -m`, modules in the current folder can be imported. But here that folder comes last, and it is left out if
    # it is another copy of this project.
    current_folder = os.getcwd()
    if (
        not sys.flags.safe_path
        and current_folder not in sys.path
        and not Path(current_folder, "launch", "cli.py").exists()
    ):
        sys.path.append(current_folder)
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """A list of the programs in groups, with one line for each."""
    width = max(map(len, NAMES))
    lines = ["usage: creason PROGRAM [flags]"]
    for title, names in PROGRAMS.items():
        lines += ["", title, *(f"  {name:<{width}}  {summary(name)}" for name in names)]
    return "\n".join([*lines, "", "creason help PROGRAM explains its flags and shows examples."])


def summary(name: str) -> str:
    """What a program does: the first line of its module's docstring, read without importing the module."""
    module = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(module) or "").partition("\n")[0]


def refusal(name: str) -> str:
    """One line for a name that no program has."""
    if name.startswith("-"):
        return f"{name}: the program comes first, as in `creason train {name}`; `creason` alone lists the programs"
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"there is no program {name!r}; {hint}`creason` alone lists the programs"


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_UNREAD)


if __name__ == "__main__":
    main()
