"""Figures of pages: text that stays text, colours of the page, labels that fit."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from shared.report import page_plots, plots

STYLE_SHEET = (Path(plots.__file__).parent / "templates" / "style.css").read_text()
ROWS = [page_plots.Row("this <model> & $more$", 0.5, (0.4, 0.6)), page_plots.Row("chance", 0.25)]


def test_text_is_as_it_was_given_and_colours_are_names_of_the_style_sheet():
    drawn = plots.svg(page_plots.accuracies(ROWS), 'a "figure"')
    root = ElementTree.fromstring(drawn.replace("xlink:href", "href"))
    texts = ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "this <model> & $more$" in texts and "50.0%" in texts and "25.0%" in texts
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == 'a "figure"'
    assert "<style" not in drawn and not re.search(r'<g id="', drawn)
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn))
    names = {re.fullmatch(r"var\(--([a-z]+), (#[0-9a-f]{6})\)", colour)[1] for colour in colours - {"none"}}
    assert {"ink", "after", "grid"} <= names <= set(plots.COLOURS)


def test_the_style_sheet_has_each_colour_by_day_as_on_paper_and_another_by_night():
    day, night = STYLE_SHEET.split("@media (prefers-color-scheme: dark)")[:2]
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    for name, colour in plots.COLOURS.items():
        assert f"--{name}: {colour};" in day
        other = re.search(rf"--{name}: (#[0-9a-f]{{6}});", night)
        assert other and other[1] != colour


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("", []),
        ("one two " * 8, ["one two one two one two one two one two one two", "one two one two"]),
        ("x" * 60, ["x" * 48, "x" * 12]),
        ("값" * 30, ["값" * 26, "값" * 4]),
        ("$5 and $6", [r"\$5 and \$6"]),
    ],
)
def test_long_labels_take_several_lines(text, lines):
    assert page_plots.wrapped(text, page_plots.SMALL) == lines


def test_the_parts_of_a_section_are_apart():
    assert page_plots.section_name("[Vital signs/SOFA score]") == "Vital signs / SOFA score"
    assert page_plots.section_name("Person") == "Person"
