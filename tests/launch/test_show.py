"""`creason show`, and how a preparation ends: questions in full on the terminal of whoever asks for them, and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import shutil
import sys

import pytest

from launch import app
from shared.errors import InputError
from shared.questions.record import LETTERS, Question, read_questions, write_questions
from shared.runs import showing
from shared.runs.showing import Selection
from shared.storage import files
from shared.tasks.prompts import user_message
from tests.support.commands import REPOSITORY, environment, here
from tests.support.exam import exam

ANSWERED = "Lactate is high.\n\\boxed{B}"


@pytest.fixture
def call(monkeypatch, capfd):
    return lambda program, *arguments: here(program, *arguments, monkeypatch=monkeypatch, capfd=capfd)


@pytest.fixture
def questions(tmp_path) -> tuple[str, list[Question]]:
    made = [dataclasses.replace(each, section=f"[Part {index % 2}]") for index, each in enumerate(exam(12))]
    write_questions(tmp_path / "exam.parquet", made)
    return str(tmp_path / "exam.parquet"), made


def joined(text: str) -> str:
    """Text as it was before it was wrapped."""
    return text.replace("\n    ", " ")


class TestQuestions:
    def test_all_of_a_question_is_shown(self, questions, call):
        path, made = questions
        ended = call("show", f"--questions={path}", "--n=12")
        assert ended.code == 0 and ended.err == ""
        for number, question in enumerate(made, 1):
            assert f"=== question {number} of 12 ===" in ended.out
            right = f"{question.answer}. {question.choices[LETTERS.index(question.answer)]}"
            expected = f"{user_message(question)}\n\nright answer: {right}\nmost frequent: A. Lung\n"
            assert expected in joined(ended.out)

    def test_a_seed_draws_the_same_and_another_others(self, questions, call):
        path, made = questions
        shown = [call("show", f"--questions={path}", "--n=2", f"--seed={seed}").out for seed in (0, 0, 1, 2)]
        assert shown[0] == shown[1] and len(set(shown)) > 1
        assert all(text.count("right answer:") == 2 for text in shown)
        assert shown[0].endswith("\nshown 2 of 12 questions; --n shows more, --seed others\n")
        assert call("show", f"--questions={path}").out.count("right answer:") == 3
        assert sum(f"{question.id}:" in shown[0] for question in made) == 2

    def test_one_feature_or_section_of_several_files(self, questions, call, tmp_path):
        path, _ = questions
        write_questions(tmp_path / "more.parquet", exam(3, start=12))
        both = f"--questions={path},{tmp_path / 'more.parquet'}"
        found = call("show", both, "--n=50", "--feature=FEATURE-1").out
        assert found.count(": asks for feature-1, ") == found.count("right answer:") == 5
        found = call("show", both, "--n=50", "--section=part 0").out
        assert found.count("right answer:") == found.count(", [Part 0]") == 6

    def test_what_is_not_there_ends_with_one_line(self, questions, call, tmp_path):
        path, _ = questions
        for arguments, wanted in {
            (f"--questions={path}", "--feature=featur-1"): "asks for it; did you mean feature-1 or ",
            (
                f"--questions={path}",
                "--feature=age",
            ): "--feature=age: no question asks for it; there are 3: feature-0, ",
            (f"--questions={path}", "--section=[Prat 0]"): "no question is from there; did you mean [Part 0]",
            (
                f"--questions={path}",
                "--feature=feature-1",
                "--section=none",
            ): "--section=none: no question is from there",
            (f"--questions={tmp_path / 'no.parquet'}",): "no such question file; write one with `creason prepare`",
            (f"--questions={path}", "--step=1"): "--step: goes with --workdir",
            (f"--questions={path}", "--workdir=x"): "one of the two",
            (): "give --questions=FILE or --workdir=RUN",
            ("--workdir=none",): "--workdir=none: holds no run; give the --workdir of `creason train`",
            (f"--questions={path}", "--n=0"): "flag --n=0",
        }.items():
            ended = call("show", *arguments)
            assert wanted in ended.refusal, arguments
            assert ended.out == ""

    def test_a_feature_and_a_section_that_never_meet(self):
        made = [dataclasses.replace(each, section=f"[Part {index % 3}]") for index, each in enumerate(exam(6))]
        with pytest.raises(InputError, match="--feature=feature-1 --section=part 0: no question is both"):
            Selection(count=1, feature="feature-1", section="part 0").of(made)


def test_lines_are_wrapped_and_lose_nothing():
    (question,) = exam(1)
    record = f"Note: {'a long word and ' * 20}end\n  indented: 2\n{'x' * 70}"
    lines = showing.question_lines(dataclasses.replace(question, context=record), 40)
    assert max(map(len, lines)) <= 40
    assert record.replace("\n", "").replace(" ", "") in "".join(lines).replace(" ", "")
    assert "  indented: 2" in lines


def test_what_a_terminal_would_obey_is_shown_as_a_sign():
    said = showing.example_lines("Ask.", "A", {"": "\x1b[2Jgone\r\x07 \x9b1m tab"}, 80)
    assert list(said)[-1] == "\u241b[2Jgone\u240d\u2407 \ufffd1m tab"


def test_questions_by_section_are_counted():
    made = [dataclasses.replace(each, section=section) for each, section in zip(exam(3), ("[B]", "", "[B]"))]
    assert showing.section_counts({"train": made, "valid": made[:1]}) == [
        "section           train      valid",
        "[B]                   2          1",
        "(no section)          1          0",
    ]


class TestAnswers:
    """Of an evaluation that kept its texts, and of a run's examples; recorded steps: test_replay.py."""

    def test_an_evaluation(self, tmp_path, call):
        rows = [
            {
                "id": each.id,
                "question": user_message(each),
                "completion": ANSWERED,
                "answer": each.answer,
                "predicted": "B",
            }
            for each in exam(2)
        ]
        (tmp_path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        ended = call("show", f"--workdir={tmp_path}")
        assert ended.code == 0 and ended.err == ""
        assert f"right answer: A\n\n--- answered B, wrong\n{ANSWERED}\n" in ended.out
        assert f"right answer: B\n\n--- answered B, right\n{ANSWERED}\n" in ended.out
        assert "so its features are unknown" in call("show", f"--workdir={tmp_path}", "--feature=x").refusal
        (tmp_path / "completions.jsonl").write_text('{"id": 1}\n')
        assert "completions.jsonl, line 1" in call("show", f"--workdir={tmp_path}").refusal

    def test_a_run_before_it_has_anything(self, tmp_path, call):
        files.write_json(tmp_path / "config.json", {"name": "begun"})
        assert "nothing to show yet" in call("show", f"--workdir={tmp_path}").refusal
        assert (
            "holds no trajectories; a run writes them with" in call("show", f"--workdir={tmp_path}", "--step=0").refusal
        )
        files.write_json(tmp_path / "evaluation" / "examples.json", [{"id": "a"}])
        assert "examples.json: not what a run writes there" in call("show", f"--workdir={tmp_path}").refusal


PREPARE = ("prepare", "--cohort=custom", "--source=docs/custom", "--valid_patients=20", "--train_questions=12",
           "--valid_questions=4", "--salt=s")  # fmt: skip


@pytest.mark.slow
def test_how_a_preparation_ends(tmp_path, call, monkeypatch):
    """With counts by section; with a record only where it is asked for, or where standard output is a terminal."""
    monkeypatch.chdir(REPOSITORY)
    out = f"--out={tmp_path / 'out'}"
    silent = call(*PREPARE, out)
    assert silent.code == 0, silent.err
    train = read_questions(tmp_path / "out" / "questions" / "train.parquet")
    (shown,) = Selection(count=1).of(train)
    rows = [line.rsplit(maxsplit=2) for line in silent.out.split("\n") if line.startswith("[")]
    assert {section: int(count) for section, count, _ in rows} == {
        section: sum(each.section == section for each in train) for section in {each.section for each in train}
    }
    assert sum(int(count) for _, _, count in rows) == 4
    assert silent.out.endswith(
        f"creason show --questions={tmp_path}/out/questions/train.parquet shows questions in full\n"
    )
    assert not any(each.question in silent.out or each.context in silent.out for each in train)
    asked = call(*PREPARE, out, "--show")
    assert user_message(shown) in joined(asked.out) and f"right answer: {shown.answer}. " in asked.out
    assert user_message(shown) in joined(on_a_terminal(*PREPARE, out))
    monkeypatch.setattr(app, "read_on_terminal", lambda: True)
    assert call(*PREPARE, out, "--noshow").out == silent.out


def on_a_terminal(program: str, *arguments: str) -> str:
    """What a program prints where its standard output is a terminal."""
    reader, writer = pty.openpty()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "launch", program, *arguments, "--noprogress"],
        environment(COLUMNS="200"),
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)],
    )
    os.close(writer)
    found = b""
    while True:
        try:
            part = os.read(reader, 65_536)
        except OSError:  # how Linux says that nobody holds the other end any more
            break
        if not part:
            break
        found += part
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return found.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_a_check_does_not_take_the_flag(tmp_path, call):
    shutil.copytree(REPOSITORY / "docs" / "custom", tmp_path / "custom")
    assert "--show: --verify does not read it" in call("prepare", "--verify", "--show", f"--out={tmp_path}").refusal
