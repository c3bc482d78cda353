"""Trajectories on disk: exact, replaceable step by step, and never silently damaged."""

from __future__ import annotations

import dataclasses
import json
import stat
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.errors import InputError
from shared.grpo import GroupBatch, GroupLayout
from shared.training.trajectories import TrajectoryReader, TrajectoryWriter

LAYOUT = GroupLayout(prompt=5, group=3, completion=4)


def batch(seed: int, rows: int = 2, layout: GroupLayout = LAYOUT, **changes) -> GroupBatch:
    random = np.random.default_rng(seed)
    shape = (rows, layout.length)
    fields: dict[str, Any] = {
        "layout": layout,
        "tokens": random.integers(0, 50_000, shape, dtype=np.int32),
        "positions": random.integers(0, 9, shape, dtype=np.int32),
        "groups": random.integers(-1, 1, shape, dtype=np.int32),
        "segments": random.integers(0, 4, shape, dtype=np.int32),
        "completion_mask": random.integers(0, 2, shape).astype(np.float32),
        "advantages": random.normal(size=shape).astype(np.float32),
        "rollout_logprobs": random.normal(size=shape).astype(np.float32),
        "old_logprobs": None,
        "ref_logprobs": random.normal(size=shape).astype(np.float32),
    }
    return GroupBatch(**(fields | changes))


def same(left: GroupBatch, right: GroupBatch) -> bool:
    for field in dataclasses.fields(GroupBatch):
        one, two = getattr(left, field.name), getattr(right, field.name)
        if isinstance(one, np.ndarray):
            if one.dtype != two.dtype or not np.array_equal(one, two, equal_nan=True):
                return False
        elif one != two:
            return False
    return True


def rewards(seed: int, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, LAYOUT.group))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "trajectories"


def test_exact_round_trip(folder):
    writer = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    batches = [batch(0), batch(1, old_logprobs=np.full((2, LAYOUT.length), -0.5, np.float32), ref_logprobs=None)]
    for step, item in enumerate(batches):
        writer.append(step, item, rewards(step), [f"q{step}", "ä question"])
    reader = TrajectoryReader(folder)
    assert reader.steps() == [0, 1]
    assert (reader.layout, reader.rows_per_step) == (LAYOUT, 2)
    for step, item in enumerate(batches):
        found, found_rewards, ids = reader.read(step)
        assert same(found, item)
        assert np.array_equal(found_rewards, rewards(step)) and found_rewards.dtype == np.float64
        assert ids == [f"q{step}", "ä question"]


def test_not_a_number_is_kept_apart_from_not_there(folder):
    holed = np.full((2, LAYOUT.length), np.nan, np.float32)
    TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT).append(
        0, batch(0, ref_logprobs=holed), rewards(0), ["a", "b"]
    )
    found, _, _ = TrajectoryReader(folder).read(0)
    assert found.old_logprobs is None
    assert found.ref_logprobs is not None and np.isnan(found.ref_logprobs).all()


def test_resume_replaces_a_step_and_goes_on(folder):
    first = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    for step in range(3):
        first.append(step, batch(step), rewards(step), ["a", "b"])
    resumed = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    for step in (2, 3):
        resumed.append(step, batch(10 + step), rewards(10 + step), ["c", "d"])
    reader = TrajectoryReader(folder)
    assert reader.steps() == [0, 1, 2, 3]
    for step, seed in enumerate([0, 1, 12, 13]):
        found, found_rewards, _ = reader.read(step)
        assert same(found, batch(seed)) and np.array_equal(found_rewards, rewards(seed))


def test_steps_may_have_gaps_and_fewer_rows(folder):
    writer = TrajectoryWriter(folder, rows_per_step=4, layout=LAYOUT)
    reader = TrajectoryReader(folder)
    assert reader.steps() == []
    writer.append(7, batch(0, rows=3), rewards(0, rows=3), ["a", "b", "c"])
    assert reader.steps() == [7]  # a reader that is open sees what is written after it
    found, found_rewards, ids = reader.read(7)
    assert same(found, batch(0, rows=3)) and found_rewards.shape == (3, LAYOUT.group) and ids == ["a", "b", "c"]
    with pytest.raises(InputError, match="no step 3; it has 1 of them, 7 to 7"):
        reader.read(3)


def test_what_does_not_fit_is_refused(folder):
    writer = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    other = GroupLayout(prompt=6, group=3, completion=4)
    with pytest.raises(InputError, match="layout"):
        writer.append(0, batch(0, layout=other), rewards(0), ["a", "b"])
    with pytest.raises(InputError, match="3 rows where"):
        writer.append(0, batch(0, rows=3), rewards(0, rows=3), ["a", "b", "c"])
    with pytest.raises(InputError, match=r"tokens has shape \(2, 17\); it must be \(1, 17\)"):
        writer.append(0, batch(0), rewards(0), ["a"])
    with pytest.raises(InputError, match="rewards has shape"):
        writer.append(0, batch(0), rewards(0).T, ["a", "b"])
    with pytest.raises(InputError, match="count from 0"):
        writer.append(-1, batch(0), rewards(0), ["a", "b"])
    with pytest.raises(InputError, match="new folder"):
        TrajectoryWriter(folder, rows_per_step=2, layout=other)
    with pytest.raises(InputError, match="new folder"):
        TrajectoryWriter(folder, rows_per_step=3, layout=LAYOUT)
    assert TrajectoryReader(folder).steps() == []


def chunk(folder, name):
    return next(path for path in (folder / name / "c").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["tokens", "ref_logprobs", "rewards"])
@pytest.mark.parametrize("damage", ["absent", "short", "other"])
def test_damage_is_an_error_not_a_number(folder, name, damage):
    writer = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    writer.append(0, batch(0), rewards(0), ["a", "b"])
    path = chunk(folder, name)
    if damage == "absent":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        TrajectoryWriter(folder.parent / "other", rows_per_step=2, layout=LAYOUT).append(
            0, batch(5), rewards(5), ["a", "b"]
        )
        path.write_bytes(chunk(folder.parent / "other", name).read_bytes())
    with pytest.raises(InputError, match=f"{name}: step 0 is damaged or incomplete"):
        TrajectoryReader(folder).read(0)
    writer.append(0, batch(0), rewards(0), ["a", "b"])
    assert same(TrajectoryReader(folder).read(0)[0], batch(0))


def test_a_step_that_was_half_written_is_not_there(folder, monkeypatch):
    writer = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    writer.append(0, batch(0), rewards(0), ["a", "b"])

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("shared.training.trajectories.files.write_json", die)
    for step in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            writer.append(step, batch(1), rewards(1), ["a", "b"])
    assert TrajectoryReader(folder).steps() == []


def test_a_missing_folder_or_array_is_one_clear_line(folder):
    with pytest.raises(InputError, match="holds no trajectories"):
        TrajectoryReader(folder)
    writer = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    writer.append(0, batch(0), rewards(0), ["a", "b"])
    (folder / "tokens" / "zarr.json").unlink()
    with pytest.raises(InputError, match="tokens: not a readable array") as caught:
        TrajectoryReader(folder).read(0)
    assert "\n" not in str(caught.value)
    (folder / "trajectories.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="not trajectories of format 1"):
        TrajectoryReader(folder)


def test_only_the_owner_may_read(folder):
    TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_on_disk_is_a_pickle(folder):
    TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT).append(0, batch(0), rewards(0), ["a", "b"])
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not any(name.endswith((".pkl", ".pickle", ".npy", ".npz")) for name in names)
    for path in folder.rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith(b"\x80\x04")


def test_notes_come_back_and_a_step_may_have_none(folder):
    writer = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    notes = {"described": {"reward": 0.1 + 0.2, "truncated": 1 / 3}, "position": 7}
    writer.append(0, batch(0), rewards(0), ["a", "b"], notes=notes)
    writer.append(1, batch(1), rewards(1), ["a", "b"])
    reader = TrajectoryReader(folder)
    assert reader.notes(0) == notes and reader.notes(1) == {}
    assert reader.checksums(0).keys() == reader.checksums(1).keys() and reader.checksums(0) != reader.checksums(1)
    (folder / "steps" / "00000001.json").write_text('{"step": 1}')
    with pytest.raises(InputError, match="00000001.json: step 1 is damaged"):
        reader.notes(1)
    (folder / "trajectories.json").write_text('{"format": 1, "layout": {"prompt": 5}}')
    with pytest.raises(InputError, match="trajectories.json: damaged"):
        TrajectoryReader(folder)


@pytest.mark.parametrize(
    ("old", "new"), [('"position": 7', '"position": 8'), ('"a"', '"c"'), ('"reward": 0.5', '"reward": 0.7')]
)
def test_what_is_noted_of_a_step_is_never_another_without_a_word(folder, old, new):
    writer = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    writer.append(0, batch(0), rewards(0), ["a", "b"], notes={"described": {"reward": 0.5}, "position": 7})
    path = folder / "steps" / "00000000.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    for read in (TrajectoryReader(folder).read, TrajectoryReader(folder).notes):
        with pytest.raises(InputError, match="00000000.json: damaged"):
            read(0)


def test_another_layout_than_was_written_is_found(folder):
    TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT).append(0, batch(0), rewards(0), ["a", "b"])
    path = folder / "trajectories.json"
    path.write_text(
        path.read_text().replace('"prompt": 5', '"prompt": 8').replace('"completion": 4', '"completion": 3')
    )
    with pytest.raises(InputError, match="trajectories.json: damaged"):
        TrajectoryReader(folder)


def test_steps_of_an_earlier_version_are_read(folder):
    writer = TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT)
    writer.append(0, batch(0), rewards(0), ["a", "b"], notes={"position": 7})
    for path in (folder / "trajectories.json", folder / "steps" / "00000000.json"):
        content = json.loads(path.read_text())
        del content["json_crc32"]
        path.write_text(json.dumps(content))
    assert TrajectoryReader(folder).notes(0) == {"position": 7}
    assert same(TrajectoryReader(folder).read(0)[0], batch(0))
    TrajectoryWriter(folder, rows_per_step=2, layout=LAYOUT).append(1, batch(1), rewards(1), ["a", "b"])


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
IDS = st.integers(-(2**31), 2**31 - 1)


@st.composite
def any_step(draw):
    """A batch of any layout and content, its rewards and the names of its questions."""
    layout = GroupLayout(**{name: draw(st.integers(1, 4)) for name in ("prompt", "group", "completion")})
    rows = draw(st.integers(1, 3))
    shape = (rows, layout.length)
    fields: dict[str, Any] = {
        name: draw(arrays(np.int32, shape, elements=IDS)) for name in ("tokens", "positions", "groups", "segments")
    }
    fields |= {name: draw(arrays(np.float32, shape, elements=FLOATS)) for name in ("completion_mask", "advantages")}
    for name in ("rollout_logprobs", "old_logprobs", "ref_logprobs"):
        fields[name] = draw(st.none() | arrays(np.float32, shape, elements=FLOATS))
    totals = draw(arrays(np.float64, (rows, layout.group), elements=st.floats(allow_nan=False)))
    return GroupBatch(layout=layout, **fields), totals, draw(st.lists(st.text(), min_size=rows, max_size=rows))


@given(any_step(), st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_any_batch_comes_back_bit_for_bit(tmp_path_factory, item, step, spare):
    given_batch, given_rewards, ids = item
    folder = tmp_path_factory.mktemp("any")
    writer = TrajectoryWriter(folder, rows_per_step=len(ids) + spare, layout=given_batch.layout)
    writer.append(step, given_batch, given_rewards, ids)
    found, found_rewards, found_ids = TrajectoryReader(folder).read(step)
    assert same(found, given_batch) and found_ids == ids
    assert found_rewards.tobytes() == given_rewards.tobytes()
    for field in ("advantages", "rollout_logprobs", "tokens"):
        one, two = getattr(found, field), getattr(given_batch, field)
        assert (one is None and two is None) or one.tobytes() == two.tobytes()
