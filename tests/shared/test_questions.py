"""Question files, and the order of training that is a function of one integer."""

from __future__ import annotations

import dataclasses
import stat
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InputError
from shared.questions.record import COLUMNS, LETTERS, Question, question_at, read_questions, write_questions
from shared.randomness import generator, uniforms
from tests.support.exam import numbered

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@st.composite
def a_question(draw) -> Question:
    choices = draw(st.lists(TEXT, min_size=2, max_size=5))
    letters = LETTERS[: len(choices)]
    known = draw(st.booleans())
    return Question(
        id=draw(TEXT),
        cohort="synthetic",
        task="denoising",
        feature=draw(TEXT),
        section=draw(TEXT),
        patient=draw(TEXT),
        context=draw(TEXT),
        question=draw(TEXT),
        choices=tuple(choices),
        answer=draw(st.sampled_from(letters)),
        majority=draw(st.sampled_from(letters)),
        bayes_accuracy=draw(st.floats(0, 1)) if known else None,
        bayes_answer=draw(st.sampled_from(letters)) if known else None,
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(a_question(), max_size=5))
def test_what_is_written_is_read(questions):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "questions.parquet"
        write_questions(path, questions)
        assert read_questions(path) == questions


def test_a_file_says_of_no_kind_that_it_holds_choices(tmp_path):
    """As the files of earlier versions; a file made elsewhere may say it."""
    path = tmp_path / "questions.parquet"
    write_questions(path, numbered(2))
    assert "kind" not in pd.read_parquet(path).columns
    assert [question.kind for question in read_questions(path)] == ["choice", "choice"]
    pd.read_parquet(path).assign(kind="choice").to_parquet(path)
    assert read_questions(path) == numbered(2)


def test_a_kind_that_is_not_known_is_refused():
    with pytest.raises(InputError, match="question q0: kind 'text' is not known; there is choice"):
        dataclasses.replace(numbered(1)[0], kind="text")


def test_question_files_are_their_owners_alone(tmp_path):
    path = tmp_path / "questions.parquet"
    write_questions(path, numbered(2))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    write_questions(path, numbered(3))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_questions(path)) == 3
    assert [item.name for item in tmp_path.iterdir()] == ["questions.parquet"]


class TestNotAQuestionFile:
    """Whatever is given instead is named in one line."""

    def refused(self, path: Path) -> str:
        with pytest.raises(InputError) as caught:
            read_questions(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message

    def test_missing(self, tmp_path):
        assert "no such question file" in self.refused(tmp_path / "none.parquet")
        assert "no such question file" in self.refused(tmp_path)

    def test_not_parquet(self, tmp_path):
        path = tmp_path / "questions.parquet"
        for content in (b"", b"id,context\n1,2\n", b"PAR1" + bytes(100)):
            path.write_bytes(content)
            assert "not a readable Parquet file" in self.refused(path)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_truncated(self, tmp_path, share):
        path = tmp_path / "questions.parquet"
        write_questions(path, numbered(50))
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "not a readable Parquet file" in self.refused(path)

    def test_another_table(self, tmp_path):
        path = tmp_path / "answers.parquet"
        pd.DataFrame({"id": ["a"], "context": ["b"]}).to_parquet(path)
        message = self.refused(path)
        assert "not a question store, these columns are missing: cohort, task" in message
        assert not any(f" {name}," in f"{message}," for name in ("id", "context"))

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            ("choices", ["only"], "1 choices; 2 to 5 are possible"),
            ("choices", list("abcdef"), "6 choices; 2 to 5 are possible"),
            ("choices", None, "choices"),
            ("choices", "ab", "choices"),
            ("answer", "C", "answer 'C' is not one of its 2 letters"),
            ("answer", "", "answer '' is not one of its 2 letters"),
            ("answer", "AB", "answer 'AB' is not one of its 2 letters"),
            ("context", None, "context"),
            ("kind", None, "kind is empty in some rows"),
            ("kind", "number", "question q1: kind 'number' is not known; there is choice"),
        ],
    )
    def test_a_row_that_is_no_question(self, tmp_path, column, value, reason):
        path = tmp_path / "questions.parquet"
        rows = [dataclasses.asdict(question) | {"choices": list(question.choices)} for question in numbered(2)]
        rows[1][column] = value
        if column == "choices" and isinstance(value, str):
            rows[0][column] = value  # a column has one type
        pd.DataFrame(rows, columns=COLUMNS).to_parquet(path)
        assert reason in self.refused(path)


def test_chance_is_one_over_the_options_shown():
    assert dataclasses.replace(numbered(1)[0], choices=("1", "2", "3", "4")).chance == 0.25


class TestOrder:
    """One integer says where training is."""

    @given(st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 3))
    def test_each_epoch_is_a_permutation(self, size, seed, epoch):
        questions = numbered(size)
        seen = [question_at(questions, seed, epoch * size + index).id for index in range(size)]
        assert sorted(seen) == sorted(question.id for question in questions)

    @given(st.integers(2, 30), st.integers(0, 1_000), st.lists(st.integers(0, 200), min_size=1, max_size=8))
    def test_a_position_alone_decides(self, size, seed, positions):
        questions = numbered(size)
        in_order = [question_at(questions, seed, position).id for position in range(201)]
        assert [question_at(questions, seed, position).id for position in positions] == [
            in_order[position] for position in positions
        ]

    def test_depends_on_seed_and_epoch(self):
        questions = numbered(100)

        def order(seed: int, epoch: int) -> list[str]:
            return [question_at(questions, seed, 100 * epoch + index).id for index in range(100)]

        assert order(1, 0) == order(1, 0)
        assert order(1, 0) != order(2, 0)
        assert order(1, 0) != order(1, 1)
        assert order(1, 0) != [question.id for question in questions]

    def test_does_not_depend_on_the_questions(self):
        ours, theirs = numbered(20), [dataclasses.replace(q, id=f"x{q.id}") for q in numbered(20)]
        for position in range(20):
            assert question_at(theirs, 5, position).id == "x" + question_at(ours, 5, position).id


class TestRandomness:
    """Numbers that depend on their key alone."""

    def test_a_key_is_a_draw(self):
        assert np.array_equal(uniforms(8, 1, "sample", 2), uniforms(8, 1, "sample", 2))
        keys = [
            (1, "sample", 2),
            (1, "sample", 3),
            (2, "sample", 2),
            (1, "order", 2),
            (1, "sample", "2"),
            (1, "sample"),
        ]
        draws = {uniforms(4, *key).tobytes() for key in keys}
        assert len(draws) == len(keys)

    def test_parts_of_a_key_do_not_run_together(self):
        assert uniforms(4, 1, 12).tobytes() != uniforms(4, 11, 2).tobytes()
        assert uniforms(4, "a", "b").tobytes() != uniforms(4, "ab").tobytes()
        assert uniforms(4, "a', 'b").tobytes() != uniforms(4, "a", "b").tobytes()

    def test_a_longer_draw_begins_as_a_shorter_one(self):
        """So that a completion's first tokens do not depend on the length limit."""
        assert np.array_equal(uniforms(100, 7, "x")[:10], uniforms(10, 7, "x"))

    def test_uniform_in_the_half_open_interval(self):
        draws = uniforms(200_000, 3)
        assert draws.dtype == np.float32
        assert 0 <= draws.min() and draws.max() < 1
        assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(draws))

    def test_values_never_change(self):
        """Resuming a run of an earlier version needs the same numbers; NumPy keeps a bit generator's stream."""
        assert generator(42, "order", 0).integers(1_000_000, size=3).tolist() == [304507, 604991, 297292]
