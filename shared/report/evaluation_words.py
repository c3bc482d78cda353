"""The result of an evaluation in words for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.report.words import both_readings, interval, percent, readings_in_words


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    """Accuracy, both readings of boxes where they are known, and who made the answers where no model did."""
    lines = [f"accuracy {percent(summary['accuracy'])} {interval(summary['ci'])} on {summary['n']} questions"]
    if (readings := both_readings(summary)) is not None:
        lines.append(f"boxes    {readings_in_words(readings)}; --answer_rule={summary['answer_rule']} counts")
    if (source := summary["made_elsewhere"]) is not None:
        lines.append(
            f"made     elsewhere, as {source['file']} says (SHA-256 {source['sha256']}); missing: {source['missing']}"
        )
    return lines


def texts_line(summary: Mapping[str, Any]) -> str:
    """How many answers held a letter, and how many were cut off."""
    written = summary["boxed"] or summary  # a forced choice is always an answer in its format
    shares = (
        ("with a letter", written["answered"]),
        ("cut off by the length limit", summary["truncated"]),
        ("with the letter of an option", written["format"]),
    )
    return "texts    " + ", ".join(f"{name} {percent(share)}" for name, share in shares)


def few_answers(summary: Mapping[str, Any]) -> str:
    """The warning where fewer than half of the answers hold a boxed letter, as such an accuracy says little; else empty."""
    written, rule = summary["boxed"] or summary, summary["answer_rule"]
    if written["answered"] >= 0.5:
        return ""
    without = round((1 - written["answered"]) * summary["n"])
    readings, advice = written["readings"], ""
    if readings is not None:
        other_rule, name = ("lenient_last", "lenient") if rule == "strict_first" else ("strict_first", "strict")
        if readings[name]["answered"] > written["answered"]:
            advice = f"--answer_rule={other_rule} finds more; "
    advice += (
        "read some of them with --completions; raise --max_new_tokens where many are cut off"
        if summary["made_elsewhere"] is None
        else "the text must hold the letter in a box, \\boxed{A}; where a program predicted a letter, write it so into completion"
    )
    return (
        f"warning: {without} of {summary['n']} answers hold no boxed letter by --answer_rule={rule} and count as wrong; "
        f"{advice} (docs/evaluation.md)"
    )
