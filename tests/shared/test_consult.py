"""Consult notes: where a note is cut, which are left out, and what is refused."""

from __future__ import annotations

import csv

import pytest

from shared.errors import InputError
from shared.tasks import consult

NOTE = "History: fever.\n1. Assessment\nCulture: E. coli.\n**Assessment**\nGive less."


@pytest.mark.parametrize(
    ("header", "shown", "recommendation"),
    [
        ("", NOTE, ""),
        ("**Assessment**", NOTE[: NOTE.index("**")].strip(), "**Assessment**\nGive less."),
        ("Assessment", NOTE[: NOTE.rindex("Assessment")].strip(), "Assessment**\nGive less."),  # the second of two
        ("*Culture*", NOTE[: NOTE.index("Culture")].strip(), NOTE[NOTE.index("Culture") :]),  # without its asterisks
    ],
)
def test_a_note_is_cut_at_its_header(header, shown, recommendation):
    assert consult.cut(NOTE, header) == (shown, recommendation)


@pytest.mark.parametrize("header", ["Opinion", "e", "*", "**"])
def test_a_header_that_is_not_found_or_everywhere(header):
    assert consult.cut("see, e.g., the reference", header) is None


def write(path, *rows):
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_notes_are_read_and_counted(tmp_path):
    path = write(
        tmp_path / "notes.csv",
        ["id", "note", "header"],
        ["1", NOTE, "**Assessment**"],
        ["2", NOTE, "Opinion"],
        ["3", "Short.", ""],
    )
    notes, left_out = consult.read_notes(path)
    assert [note.id for note in notes] == ["1", "3"] and left_out == 1
    assert notes[0].message == f"{consult.INSTRUCTION}\n\n{notes[0].shown}" and "Give less" not in notes[0].message
    assert consult.read_notes(write(tmp_path / "bare.csv", ["id", "note"], ["1", NOTE]))[0][0].shown == NOTE


def test_a_header_is_read_however_its_column_is_written(tmp_path):
    """Else the model would be shown the recommendation that it is asked for."""
    path = write(tmp_path / "notes.csv", ["ID", "Note", "HEADER "], ["1.0", NOTE, "**Assessment**"])
    [note], _ = consult.read_notes(path)
    assert note.id == "1" and "Give less" not in note.message and "Give less" in note.recommendation


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["id", "note"], ["1", NOTE], [], ["1.0", NOTE]], "row 4: needs an id of its own"),
        ([["id", "text"], ["1", NOTE]], "columns are missing: note"),
        ([["id", "note"], ["1", NOTE], ["1", NOTE]], "row 3: needs an id of its own"),
        ([["id", "note"], ["", NOTE]], "row 2: needs an id"),
        ([["id", "note"], ["1", " "]], "row 2: needs an id of its own and a note"),
        ([["id", "note", "header"], ["1", NOTE, "Opinion"]], "no note is left; 1 do not hold"),
        ([["id", "note"]], "no note is left"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(tmp_path, rows, words):
    with pytest.raises(InputError, match=words) as caught:
        consult.read_notes(write(tmp_path / "notes.csv", *rows))
    assert "\n" not in str(caught.value) and "fever" not in str(caught.value)
