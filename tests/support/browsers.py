"""A real browser for tests of pages: the machine's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Tests run as root in containers, where Chromium's sandbox and /dev/shm are not what it expects; nothing may ask a network.
SWITCHES = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZES = {"wide": (1300, 900), "phone": (390, 844)}  # pixels

PATIENCE = 20_000  # milliseconds; other tests run beside
expect.set_options(timeout=PATIENCE)


def executable() -> Path | None:
    """The Chromium of this machine: the one that CREASON_CHROMIUM names, else the first found on PATH, else None."""
    named = os.environ.get("CREASON_CHROMIUM")
    if named:
        assert os.access(named, os.X_OK), f"CREASON_CHROMIUM={named}: no such program"
        return Path(named)
    return next((Path(found) for found in map(shutil.which, NAMES) if found), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A started Chromium; skips the test, with the reason, where this machine has none.

    Until it is closed an event loop runs in this thread, so that nothing here may call `asyncio.run`.
    """
    found = executable()
    if found is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on PATH (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(SWITCHES))
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def page(browser: Browser, size: str = "wide", scheme: str = "light") -> Iterator[Page]:
    """A page of its own (no cookie or storage of others); `size` of SIZES, `scheme` light or dark.

    Fails where the page reported an error of a script, or was refused something by its content security policy. Such a
    policy also refuses `wait_for_function`; `expect(locator)` of Playwright waits without.
    """
    width, height = SIZES[size]
    errors: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE)
    try:
        opened = context.new_page()
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("console", lambda said: errors.append(said.text) if "Content Security" in said.text else None)
        yield opened
        assert not errors, errors
    finally:
        context.close()


def overflow(opened: Page) -> int:
    """By how many pixels the page is wider than its window: 0 where nobody must scroll sideways."""
    return opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
