"""What all pages share: filling a template into one HTML file, and plots with the text that stands for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from shared.report import page_plots, plots
from shared.report.words import duration, interval, percent, points, readings_in_words
from shared.storage import files

TEMPLATES = Path(__file__).parent / "templates"


def write_html(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Fill a template of this package and write the page, whole or not at all.

    Values are escaped. Raises jinja2.UndefinedError where the template needs a value that is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "interval": interval, "duration": duration, "points": points}
    environment.filters |= {"readings": readings_in_words, "section": page_plots.section_name}
    environment.globals["points"] = points
    html = environment.get_template(template).render(values)
    with files.replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def drawn(figure: Figure, alt: str) -> Markup:
    """A plot as SVG for a page; `alt` is the text for readers who do not see it."""
    return Markup(plots.svg(figure, alt))


def listed(what: str, rows: Sequence[page_plots.Row]) -> str:
    """A plot of accuracies in words, for readers who do not see it."""
    return f"{what}: {'; '.join(f'{row.label} {percent(row.value)} ({interval(row.ci)})' for row in rows)}"


def level_rows(summary: Mapping[str, Any]) -> list[page_plots.Row]:
    """The rows of a plot of accuracies for what they are compared with: Bayes ceiling, majority, chance."""
    return [
        page_plots.Row(label, summary[key], None, colour, page_plots.MARKERS[key])
        for key, label, colour, _ in plots.LEVELS
        if summary.get(key) is not None
    ]
