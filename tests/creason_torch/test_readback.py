"""An engine that does not hold the learner's weights is found by reading them back, where log-probabilities show nothing."""

from __future__ import annotations

import pytest
import torch

from creason_torch.backend import Backend
from creason_torch.learner.learner import Learner
from creason_torch.rollout import make_engine
from shared.errors import SyncError
from shared.training import published
from tests.support.groups import random_batch
from tests.support.tiny import run_config

CPU = torch.device("cpu")


def pair(model, *, kind="hf", dtype="float32", stage=2):
    """A learner that learns as slowly as the paper's, and an engine that is published to."""
    config = run_config(
        optimizer={"learning_rate": 1e-6, "warmup_ratio": 0.0},
        learner={"compute_dtype": dtype},
        torch={"rollout_engine": kind, "zero_stage": stage},
    )
    Backend(config)  # joins the process group
    learner = Learner(config, model, CPU, optimizer=config.optimizer, steps=10, reference=False)
    return learner, make_engine(config, model, stop_tokens=[3], device=CPU)


@pytest.mark.parametrize(("dtype", "stage"), [("float32", 0), ("float32", 3), ("bfloat16", 2)])
def test_what_was_published_is_what_the_engine_holds(model, dtype, stage):
    learner, engine = pair(model, dtype=dtype, stage=stage)
    assert engine.version is None
    for step in range(3):
        published.publish(learner, engine)
        assert engine.version == step == learner.step
        learner.update(random_batch(2, seed=step))
    assert engine.readable().keys() == learner.weights.keys()
    published.publish(learner, engine)
    probes = published.probes_of(engine.readable(), 0, whole=True)
    assert engine.digests(probes) == learner.digests(probes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_one_step_behind_is_found(model, dtype):
    """It says that it holds the newest version."""
    learner, engine = pair(model, dtype=dtype)
    published.publish(learner, engine)
    load, streams = engine._load, []

    def one_behind(weights):
        streams.append([(name, weight.clone()) for name, weight in weights])
        load(iter(streams[-2] if len(streams) > 1 else streams[0]))

    engine._load = one_behind
    learner.update(random_batch(2, seed=0))
    published.publish(learner, engine)  # the first that it keeps
    learner.update(random_batch(2, seed=1))
    with pytest.raises(SyncError, match="step 2: the engine's .* not the learner's"):
        published.publish(learner, engine)
    assert engine.version == 2  # so it says
    engine._load = load
    published.publish(learner, engine)


def test_a_publish_that_is_skipped_is_found(model):
    learner, engine = pair(model)
    published.publish(learner, engine)
    learner.update(random_batch(2, seed=0))
    learner.publish = lambda engine: None
    with pytest.raises(SyncError, match="the engine holds the weights of step 0, the learner those of step 1"):
        published.publish(learner, engine)
