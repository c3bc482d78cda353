"""Two processes with four devices each do what one with eight does."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from creason_jax import distributed
from creason_jax.backend import Backend
from shared.config import validate
from shared.errors import InputError
from tests.support import processes_worker
from tests.support.groups import random_batch
from tests.support.small import flat
from tests.support.workers import free_port

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def one(model, tmp_path_factory):
    """What one process finds, and its folder."""
    folder = tmp_path_factory.mktemp("one")
    return *processes_worker.do_all(model, folder), folder


@pytest.fixture(scope="module")
def two(model, one, tmp_path_factory):
    """What each of two processes finds, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "by_one").symlink_to(one[2] / "checkpoints")
    variables = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")}
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.processes_worker", port, str(process), str(model), str(folder)],
            cwd=REPOSITORY, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)[-6_000:]
    found = []
    for process in range(2):
        with np.load(folder / f"found.{process}.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
        found.append((arrays, json.loads((folder / f"found.{process}.json").read_text())))
    return found, folder


def assert_metrics(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_log_probabilities_and_updates_are_those_of_one_process(one, two):
    for arrays, figures in two[0]:
        for name in ("logprobs before", "logprobs policy", "logprobs reference"):
            np.testing.assert_allclose(arrays[name], one[0][name], rtol=0, atol=1e-5, err_msg=name)
        for found, expected in zip(figures["metrics"], one[1]["metrics"], strict=True):
            assert_metrics(found, expected)
    moved = np.abs(one[0]["logprobs policy"] - one[0]["logprobs before"]).max()
    assert moved > 1e-2 and np.abs(one[0]["logprobs policy"] - one[0]["logprobs reference"]).max() > 1e-3


def test_completions_are_those_of_one_process(one, two):
    for arrays, _ in two[0]:
        for name in ("greedy", "drawn", "stored"):
            np.testing.assert_array_equal(arrays[f"{name} tokens"], one[0][f"{name} tokens"])
            np.testing.assert_allclose(arrays[f"{name} logprobs"], one[0][f"{name} logprobs"], rtol=0, atol=1e-5)
    assert len(set(one[0]["drawn tokens"])) > 10


def test_every_process_gets_the_whole_of_every_result(two):
    (first, said), (second, also_said) = two[0]
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name
    assert {**said, "held": 0} == {**also_said, "held": 0}
    assert said["any_process"] == [True, False, True]
    assert said["same"] == [True, False]
    assert said["least"] == 2**31 - 2


def test_each_process_holds_its_own_part_of_the_weights(one, two):
    assert sum(figures["held"] for _, figures in two[0]) == one[1]["held"]
    for _, figures in two[0]:
        assert figures["held"] < 0.51 * one[1]["held"]


def test_the_exported_models_are_equal(one, two):
    from safetensors.numpy import load_file

    found, expected = (load_file(folder / "exported" / "model.safetensors") for folder in (two[1], one[2]))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=1e-5, err_msg=name)
    assert sorted(path.name for path in (two[1] / "exported").iterdir()) == sorted(
        path.name for path in (one[2] / "exported").iterdir()
    )


def test_an_update_after_a_restore_is_bit_for_bit_the_one_before(two):
    for _, figures in two[0]:
        assert figures["restored"] == [2, {"position": 12}]
        assert figures["again"] == figures["metrics"][2]


def test_checkpoints_go_from_one_process_to_two_and_back(one, two, model):
    for _, figures in two[0]:
        restored, metrics = figures["of one"]
        assert restored == [2, {"position": 12}]
        assert_metrics(metrics, one[1]["metrics"][2])
    config = validate(processes_worker.SETTINGS)
    learners = [
        Backend(config).learner(config, model, optimizer=config.optimizer, steps=10, reference=True) for _ in range(2)
    ]
    for learner, folder in zip(learners, (two[1], one[2]), strict=True):
        assert learner.restore(folder / "checkpoints") == (2, {"position": 12})
    found, expected = (flat(learner.state) for learner in learners)
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-5, err_msg=path)
    assert_metrics(learners[0].update(random_batch(processes_worker.ROWS, seed=2)), one[1]["metrics"][2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, None), "--coordinator, --num_processes and --process_id go together"),
        (("", 2, 0), "--coordinator, --num_processes and --process_id go together"),
        (("host", 2, 0), "--coordinator=host: must be HOST:PORT"),
        ((":1234", 2, 0), "--coordinator=:1234: must be HOST:PORT"),
        (("host:port", 2, 0), "--coordinator=host:port: must be HOST:PORT"),
        (("host:1", 2, 2), "--process_id=2: must be 0 to 1"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(arguments, message):
    with pytest.raises(InputError) as refusal:
        distributed.start(*arguments)
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_a_process_0_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "START_LIMIT", 0.5)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=f"--coordinator={address}: no answer within 0.5 s; start all 2 processes"):
        distributed.start(address, 2, 1)


SCHEDULERS = [
    ({}, False),
    ({"SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_STEP_NUM_TASKS": "16"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
]


@pytest.mark.parametrize(("variables", "joined"), SCHEDULERS)
def test_jax_is_left_to_find_the_processes_that_a_scheduler_started(variables, joined, monkeypatch):
    for name in itertools.chain.from_iterable(variables for variables, _ in SCHEDULERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked = []
    jax.devices()  # what is configured below comes too late for them
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    assert distributed.start() is False  # the process of this test is alone all the same
    assert bool(asked) == joined
    assert not asked or not {"coordinator_address", "num_processes", "process_id"} & asked[0].keys()


def test_one_process_of_one_needs_no_coordinator(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", None)
    assert distributed.start("127.0.0.1:1", 1, 0) is False


COUNTING = """
import sys, time
from creason_jax import distributed
distributed.BEAT = 0.0005
assert distributed.start(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
time.sleep(0.1 * int(sys.argv[2]))
"""


@pytest.mark.parametrize("attempt", range(3))
def test_two_processes_that_count_fast_end_well(attempt):
    """The thread that counts is nearly always within JAX's client: where it outlived Python, that ended the process by signal."""
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTING, port, process], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        )
        for process in ("0", "1")
    ]
    told = [process.communicate(timeout=120)[1] for process in started]
    assert ([process.returncode for process in started], told) == ([0, 0], ["", ""])
