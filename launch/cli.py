"""The `creason` command: one name for every program of this folder; only the module of the chosen one is loaded.

creason                 the programs, in the order in which a person needs them
creason help train      what a program does, its flags and examples; `creason train --help` is the same
creason train ...       what `python -m launch.train ...` does
"""

from __future__ import annotations

import ast
import difflib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import shared  # noqa: F401  the one beside this package, whatever a folder of the user's is called
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
    """Start the program that the command line names, or list the programs. Ends with the program's exit code."""
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
    """What `python -m launch.NAME ARGUMENTS` does, in this process."""
    sys.argv = [name, *arguments]
    # As with `python -m`, modules in the folder where the command is given can be imported; behind all others here, and not
    # those of another copy of this project.
    here = os.getcwd()
    if not sys.flags.safe_path and here not in sys.path and not Path(here, "launch", "cli.py").exists():
        sys.path.append(here)
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """The programs in groups, one line each."""
    width = max(map(len, NAMES))
    lines = ["usage: creason PROGRAM [flags]"]
    for title, names in PROGRAMS.items():
        lines += ["", title, *(f"  {name:<{width}}  {summary(name)}" for name in names)]
    return "\n".join([*lines, "", "creason help PROGRAM explains its flags and shows examples."])


def summary(name: str) -> str:
    """What a program does: the first line of its module, which is not loaded for it."""
    module = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(module) or "").partition("\n")[0]


def refusal(name: str) -> str:
    """One line on a name that is no program's."""
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
