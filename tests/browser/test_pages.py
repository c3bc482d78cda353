"""The pages as a reader sees them: on a desk and on a phone, by day and by night, and with nothing loaded from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.support import browsers, made_up, screenshots
from tests.support.shooting import NAMES, launch

pytestmark = pytest.mark.slow

# Of every text that is seen: its contrast to what is behind it, by WCAG 2's formula.
CONTRASTS = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !parent.getClientRects().length) continue;
    const style = getComputedStyle(parent), svg = parent.closest('svg');
    const pair = [light(channels(svg ? style.fill : style.color)), light(behind(parent))].sort((a, b) => b - a);
    found.push([(pair[0] + 0.05) / (pair[1] + 0.05), walker.currentNode.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""
# Of every plot: texts outside of it, pairs of texts that touch, the smallest text in pixels.
PLOTS = """() => [...document.querySelectorAll('figure svg')].map(svg => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent.trim(), text.getBoundingClientRect()]);
  const outside = texts.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1 ||
    box.top < frame.top - 1 || box.bottom > frame.bottom + 1).map(([text]) => text);
  const touching = [];
  texts.forEach(([one, a], i) => texts.slice(i + 1).forEach(([two, b]) => {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 3) touching.push([one, two]);  // boxes are as high as a line, letters are lower
  }));
  const scale = frame.width / svg.viewBox.baseVal.width;
  const sizes = [...svg.querySelectorAll('text')].map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
  return {alt: svg.getAttribute('aria-label') || '', role: svg.getAttribute('role'), texts: texts.length, outside, touching,
          smallest: Math.min(...sizes)};
})"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return made_up.write_all(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", browsers.SIZES)
@pytest.mark.parametrize(("name", "plots"), [("report", 15), ("evaluation", 5), ("parity", 3)])
def test_a_page_as_it_is_seen(name, plots, size, scheme, pages, browser):
    with browsers.page(browser, size, scheme) as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pages[name].as_uri())
        assert asked == [pages[name].as_uri()]  # one file, and nothing from elsewhere
        assert browsers.overflow(page) == 0
        if size == "phone":  # tables are wider, each in a box of its own
            assert page.evaluate(
                "[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)"
            )
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 100 and [pair for pair in contrasts if pair[0] < 4.5] == []
        found = page.evaluate(PLOTS)
        assert len(found) == plots
        for plot in found:
            assert plot["role"] == "img" and len(plot["alt"]) > 20 and plot["texts"] > 3, plot
            assert plot["outside"] == [] and plot["touching"] == [] and plot["smallest"] > 9, plot
        assert page.evaluate("document.querySelectorAll('img, script, link, iframe').length") == 0
        names = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
        assert len(names) == len(set(names))


def test_both_readings_of_boxes_fit_a_phone(pages, browser):
    with browsers.page(browser, "phone") as page:
        page.goto(pages["evaluation"].as_uri())
        table = page.locator("[aria-label='Boxes, read in two ways']")
        assert table.evaluate("box => box.scrollWidth <= box.clientWidth")
        said = " ".join(table.locator("xpath=..").inner_text().split())
    assert "The letters of the two readings differ in 1,234 of" in said
    assert said.endswith("All other figures of boxes are by the lenient reading.")


def test_plots_follow_the_colours_of_the_page(pages, browser):
    """What is dark by day is light by night; and the two sides of a comparison are never of one colour."""
    colours = {}
    for scheme in ("light", "dark"):
        with browsers.page(browser, "wide", scheme) as page:
            page.goto(pages["report"].as_uri())
            colours[scheme] = page.evaluate(
                "[...document.querySelectorAll('figure svg *')].map(e => getComputedStyle(e).fill)"
                ".filter(c => c !== 'none' && c !== 'rgb(0, 0, 0)')"
            )
    assert len(colours["light"]) == len(colours["dark"]) > 100
    assert set(colours["light"]).isdisjoint(colours["dark"])


def test_a_change_over_few_questions_has_no_colour(pages, browser):
    with browsers.page(browser) as page:
        page.goto(pages["report"].as_uri())
        rows = page.evaluate(
            "[...document.querySelectorAll('[aria-label=\"By section\"] tbody tr')]"
            ".map(row => [row.children[1].textContent, row.children[4].textContent, row.children[4].className])"
        )
    few, many = [row for row in rows if row[0] == "2"], [row for row in rows if row[0] != "2"]
    assert len(few) == 1 and few[0][1] != "+0.0" and few[0][2] == ""
    assert {row[2] for row in many} == {"up"}


def test_the_screenshots_of_the_documentation_are_made_by_one_command(pages, browser, tmp_path):
    assert {name: place for name, (place, _) in screenshots.PAGES.items()} == made_up.PAGES
    ended = launch(f"--workdir={pages['report'].parents[2]}", f"--out={tmp_path / 'shots'}")
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (tmp_path / "shots").iterdir()} == NAMES
    for page in (*screenshots.PAGES, "review"):
        pictures = [Image.open(tmp_path / "shots" / f"{page}-{look}.png") for look in screenshots.LOOKS]
        assert [picture.size for picture in pictures] == [(1300, 900), (390, 844)]
        desk, phone = (np.asarray(picture.convert("L")) for picture in pictures)
        assert desk.mean() > 200 and phone.mean() < 60  # by day, by night
        assert desk.std() > 15 and phone.std() > 15  # something is there
