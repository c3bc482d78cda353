"""Can each extra of pyproject.toml be installed from pip's ordinary index alone, with the versions of constraints.txt?

Nothing is installed and no wheel of this machine is used. Says so and ends well where no index answers.
"""

import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOGETHER = ["cuda,gpu"]  # both backends on one GPU node
# As on a machine that was never set up: no settings of pip, but for how to reach the index at all.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PIP_CONFIG_FILE", "PIP_FIND_LINKS")}
ENVIRONMENT |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_NO_INPUT": "1"}


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pip outside this checkout's settings."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def main() -> int:
    """0 where all extras resolve, or no index answers; 1 otherwise."""
    extras = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    if pip("index", "versions", "absl-py").returncode:
        print("resolve: skipped, no package index answers from here")
        return 0
    failed = 0
    for extra in [*extras, *TOGETHER]:
        begin = time.monotonic()
        found = pip("install", "--dry-run", "--ignore-installed", "--quiet", "-c", "constraints.txt", f".[{extra}]")
        failed += found.returncode != 0
        outcome = "cannot be installed" if found.returncode else "can be installed"
        print(f"resolve: [{extra}] {outcome} ({time.monotonic() - begin:.0f} s)", flush=True)
        if found.returncode:
            print(found.stderr[-3_000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
