"""The code of docs/extending.md, and a copy of the repository with that code at the end of the files that the page names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = ("shared", "creason_jax", "creason_torch", "parity", "configs", "tests", "docs")


def section(heading: str) -> str:
    """The text below a heading of the page, up to the next one."""
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    return page.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def additions(heading: str) -> dict[str, str]:
    """File -> the code that a section of the page puts at its end."""
    parts = section(heading).split("At the end of `")[1:]
    return {part.split("`")[0]: part.split("```python\n")[1].split("```")[0] for part in parts}


def extended_copy(heading: str, folder: Path) -> Path:
    """A copy of the repository in `folder` in which a section's code is at the end of the files that it names."""
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy2(REPOSITORY / "pyproject.toml", folder)
    for name, code in additions(heading).items():
        path = folder / name
        path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{code}", encoding="utf-8")
    return folder


def run(copy: Path, *arguments: str) -> str:
    """What `python arguments` prints in a copy of the repository, whose modules it loads; it must end with exit code 0."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "CREASON_GOLDEN": str(REPOSITORY / "tests" / "golden")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-4_000:] + result.stderr[-4_000:]
    return result.stdout


def new_file(heading: str, name: str) -> str:
    """The code of a new file that a section of the page gives."""
    return section(heading).split(f"A new file, `{name}`")[1].split("```python\n")[1].split("```")[0]
