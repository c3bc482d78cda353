"""The browser of the tests itself: it sees widths, colours and errors as a user's would."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import browsers

PAGE = """<!doctype html><meta name="viewport" content="width=device-width"><style>
body { margin: 0; background: white } div { width: 500px; height: 9px }
@media (prefers-color-scheme: dark) { body { background: black } }</style><div></div>"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_a_phone_sees_what_is_too_wide_and_what_is_dark(browser):
    with browsers.page(browser, "phone", "dark") as page:
        page.set_content(PAGE)
        assert browsers.overflow(page) == 500 - 390 and page.evaluate(BACKGROUND) == "rgb(0, 0, 0)"
    with browsers.page(browser) as page:
        page.set_content(PAGE)
        assert browsers.overflow(page) == 0 and page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"


def test_an_error_of_a_script_fails(browser):
    with pytest.raises(AssertionError, match="boom"), browsers.page(browser) as page:
        page.set_content("<script>throw new Error('boom')</script>")


def test_what_a_policy_refuses_fails(browser):
    policy = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'">"""
    with pytest.raises(AssertionError, match="Content Security Policy"), browsers.page(browser) as page:
        page.set_content(f"{policy}<img src='http://127.0.0.1:9/x.png'>")


def test_its_event_loop_ends_with_it():
    """Other tests of this process may use asyncio afterwards. In a thread, as this file's browser is open in this one."""

    def opened_and_closed():
        with browsers.chromium():
            during = asyncio.get_running_loop()
        asyncio.run(asyncio.sleep(0))
        return during.is_closed()

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(opened_and_closed).result()


def test_a_chromium_that_is_named_must_be_there(monkeypatch):
    monkeypatch.setenv("CREASON_CHROMIUM", "/nowhere/chromium")
    with pytest.raises(AssertionError, match="/nowhere/chromium: no such program"):
        browsers.executable()


def test_without_any_it_is_skipped_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.delenv("CREASON_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="no Chromium: .* apt-get install chromium"), browsers.chromium():
        pass
