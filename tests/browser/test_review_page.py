"""The page for raters in a real browser: what is pressed is kept, what is not kept is said, and it fits a phone."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from benchmarks import review_load
from shared.review import review
from shared.review.store import STORE_FILE, Said, Store
from tests.support import browsers
from tests.support.review_files import replies

pytestmark = pytest.mark.slow

CASES = 12
PRESSED_TWICE = """for (const _ of [1, 2])
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "1", bubbles: true }))"""
LIGHTNESS = "getComputedStyle(document.body).color.match(/\\d+/g).reduce((sum, part) => sum + Number(part), 0) / 3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A review with words that are wider than a phone."""
    place = tmp_path_factory.mktemp("served")
    first, second = (replies(place / f"{name}.jsonl", name, CASES) for name in ("alpha", "omega"))
    for path in (first, second):
        path.write_text(
            path.read_text().replace(" answers ", f" answers {'long' * 40} ").replace("Case ", f"{'x' * 90} Case ")
        )
    review.export(first, second, names=("base", "trained"), raters=("r1", "r2"), count=0, out=place / "review",
                  key=place / "key.json", seed=1)  # fmt: skip
    return place / "review"


@pytest.fixture(scope="module")
def server(folder):
    with review_load.serving(folder) as running:
        yield running


@pytest.fixture
def page(browser):
    with browsers.page(browser) as opened:
        yield opened


def kept(folder, rater, number):
    store = Store(folder / STORE_FILE)
    try:
        return store.said(rater).get(number, Said())
    finally:
        store.close()


def saved(page):
    expect(page.locator("#status")).to_have_text("saved")
    expect(page.locator("#alarm")).to_be_hidden()


def at_case(page, number, count=CASES):
    """Wait for a case and for its script: until that has marked the active row, a pressed key does nothing."""
    expect(page.locator("h1")).to_have_text(f"Case {number} of {count}")
    expect(page.locator(".row.active")).to_have_count(1)


def button(page, field, value):
    return page.locator(f'[data-field="{field}"] [data-value="{value}"]')


def test_keys_rate_a_case_and_move_on(server, folder, page):
    link = server.links["r1"]
    page.goto(f"{link}/1")
    expect(page.locator("#status")).to_have_text("")
    page.keyboard.press("2")
    saved(page)
    page.keyboard.press("3")
    page.keyboard.press("5")
    expect(button(page, "grade_2", "5")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("9")  # no grade
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    page.keyboard.press("0")
    page.keyboard.press("ArrowRight")
    at_case(page, 2)
    assert kept(folder, "r1", 1) == Said("equal", "3", "5")
    expect(page.locator("#rated")).to_have_text("1")
    page.keyboard.press("1")
    page.keyboard.press("Enter")  # past the grade of answer 1
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    at_case(page, 3)
    assert kept(folder, "r1", 2) == Said("1", "", "4")
    page.keyboard.press("ArrowLeft")
    expect(button(page, "better", "1")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".row.active")).to_have_attribute("data-field", "grade_1")
    page.goto(link)
    at_case(page, 3)  # the first that is open


def test_a_double_click_and_a_double_press_save_once(server, folder, page):
    page.goto(f"{server.links['r1']}/4")
    sent = []
    page.on("request", lambda request: sent.append(request.post_data) if request.method == "POST" else None)
    button(page, "better", "2").dblclick()
    saved(page)
    button(page, "better", "2").click()
    page.evaluate(PRESSED_TWICE)
    saved(page)
    assert sent == ['{"field":"better","value":"2"}', '{"field":"grade_1","value":"1"}']
    assert kept(folder, "r1", 4) == Said("2", "1", "")


def test_a_comment_is_kept_before_the_page_is_left_and_choices_can_be_cleared(server, folder, page):
    page.goto(f"{server.links['r1']}/5")
    button(page, "better", "1").click()
    page.locator("summary").click()
    page.locator("#comment").press_sequentially('12 "mg" <b>')  # digits and arrows belong to the text here
    page.locator("#comment").press("ArrowLeft")
    page.locator("#next").click()
    at_case(page, 6)
    assert kept(folder, "r1", 5) == Said("1", "", "", '12 "mg" <b>')
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#comment")).to_have_value('12 "mg" <b>')
    page.locator("#clear").click()
    saved(page)
    expect(page.locator("[aria-pressed=true]")).to_have_count(0)
    assert kept(folder, "r1", 5) == Said(comment='12 "mg" <b>')


def test_two_raters_at_once(server, folder, browser):
    with browsers.page(browser) as one, browsers.page(browser, "phone") as other:
        one.goto(f"{server.links['r1']}/7")
        other.goto(f"{server.links['r2']}/7")
        for field, mine, theirs in (("better", "1", "2"), ("grade_1", "5", "2"), ("grade_2", "1", "4")):
            button(one, field, mine).click()
            button(other, field, theirs).click()
        saved(one)
        saved(other)
        expect(other.locator("#rated")).to_have_text("1")
        one.reload()
        expect(button(one, "grade_1", "5")).to_have_attribute("aria-pressed", "true")
    assert (kept(folder, "r1", 7), kept(folder, "r2", 7)) == (Said("1", "5", "1"), Said("2", "2", "4"))


def test_a_tampered_form_is_refused_and_said(server, folder, page):
    page.goto(f"{server.links['r1']}/8")
    page.evaluate("document.querySelector('[data-field=better] [data-value=equal]').dataset.value = 'A'")
    page.keyboard.press("0")
    expect(page.locator("#alarm")).to_have_text(
        "NOT SAVED: better must be empty or one of 1, 2, equal; nothing was kept"
    )
    expect(page.locator("#status")).to_have_text("NOT SAVED")
    expect(page.locator("[aria-pressed=true]")).to_have_count(0)
    assert kept(folder, "r1", 8) == Said()
    button(page, "better", "1").click()
    saved(page)


def test_a_wrong_link(server, page):
    answer = page.goto(server.links["r1"][:-1])
    assert answer.status == 404
    expect(page.locator("body")).to_have_text(
        "Nothing here This link leads nowhere. Please ask whoever sent it to you."
    )


def test_a_killed_server_is_said_and_what_was_pressed_is_saved_when_it_is_back(tmp_path, browser):
    folder = review_load.write_review(tmp_path, ["r1"], 3)
    with browsers.page(browser) as page:
        with review_load.serving(folder) as server:
            page.goto(f"{server.links['r1']}/1")
            page.keyboard.press("1")
            saved(page)
            server.kill()
            page.keyboard.press("4")
            expect(page.locator("#alarm")).to_contain_text(
                "NOT SAVED: the server does not answer. Leave this page open"
            )
            expect(page.locator("#status")).to_have_text("NOT SAVED")
            page.keyboard.press("2")
            page.keyboard.press("ArrowRight")  # not before all is saved
            assert kept(folder, "r1", 1) == Said("1")
        port = server.links["r1"].split(":")[2].partition("/")[0]
        with review_load.serving(folder, f"--port={port}") as again:
            assert again.links == server.links
            at_case(page, 2, 3)
            assert kept(folder, "r1", 1) == Said("1", "4", "2")


@pytest.mark.parametrize("size", browsers.SIZES)
def test_pages_fit_the_screen_and_follow_its_colours(server, folder, browser, size):
    brightness = {}
    for scheme in ("light", "dark"):
        with browsers.page(browser, size, scheme) as page:
            for address in (f"{server.links['r2']}/3", f"{server.links['r2']}/all", f"{server.links['r2']}/none",
                            (folder / "r2" / "cases.html").as_uri()):  # fmt: skip
                page.goto(address)
                assert browsers.overflow(page) == 0, address
                brightness.setdefault(scheme, set()).add(page.evaluate(LIGHTNESS))
            page.goto(f"{server.links['r2']}/3")
            boxes = [place.bounding_box() for place in page.locator("article").all()]
            assert (boxes[0]["y"] == boxes[1]["y"]) == (size == "wide")
            buttons = [place.bounding_box() for place in page.locator(".choices button").all()]
            assert min(box["height"] for box in buttons) >= 40  # pixels, for a finger
    assert max(brightness["light"]) < 80 and min(brightness["dark"]) > 180, brightness  # of the text
