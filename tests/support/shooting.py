"""Starting the command that makes the documentation's screenshots."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import screenshots

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = {f"{page}-{look}.png" for page in (*screenshots.PAGES, "review") for look in screenshots.LOOKS}


def launch(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.screenshots", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
