"""Each `spec: NAME, ITEM` in code, comments, tests and documents names an item that docs/spec/NAME.md has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "docs" / "spec"
FOLDERS = (
    "creason_jax", "creason_torch", "shared", "parity", "launch", "configs", "benchmarks", "tests", "docs",
)  # fmt: skip
FAULTS = "g"  # the section of registry.md whose lines are called quirks

ITEM = r"(?:[a-z](?:\.\d+)?|\d+(?:\.\d+)?)"
CITATION = re.compile(
    rf"\bspec: (\w+)\b(?![[(])((?:,? and|,? to|,)? (?:sections? |steps? |quirks? |{FAULTS} )?{ITEM}\b)*", re.IGNORECASE
)
PART = re.compile(rf"(and|to|,)? (sections? |steps? |quirks? |{FAULTS} )?({ITEM})\b", re.IGNORECASE)
QUIRKS = re.compile(r"\bquirks? (\d+)(?:,? (to|and) (\d+))?", re.IGNORECASE)


def items(text: str) -> set[str]:
    """What can be cited of a document: its lettered or numbered sections, and numbered steps and table lines in them."""
    found, section = set(), ""
    for line in text.split("\n"):
        heading = re.match(rf"#+ ({ITEM})[. ]", line)
        step = re.match(r"(\d+)\. |\| (\d+) \|", line)
        if heading:
            section = heading[1]
            found.add(section)
        elif step and section:
            found.add(f"{section}.{step[1] or step[2]}")
    return found


def cited(text: str) -> list[tuple[str, str]]:
    """Document and item of each citation in a text; the item is "" where only the document is named."""
    found = []
    text = re.sub(r"\s*\n\s*(#\s*)?", " ", text)
    for citation in CITATION.finditer(text):
        name = citation[1].lower()
        found.append((name, ""))
        section, last = "", ""
        for joint, kind, item in PART.findall(citation[0].partition(citation[1])[2]):
            if kind.strip().lower().rstrip("s") in ("quirk", FAULTS):
                section = FAULTS
            if item.isdigit() and section:
                item = f"{section}.{item}"
            elif not item[0].isdigit():
                section = item
            found += [(name, each) for each in (between(last, item) if joint == "to" else [item])]
            last = item
    for first, joint, second in QUIRKS.findall(text):
        numbers = range(int(first), int(second) + 1) if joint == "to" else filter(None, (first, second))
        found += [("registry", f"{FAULTS}.{number}") for number in numbers]
    return found


def between(first: str, last: str) -> list[str]:
    """The items after `first` up to `last`."""
    if last.isalpha():
        return [chr(code) for code in range(ord(first) + 1, ord(last) + 1)]
    stem, _, end = last.rpartition(".")
    begin = int(first.rpartition(".")[2])
    return [f"{stem}.{number}".lstrip(".") for number in range(begin + 1, int(end) + 1)]


DOCUMENTS = {path.stem: items(path.read_text(encoding="utf-8")) | {""} for path in SPEC.glob("*.md")}


def unknown(text: str) -> list[tuple[str, str]]:
    """Citations of a text that lead nowhere."""
    return [(name, item) for name, item in cited(text) if item not in DOCUMENTS.get(name, set())]


def files() -> list[Path]:
    found = [path for folder in FOLDERS for kind in ("py", "md", "sql") for path in (ROOT / folder).rglob(f"*.{kind}")]
    return [*found, ROOT / "README.md", ROOT / "pyproject.toml", ROOT / "Makefile"]


def test_every_citation_names_an_item_of_its_document():
    citations = 0
    for path in files():
        if path != Path(__file__).resolve():
            text = path.read_text(encoding="utf-8")
            citations += sum(item != "" for _, item in cited(text))
            assert unknown(text) == [], path.relative_to(ROOT)
    assert citations > 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(spec: registry, a.1, 16)", ["a.1", "a.1.16"]),
        ("Spec: registry, a.1, steps 1 to 4, 6 and 11. More", ["a.1", *(f"a.1.{n}" for n in (1, 2, 3, 4, 6, 11))]),
        ("(spec: registry, g 29)", ["g.29"]),
        ("(spec: registry, quirks 11 and 32): only", ["g.11", "g.32", "g.11", "g.32"]),
        ("# mended (quirks 5\n    # to 7)", ["g.5", "g.6", "g.7"]),
        ("mended (quirks 5 to 7)", ["g.5", "g.6", "g.7"]),
        ("(spec: registry, b to d): what", ["b", "c", "d"]),
        ("(spec: registry, section c).", ["c"]),
        ("(spec: registry, d, mended)", ["d"]),
        ("(spec: grpo, sections 2 and 4)", ["2", "4"]),
        ("(spec: grpo,\n    section 1).", ["1"]),
        ("(spec: mimic3, 8.4 to 8.6)", ["8.4", "8.5", "8.6"]),
        ("(Spec: mimic3, 11.3, 11.4).", ["11.3", "11.4"]),
        ("(docs/mimic3.md; spec: mimic3).", []),
    ],
)
def test_citations_are_read(text, expected):
    assert [item for _, item in cited(text) if item] == expected


@pytest.mark.parametrize(
    "text",
    ["spec: registry, a.1, 17", "spec: registry, g 41", "spec: mimic3, 8.9", "spec: grpo, section 6", "spec: reward",
     "spec: registry, a.1, steps 15 to 18", "quirk 44", "spec: registry, i", "spec: mimic3, 9.7"],
)  # fmt: skip
def test_a_citation_of_nothing_is_found(text):
    assert unknown(text)


def test_the_documents_have_what_they_had():
    """Sections, steps and lines that were numbered stay so: later text may cite any of them."""
    registry = {*"abcdefgh", *(f"a.{n}" for n in range(1, 6)), *(f"a.1.{n}" for n in range(1, 17))}
    registry |= {f"b.{n}" for n in range(1, 7)} | {f"c.{n}" for n in range(1, 7)} | {f"g.{n}" for n in range(1, 41)}
    mimic3 = {f"{n}" for n in range(1, 14)} | {f"2.{n}" for n in range(1, 16)} | {f"9.{n}" for n in range(1, 7)}
    for section, last in ((6, 9), (7, 5), (8, 8), (11, 5), (13, 6)):
        mimic3 |= {f"{section}.{n}" for n in range(1, last + 1)}
    grpo = {f"{n}" for n in range(1, 6)} | {f"5.{n}" for n in range(1, 8)}
    for name, expected in {"registry": registry, "mimic3": mimic3, "grpo": grpo}.items():
        assert expected <= DOCUMENTS[name], name
