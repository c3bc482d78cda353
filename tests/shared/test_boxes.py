"""Both readings of boxes, by a table and by any text that somebody may write."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.questions.boxes import LETTERS, LONGEST, RULES, answer_letter, answer_part, lenient_last, strict_first

# (text, strict, lenient) with five options shown.
TABLE = [
    (r"so \boxed{C}.", "C", "C"),
    (r"$\boxed{B}$", "B", "B"),
    (r"\boxed{A} or rather \boxed{B}", "A", "B"),
    (r"\boxed{\text{B}}", "", "B"),
    (r"\boxed{\mathbf{B}}", "", "B"),
    (r"\boxed{\textbf{ (b) }}", "", "B"),
    (r"\boxed{\bf B}", "", "B"),
    (r"\boxed{\, B \;}", "", "B"),
    (r"\boxed{ B }", "", "B"),
    ("\\boxed{\n B\n}", "", "B"),
    (r"\boxed{B.}", "", "B"),
    (r"\boxed{(B)}", "", "B"),
    (r"\boxed{$B$}", "", "B"),
    (r"\boxed{**B**}", "", "B"),
    (r"\boxed{b}", "", "B"),
    (r"\boxed {B}", "", "B"),
    (r"\boxed{\boxed{B}}", "B", "B"),
    (r"\fbox{B}", "", "B"),
    (r"\boxed B", "", "B"),
    (r"\boxed B.", "", "B"),
    # No letter, or more than one.
    ("", "", ""),
    ("B", "", ""),
    ("boxed{A}", "", ""),
    (r"\boxed{}", "", ""),
    (r"\boxed{B", "", ""),
    (r"\boxed{A, B}", "", ""),
    (r"\boxed{AB}", "", ""),
    (r"\boxed{2.4}", "", ""),
    (r"\boxed{not B}", "", ""),
    (r"\boxed{-B}", "", ""),
    (r"\boxed{E. coli}", "", ""),
    (r"\boxed{Vitamin C}", "", ""),
    (r"\boxed{\alpha B}", "", ""),
    (r"\boxed{\textdegree B}", "", ""),
    (r"\boxed a patient", "", ""),
    (r"\boxed All", "", ""),
    (r"\boxedB", "", ""),
    (r"\boxedtext{B}", "", ""),
    # What holds no single letter is passed over; a letter that is none of the options is no answer.
    (r"\boxed{B}, that is \boxed{2.4}", "B", "B"),
    (r"\boxed{B}: put it within \boxed{}", "B", "B"),
    (r"\boxed{F} then \boxed{E}", "E", "E"),
    (r"\boxed{E} then \boxed{F}", "E", ""),
    # Reasoning.
    (r"<think>\boxed{A}</think>\boxed{B}", "A", "B"),
    (r"\boxed{A}</think>\boxed{B}", "A", "B"),
    (r"<think>\boxed{A}</think>", "A", ""),
    (r"<think>\boxed{A}", "A", ""),
    (r"\boxed{A}<think>\boxed{B}", "A", "A"),
    (r"</think>\boxed{A}<think>\boxed{B}", "A", "A"),
    (r"<think>a</think>\boxed{A}<think>b</think>\boxed{C}", "A", "C"),
]


@pytest.mark.parametrize(("text", "strict", "lenient"), TABLE)
def test_both_readings(text, strict, lenient):
    assert (strict_first(text), lenient_last(text)) == (strict, lenient)
    assert [answer_letter(text, rule) for rule in RULES] == [strict, lenient]


@pytest.mark.parametrize("options", [2, 3, 4, 5])
def test_a_letter_beyond_the_options_shown_is_no_answer(options):
    for place, letter in enumerate(LETTERS):
        wanted = letter if place < options else ""
        assert answer_letter(rf"\boxed{{\text{{{letter}}}}}", "lenient_last", options=options) == wanted
        assert answer_letter(rf"\boxed{{{letter}}}", options=options) == letter  # the paper's rule knows no options


def test_a_text_that_begins_inside_the_reasoning_has_no_answer_before_its_end():
    assert lenient_last(r"\boxed{A}", thinking=True) == ""
    assert lenient_last(r"\boxed{A}</think> \boxed{B}", thinking=True) == "B"
    assert answer_part("a", thinking=True) == "" and answer_part("a") == "a"


PIECES = st.sampled_from([
    r"\boxed", r"\fbox", "{", "}", r"\text", r"\mathbf", "(", ")", " ", "\n", "B", "f", ".", "$", "<think>",
    "</think>", "\\", "é",
])  # fmt: skip


@settings(deadline=None)
@given(pieces=st.lists(PIECES, max_size=40), options=st.integers(2, 5))
def test_whatever_is_written_gives_one_of_the_options_or_nothing(pieces, options):
    text = "".join(pieces)
    assert lenient_last(text, options) in ("", *LETTERS[:options])
    assert strict_first(text) in ("", *LETTERS)
    closed = rf"{text}</think>\boxed{{A}}"
    assert lenient_last(closed, options) == "A"  # nothing before it matters
    # Blanks around the letter and a typeface change nothing.
    assert lenient_last(rf"{text}</think>\boxed{{ \text{{(a).}} }}", options) == "A"


@settings(deadline=None, max_examples=50)
@given(pieces=st.lists(PIECES, min_size=1, max_size=8), box=st.booleans())
def test_any_text_of_100000_characters_is_read_in_time_linear_in_it(pieces, box):
    """Whatever is repeated: where a rule tried again from every place, this took minutes."""
    piece = "".join(pieces)
    text = (r"\boxed{" if box else "") + piece * (100_000 // len(piece))
    begin = time.process_time()
    found = [answer_letter(text, rule) for rule in RULES]
    assert time.process_time() - begin < 2
    assert all(letter in ("", *LETTERS) for letter in found)


def test_a_box_is_read_up_to_its_longest_content():
    assert lenient_last(r"\boxed{" + " " * (LONGEST - 3) + "B}") == "B"
    assert lenient_last(r"\boxed{" + " " * LONGEST + "B}") == ""
