"""Answers from a file: what each of its rows may say, and the one line about a row that is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from shared.errors import InputError
from shared.evaluation import binary
from shared.evaluation.figures import summarise
from shared.evaluation.given_answers import Given
from tests.support.exam import exam

QUESTIONS = exam(3)  # right are A, B, C
LINES = [{"id": q.id, "completion": rf"\boxed{{{q.answer}}}"} for q in QUESTIONS]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def with_field(name, *values):
    return [{**line, name: value} for line, value in zip(LINES, values, strict=True)]


def test_completions_become_answers_and_the_file_is_remembered(tmp_path):
    rows = [{**LINES[2], "question": "not read"}, LINES[0], {**LINES[1], "completion": r"\boxed{A} no \boxed{ b }"}]
    path = write(tmp_path / "a.jsonl", ["\ufeff", *rows, "\n"])
    given = Given(path, QUESTIONS)
    for rule, right in (("strict_first", [True, False, True]), ("lenient_last", [True, True, True])):
        answers = given.answers(QUESTIONS, rule)
        assert [answer.question_id for answer in answers] == [question.id for question in QUESTIONS]
        assert [answer.correct for answer in answers] == right
        assert {(answer.tokens, answer.truncated, answer.probabilities) for answer in answers} == {(None, None, ())}
        found = summarise(QUESTIONS, answers, bootstrap=100, seed=1)
        assert (found["mean_tokens"], found["truncated"]) == (None, None)  # nothing is made up
        assert found["readings"]["differ"] == 1
        assert (found["readings"]["strict"]["accuracy"], found["readings"]["lenient"]["accuracy"]) == (
            pytest.approx(2 / 3),
            1,
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert given.described() == {"file": "a.jsonl", "sha256": digest, "completions": 3, "samples": 1, "missing": 0}


def test_lengths_cuts_and_reasoning_are_taken_where_they_are_said(tmp_path):
    rows = [
        {**line, "tokens": tokens, "truncated": cut, "thinking": thinking}
        for line, tokens, cut, thinking in zip(
            LINES, (3, 5, 7), (False, True, False), (False, True, False), strict=True
        )
    ]
    answers = Given(write(tmp_path / "a.jsonl", rows), QUESTIONS).answers(QUESTIONS, "lenient_last")
    assert [(answer.tokens, answer.truncated, answer.predicted) for answer in answers] == [
        (3, False, "A"), (5, True, ""), (7, False, "C"),
    ]  # fmt: skip
    found = summarise(QUESTIONS, answers, bootstrap=100, seed=1)
    assert (found["mean_tokens"], found["truncated"]) == (5, pytest.approx(1 / 3))


def test_parquet_says_the_same(tmp_path):
    lines = [{**line, "tokens": 3, "truncated": True, "thinking": False} for line in LINES]
    pd.DataFrame(lines).to_parquet(tmp_path / "a.parquet")
    expected = Given(write(tmp_path / "a.jsonl", lines), QUESTIONS).answers(QUESTIONS, "strict_first")
    assert Given(tmp_path / "a.parquet", QUESTIONS).answers(QUESTIONS, "strict_first") == expected
    pd.DataFrame([*lines, {**lines[0], "id": "x"}]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match="b.parquet, row 4: its id is not one of the 3 questions"):
        Given(tmp_path / "b.parquet", QUESTIONS)
    pd.DataFrame([{"id": "a"}]).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match="these columns are missing: completion"):
        Given(tmp_path / "c.parquet", QUESTIONS)


def test_several_completions_of_a_question_vote(tmp_path):
    texts = {0: "ABB", 1: "BBB", 2: "C.C"}
    rows = [
        {"id": QUESTIONS[number].id, "completion": rf"\boxed{{{letter}}}", "tokens": 2}
        for number, letters in texts.items()
        for letter in letters
    ]
    path = write(tmp_path / "a.jsonl", rows)
    answers = Given(path, QUESTIONS, samples=3).answers(QUESTIONS, "strict_first")
    assert [answer.predicted for answer in answers] == ["B", "B", "C"]
    assert answers[0].probabilities == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    with pytest.raises(
        InputError, match=r"a.jsonl, line 2: answers the question of line 1 again, and differs; .* --samples"
    ):
        Given(path, QUESTIONS)
    with pytest.raises(
        InputError, match="line 3: the last of 3 completions of its question, and --samples says 2 of each"
    ):
        Given(path, QUESTIONS, samples=2)


def test_probabilities_are_those_of_the_options(tmp_path):
    asked = [dataclasses.replace(q, choices=("yes", "no"), answer="AB"[n % 2]) for n, q in enumerate(QUESTIONS)]
    rows = with_field("probabilities", [0.75, 0.25], [0, 1], [0.5, 0.5])
    given = Given(write(tmp_path / "a.jsonl", rows[:2]), asked, allow_missing=True)
    answers = given.answers(asked, "strict_first")
    assert [answer.probabilities for answer in answers] == [(0.75, 0.25), (0.0, 1.0), (0.5, 0.5)]
    truth, scores, _ = binary.labels_and_scores(asked, [answer.probabilities for answer in answers])
    assert (truth.tolist(), scores.tolist()) == ([True, False, True], [0.75, 0, 0.5])
    for wrong in ([0.5, 0.4], [1], [1.5, -0.5], [True, False], ["a", "b"], [None, 1]):
        with pytest.raises(InputError, match="line 1: probabilities must be 2 numbers, one for each option"):
            Given(write(tmp_path / "b.jsonl", [{**rows[0], "probabilities": wrong}]), asked)
    with pytest.raises(InputError, match="line 1: probabilities cannot go with --samples"):
        Given(write(tmp_path / "b.jsonl", [*rows, *rows]), asked, samples=2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([LINES[0], "{\n"], "line 2: not JSON"),
        ([LINES[0], LINES[1], "\n", "nonsense\n"], "line 4: not JSON"),
        (["[" * 100_000], "line 1: not JSON"),
        ([LINES[0], [1]], "line 2: must be a JSON object with id and completion"),
        ([LINES[0], {"id": "question-1"}], "line 2: has no completion"),
        ([{"completion": "x"}], "line 1: has no id"),
        ([{"id": 3, "completion": "x"}], "line 1: id must be a text"),
        ([{"id": "question-1", "completion": ["x"]}], "line 1: completion must be a text"),
        (with_field("tokens", 1.5, 2, 3), "line 1: tokens must be a whole number"),
        (with_field("tokens", 1, True, 3), "line 2: tokens must be a whole number"),
        (with_field("tokens", 1, -1, 3), "line 2: tokens must be at least 0"),
        (with_field("truncated", True, False, "no"), "line 3: truncated must be true or false"),
        (
            with_field("truncated", True, False, None),
            "line 3: truncated stands here and not in line 1, or the other way",
        ),
        (
            [*LINES, {"id": "question-7", "completion": "x"}],
            "line 4: its id is not one of the 3 questions that are asked",
        ),
        ([*LINES, {**LINES[1], "completion": "x"}], "line 4: answers the question of line 2 again, and differs"),
        (LINES[1:], "answers none of 1 of the 3 questions, the first of them number 1; give them, or --allow_missing"),
        ([], "answers none of 3 of the 3 questions"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_where_and_never_what(rows, message, tmp_path):
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError) as caught:
        Given(path, QUESTIONS)
    text = str(caught.value)
    assert text.startswith(f"{path}") and message in text and "\n" not in text
    assert "question-7" not in text and "nonsense" not in text


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "\xff"}\n')
    for name, message in (
        ("a.jsonl", "line 1: not UTF-8"),
        ("none.jsonl", "no such file of answers"),
        ("a.csv", "answers must be lines of JSON"),
    ):
        with pytest.raises(InputError, match=message):
            Given(tmp_path / name, QUESTIONS)
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        Given(tmp_path / "a.parquet", QUESTIONS)


def test_a_line_that_is_said_again_word_for_word_counts_once(tmp_path):
    given = Given(write(tmp_path / "a.jsonl", [*LINES, LINES[1]]), QUESTIONS)
    assert (given.repeated, given.described()["completions"]) == (1, 3)
    assert Given(write(tmp_path / "b.jsonl", [*LINES, *LINES]), QUESTIONS, samples=2).repeated == 0


def test_missing_answers_count_as_none_only_where_that_is_asked_for(tmp_path):
    given = Given(write(tmp_path / "a.jsonl", with_field("tokens", 2, 4, 6)[:2]), QUESTIONS, allow_missing=True)
    answers = given.answers(QUESTIONS, "strict_first")
    assert [answer.predicted for answer in answers] == ["A", "B", ""] and given.missing == 1
    found = summarise(QUESTIONS, answers, bootstrap=100, seed=1)
    assert (found["answered"], found["mean_tokens"], found["readings"]["differ"]) == (pytest.approx(2 / 3), 3, 0)
