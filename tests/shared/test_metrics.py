"""The metrics file: one line a step, exact after a killed run, and the copies of it elsewhere."""

from __future__ import annotations

import json
import math
import sys
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tensorboardX.proto.event_pb2 import Event

from shared.errors import InputError
from shared.training import metrics_log
from shared.training.metrics_log import MetricsWriter, differences, differences_table, read_metrics


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """(file, step, tag, value) of every scalar, and the steps at which a session started, from the raw event files."""
    scalars, starts = [], []
    for path in sorted((folder / "tensorboard").glob("events*")):
        data = path.read_bytes()
        at = 0
        while at < len(data):  # record: length uint64, checksum uint32, payload, checksum uint32
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            scalars += [(path.name, event.step, value.tag, value.simple_value) for value in event.summary.value]
            if event.HasField("session_log"):
                starts.append(event.step)
    return scalars, starts


def test_one_line_a_step_and_the_same_numbers_in_tensorboard(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        writer.write(0, {"reward": np.float32(0.25), "truncated": 3, "seconds_decode": 1.5})
        assert lines(tmp_path) == [{"step": 0, "reward": 0.25, "truncated": 3, "seconds_decode": 1.5}]
        writer.write(1, {"reward": math.nan, "kl": float("inf")})
    assert lines(tmp_path)[1] == {"step": 1, "reward": None, "kl": None}
    scalars, _ = events(tmp_path)
    assert [(step, tag, value) for _, step, tag, value in scalars] == [
        (0, "train/reward", 0.25),
        (0, "train/truncated", 3),
        (0, "time/seconds_decode", 1.5),
    ]


def test_a_line_is_on_disk_before_the_next_step(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    writer.write(0, {"reward": 1.0})
    assert lines(tmp_path) == [{"step": 0, "reward": 1.0}]
    writer.close()
    writer.close()


def test_resume_forgets_the_steps_that_come_again(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        for step in range(5):
            writer.write(step, {"reward": step / 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')  # killed here
    with MetricsWriter(tmp_path, 3) as writer:
        assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]
        writer.write(3, {"reward": 0.9})
    assert [(line["step"], line["reward"]) for line in lines(tmp_path)] == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.9)]
    scalars, starts = events(tmp_path)
    assert starts == [0, 3]  # TensorBoard drops what came before the second from step 3 on
    assert len({name for name, *_ in scalars}) == 2


def test_a_run_from_the_start_begins_a_new_file(tmp_path):
    for value in (0.1, 0.2):
        with MetricsWriter(tmp_path, 0) as writer:
            writer.write(0, {"reward": value})
    assert lines(tmp_path) == [{"step": 0, "reward": 0.2}]


def test_read_metrics(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        writer.write(0, {"reward": 0.5, "kl": None})
        writer.write(1, {"reward": 1.0, "kl": None, "entropy": 2})
    table = read_metrics(tmp_path / "metrics.jsonl")
    assert table["step"].tolist() == [0, 1] and table["step"].dtype == "int64"
    assert table["reward"].tolist() == [0.5, 1.0]
    assert table["kl"].isna().all() and table["kl"].dtype == "float64"
    assert math.isnan(table["entropy"][0]) and table["entropy"][1] == 2


def test_read_metrics_of_a_run_that_is_writing_or_has_not_begun(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "reward": 1}\n{"step": 1, "rew')
    assert read_metrics(path)["step"].tolist() == [0]
    path.write_text("")
    assert len(read_metrics(path)) == 0 and list(read_metrics(path).columns) == ["step"]
    with pytest.raises(InputError, match="no such metrics file"):
        read_metrics(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2 is not JSON"),
        ('{"reward": 1}', "line 2 has no step"),
        ("[1]", "line 2 has no step"),
        ('{"step": true}', "line 2 has no step"),
        ('{"step": 1, "reward": "high"}', "line 2: reward is not a number"),
        ("\udcff", "line 2 is not JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + line + '\n{"step": 2}\n', errors="surrogateescape")
    with pytest.raises(InputError, match=message):
        read_metrics(path)
    with pytest.raises(InputError, match=message):
        MetricsWriter(tmp_path, 1)


def test_without_timings_keeps_what_two_equal_runs_share():
    line = {"step": 1, "reward": 0.5, "seconds_decode": 3.0, "tokens_per_second": 9.0, "tokens": 4}
    assert metrics_log.without_timings(line) == {"step": 1, "reward": 0.5, "tokens": 4}


def test_timings_of_a_run(tmp_path):
    """Two steps on one set of rollouts: the second reads no tokens, and only the first saves a checkpoint."""
    with MetricsWriter(tmp_path, 0) as writer:
        first = {"seconds_decode": 2.0, "seconds_checkpoint": 0.5, "seconds_total": 3.0, "tokens_per_second": 400.0}
        writer.write(0, first)
        writer.write(1, {"seconds_update": 1.0, "seconds_total": 1.0, "tokens_per_second": 0.0})
    table = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics_log.phases(table).to_dict("list") == {
        "decode": [2.0, 0.0],
        "checkpoint": [0.5, 0.0],
        "update": [0.0, 1.0],
        "other": [0.5, 0.0],
    }
    assert metrics_log.timings(table) == {
        "steps": 2,
        "seconds": 4.0,
        "seconds_by_phase": {"decode": 2.0, "checkpoint": 0.5, "update": 1.0, "other": 0.5},
        "tokens_per_second": 300.0,
    }
    assert metrics_log.timings(table[["step"]]) == {
        "steps": 2, "seconds": 0.0, "seconds_by_phase": {}, "tokens_per_second": None,
    }  # fmt: skip


def test_plain_makes_json_of_anything_measured():
    value = {"a": np.float32("nan"), 3: [np.int64(2), (np.bool_(True), -math.inf)], "b": np.array([1.5, np.nan])}
    assert metrics_log.plain(value) == {"a": None, "3": [2, [True, None]], "b": [1.5, None]}


def test_weights_and_biases_only_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    MetricsWriter(tmp_path, 0).close()
    with pytest.raises(InputError, match="pip install wandb"):
        MetricsWriter(tmp_path, 0, wandb_project="reasoning")


def test_weights_and_biases_goes_on_in_the_same_run(tmp_path, monkeypatch):
    calls: list[tuple] = []

    class Run:
        def log(self, values, step):
            calls.append(("log", values, step))

        def finish(self):
            calls.append(("finish",))

    def init(**options):
        calls.append(("init", options))
        return Run()

    wandb: Any = types.ModuleType("wandb")
    wandb.Settings, wandb.init = dict, init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for start in (0, 1):
        with MetricsWriter(tmp_path, start, wandb_project="reasoning") as writer:
            writer.write(start, {"reward": 0.5, "kl": math.nan})
    assert [call for call in calls if call[0] != "init"] == [
        ("log", {"train/reward": 0.5}, 0), ("finish",), ("log", {"train/reward": 0.5}, 1), ("finish",),
    ]  # fmt: skip
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first == second and first["resume"] == "allow" and first["project"] == "reasoning"
    assert first["settings"]["console"] == "off"  # nothing printed is uploaded


class TestDifferences:
    """How far two runs' metrics are apart."""

    @staticmethod
    def table(**columns) -> pd.DataFrame:
        return pd.DataFrame({"step": range(len(next(iter(columns.values())))), **columns})

    def test_relative_to_the_value_or_to_the_runs_size(self):
        first = self.table(loss=[3.0, -4.0, 0.0], seconds_total=[1.0, 1.0, 1.0], only=[1.0, 1.0, 1.0])
        second = self.table(loss=[3.0, -4.4, 0.1], seconds_total=[9.0, 9.0, 9.0])
        found = differences(first, second)
        assert list(found["metric"]) == ["loss"]
        [row] = found.to_dict("records")
        assert (row["step"], row["relative"]) == (1, pytest.approx(0.1))
        assert row["absolute"] == pytest.approx(0.4)
        [row] = differences(self.table(loss=[3.0, -4.0, 0.0]), self.table(loss=[3.0, -4.0, 0.1])).to_dict("records")
        assert (row["step"], row["relative"]) == (2, pytest.approx(0.1 / np.sqrt(25 / 3)))

    def test_equal_is_exactly_nothing(self):
        table = self.table(loss=[0.0, 0.0], kl=[1e-300, np.nan])
        assert differences(table, table)[["relative", "absolute"]].to_numpy().tolist() == [[0, 0], [0, 0]]

    def test_a_value_that_only_one_has_is_no_small_difference(self):
        first, second = self.table(loss=[1.0, 2.0]), self.table(loss=[1.0, np.nan])
        for pair in ((first, second), (second, first)):
            [row] = differences(*pair).to_dict("records")
            assert row["relative"] == np.inf and row["step"] == 1
        assert "inf" in differences_table([row]) and "loss" in differences_table([row])

    def test_only_steps_that_both_have(self):
        first, second = self.table(loss=[1.0, 2.0, 3.0]), self.table(loss=[1.0, 2.0])
        assert differences(first, second)["relative"].tolist() == [0]
        with pytest.raises(InputError, match="no optimizer step in common"):
            differences(first, second.assign(step=[7, 8]))
