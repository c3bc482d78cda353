"""An engine that does not hold the learner's weights is found by reading them back, where log-probabilities show nothing."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from creason_jax.rollout.engine import Engine
from shared.backend import Probe, Sampling
from shared.errors import SyncError
from shared.training import published
from tests.support.small import LAYOUT, make_learner, random_batch

pytestmark = pytest.mark.slow

PROMPT = np.arange(4, 12, dtype=np.int32)
GREEDY = Sampling(group_size=1, temperature=0.0, max_new_tokens=LAYOUT.completion)


def pair(model, *, dtype="float32", mesh=(1, 1, 1)):
    """A learner that learns as slowly as the paper's, and an engine that is published to."""
    learner = make_learner(
        model, mesh=mesh, learner={"compute_dtype": dtype}, optimizer={"learning_rate": 1e-6, "eps": 1e-8}
    )
    return learner, Engine(learner.config, learner.model, learner.mesh, stop_tokens=[3])


@pytest.mark.parametrize(("dtype", "mesh"), [("bfloat16", (1, 1, 1)), ("float32", (1, 4, 2))])
def test_what_was_published_is_what_the_engine_holds(model, dtype, mesh):
    learner, engine = pair(model, dtype=dtype, mesh=mesh)
    assert engine.version is None
    for step in range(3):
        published.publish(learner, engine)
        assert engine.version == step == learner.step
        learner.update(random_batch(2, seed=step))
    names = engine.readable()
    assert names["embed.kernel"] == learner.model.vocab_size and "layers.1.q.kernel" in names and "norm.scale" in names
    published.publish(learner, engine)
    probes = [Probe(name, (0, 3)) for name in names if "layers.0" not in name]
    assert engine.digests(probes) == learner.digests(probes)


def test_an_engine_one_step_behind_is_found(model):
    """It says that it holds the newest version; the log-probabilities of its completions do not tell otherwise."""
    learner, engine = pair(model)
    published.publish(learner, engine)
    held = []
    publish = engine._publish

    def one_behind(params):
        held.append(publish(params))
        return held[-2] if len(held) > 1 else held[0]

    engine._publish = one_behind
    learner.update(random_batch(2, seed=0))
    published.publish(learner, engine)  # the first that it keeps
    [[before]] = engine.generate([PROMPT], GREEDY, None)
    learner.update(random_batch(2, seed=1))
    with pytest.raises(SyncError, match="step 2: the engine's .* not the learner's"):
        published.publish(learner, engine)
    assert engine.version == 2  # so it says
    [[after]] = engine.generate([PROMPT], GREEDY, None)
    engine._publish = publish
    published.publish(learner, engine)
    [[right]] = engine.generate([PROMPT], GREEDY, None)
    assert np.array_equal(before.logprobs, after.logprobs)
    gap = np.abs(after.logprobs - right.logprobs[: len(after.logprobs)]).mean()
    assert gap < learner.config.grpo.max_logprob_gap / 100


def test_a_publish_that_is_skipped_is_found(model):
    learner, engine = pair(model)
    published.publish(learner, engine)
    learner.update(random_batch(2, seed=0))
    learner.publish = lambda engine: None
    with pytest.raises(SyncError, match="the engine holds the weights of step 0, the learner those of step 1"):
        published.publish(learner, engine)
    assert jax.tree.leaves(engine.params)
