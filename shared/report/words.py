"""Numbers as text, the same on every page and in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def percent(value: float | None) -> str:
    """`0.1234` as `12.3%`; a dash where it is unknown."""
    return "–" if value is None else f"{100 * value:.1f}%"


def points(value: float | None) -> str:
    """A difference of accuracies, `0.1234` as `+12.3 points`."""
    return "–" if value is None else f"{100 * value:+.1f} points"


def interval(bounds: Sequence[float] | None, form: Callable[[float], str] = percent) -> str:
    """Both bounds of an interval as text, with the unit once; `form` writes a bound."""
    if bounds is None:
        return "no interval"
    low, high = (form(bound) for bound in bounds)
    number = low.removesuffix("%").removesuffix(" points")
    return f"{number} to {high}"


def duration(seconds: float) -> str:
    """A time in seconds, `75` as `1 min 15 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def both_readings(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The figures of an evaluation by both readings of boxes; None where they are not known.

    Where letters were forced, these are the boxes in the reasoning.
    """
    return (summary.get("boxed") or summary).get("readings")


def readings_in_words(readings: Mapping[str, Any]) -> str:
    """Both accuracies, and in how many questions the letters differ (`figures.readings`), as one line."""
    strict, lenient, differ = readings["strict"], readings["lenient"], readings["differ"]
    return (
        f"first box, read strictly: {percent(strict['accuracy'])}; last box, read leniently: {percent(lenient['accuracy'])}; "
        f"the two read another letter in {differ} {'question' if differ == 1 else 'questions'}"
    )
