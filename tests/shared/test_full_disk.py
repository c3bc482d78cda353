"""Where a disk is full, whatever is written ends in one line that names it, and nothing half-written stays."""

from __future__ import annotations

import json

import duckdb
import numpy as np
import pandas as pd
import pytest

from shared.cohorts import synthetic
from shared.cohorts.custom.codebook import Line, write_codebook
from shared.cohorts.custom.problems import Problem, write_report
from shared.config import ModelConfig
from shared.errors import InputError
from shared.evaluation import lm_eval
from shared.evaluation.answers import answer_to, write_answers
from shared.policy.initial import write_model
from shared.policy.tokenizer import train_tokenizer
from shared.questions.record import write_questions
from shared.report import plots
from shared.report.page import write_html
from shared.review import review
from shared.storage import files
from shared.training.metrics_log import MetricsWriter, read_metrics
from shared.training.trajectories import TrajectoryReader, TrajectoryWriter
from tests.support.exam import exam
from tests.support.full_disk import full_disk
from tests.support.groups import random_batch

REASON = r"cannot be written \(File too large\); check that the disk has free space"
QUESTIONS = exam(30)


def a_model(path):
    with files.replacing(path) as temporary:
        temporary.mkdir()
        write_model(ModelConfig(), temporary, vocab_size=512, bos=1, eos=2, pad=0, seed=1)


def a_review(path):
    replies, others = path.parents[2] / "replies.jsonl", path.parents[2] / "others.jsonl"
    review.export(replies, others, names=("a", "b"), raters=["r1"], count=0, out=path, key=path.parent / "key", seed=1)


def an_extract(path):
    """As MIMIC-III's are written, by DuckDB."""
    with files.replacing(path) as temporary, duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT random() AS x FROM range(9_000)) TO '{temporary}' (FORMAT parquet)")


WRITERS = {
    "json": lambda path: files.write_json(path, list(range(9_000))),
    "json lines": lambda path: files.write_json_lines(path, ({"a": number} for number in range(9_000))),
    "questions": lambda path: write_questions(path, QUESTIONS),
    "answers": lambda path: write_answers(
        path, [answer_to(question, "A", truncated=False, tokens=3) for question in QUESTIONS]
    ),
    "lm_eval": lambda path: lm_eval.export(QUESTIONS, path, "task"),
    "codebook": lambda path: write_codebook(
        path, [Line(column=f"c{i}", display_name="c", section="s", kind="number") for i in range(2_000)]
    ),
    "problems": lambda path: write_report(path, [Problem(row, "c", "no id") for row in range(9_000)]),
    "model": a_model,
    "review": a_review,
    "extract": an_extract,
    "raw registry": lambda path: synthetic.write_raw(path, patients=30, seed=1),
    "tokenizer": lambda path: train_tokenizer(["a record of a patient"] * 9, 400, path),
    "page": lambda path: write_html(path, "review.html", {"rater": "r1", "cases": [
        {"question": "q" * 9_000, "reference": "", "answer_1": "a", "answer_2": "b"}]}),
    "figure": lambda path: plots.write_png(
        plots.series_figure(pd.DataFrame({"step": [0, 1], "loss": [1.0, 2.0]}), "loss"), path),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [0, 2_000])
@pytest.mark.parametrize("name", WRITERS)
def test_nothing_half_written_stays(name, size, tmp_path, capfd):
    path = tmp_path / "new" / "folder" / "thing"
    for given, text in (("replies.jsonl", "a"), ("others.jsonl", "b")):
        rows = [{"id": f"q{number}", "question": "q", "completion": text} for number in range(400)]
        (tmp_path / given).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=REASON) as raised, full_disk(size):
        WRITERS[name](path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    told = capfd.readouterr()
    assert told.out == told.err == ""
    if name != "raw registry":  # into a folder that its caller makes
        assert sorted(left.name for left in tmp_path.iterdir()) == ["others.jsonl", "replies.jsonl"]
    WRITERS[name](path)
    assert path.exists()


@pytest.mark.parametrize("size", [0, 400, 4_000, 12_000])
def test_metrics_end_and_go_on(size, tmp_path, capfd):
    """TensorBoard's file too: no thread of it dies alone, and no step waits for one."""
    numbers = {f"metric_{index}": float(index) for index in range(9)}
    with pytest.raises(InputError, match=REASON) as raised, full_disk(size):
        with MetricsWriter(tmp_path / "run", 0) as writer:
            for step in range(99):
                writer.write(step, numbers)
    assert str(tmp_path / "run") in str(raised.value)
    assert capfd.readouterr().err == ""
    begun = read_metrics(tmp_path / "run" / "metrics.jsonl") if (tmp_path / "run").is_dir() else []
    with MetricsWriter(tmp_path / "run", len(begun)) as writer:
        writer.write(len(begun), numbers)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")["step"].tolist() == [*range(len(begun) + 1)]


@pytest.mark.parametrize("size", [0, 100])
def test_trajectories_end_and_go_on(size, tmp_path, capfd):
    batch = random_batch(4, seed=1)
    rewards, ids = np.ones((4, batch.layout.group)), list("abcd")

    def append(step: int) -> None:
        TrajectoryWriter(tmp_path / "run", rows_per_step=4, layout=batch.layout).append(step, batch, rewards, ids)

    append(0)
    with pytest.raises(InputError, match=REASON), full_disk(size):
        append(1)
    assert capfd.readouterr().err == ""
    assert TrajectoryReader(tmp_path / "run").steps() == [0]
    append(1)
    read, _, _ = TrajectoryReader(tmp_path / "run").read(1)
    np.testing.assert_array_equal(read.tokens, batch.tokens)
