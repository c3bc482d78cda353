"""Rungs 9 and 10: the engines: greedy tokens, log-probabilities against the learner's, and that a publish arrives; float32."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from parity import recorded, reference
from parity.check import NATS, Check, Measured, largest_difference, unequal
from parity.families import EOS, FAMILIES
from parity.sides import Side, run_config
from parity.world import Case, World
from shared import grpo
from shared.backend import Completion, Sampling
from shared.grpo import GroupLayout

GREEDY = Sampling(group_size=1, temperature=0.0, max_new_tokens=recorded.LAYOUT.completion)
BOUND = 2e-5  # nats


def checks(world: World) -> Iterator[Check]:
    """Every family greedily, with the plain engine of each backend."""
    for family in world.families:
        case = world.case(family)
        expected = _greedy(case.network, _prompts(case))
        for side in world.sides:
            yield from _engine(side, case, expected)


def publishing(world: World) -> Iterator[Check]:
    """Publishes after updates on the first family and the first with tied tables, by every engine asked for and installed."""
    tied = [family for family in world.families if FAMILIES[family][1].get("tie_word_embeddings")]
    families = dict.fromkeys([world.families[0], *tied[:1]])
    for name in world.config.engines:
        if name == "vllm" and not importlib.util.find_spec("vllm"):
            world.notes.append("vLLM is not installed, so its engine was not checked.")
            continue
        side: Side = world.subject.jax if name == "jax" else world.subject.torch
        for family in families:
            yield from _published(side, name, {} if name == "jax" else {"rollout_engine": name}, world.case(family))


def _prompts(case: Case) -> list[np.ndarray]:
    batch = case.batch()
    return [row[: int((groups[: batch.layout.prompt] >= 0).sum())] for row, groups in zip(batch.tokens, batch.groups)]


def _greedy(network: Any, prompts: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Transformers' own greedy completions."""
    found = {}
    for number, prompt in enumerate(prompts):
        ids = torch.from_numpy(prompt[None]).long()
        with torch.no_grad():
            whole = network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=GREEDY.max_new_tokens,
                eos_token_id=EOS,
                pad_token_id=0,
            )
        found[f"question {number}"] = whole[0, len(prompt) :].numpy()
    return found


def _engine(side: Side, case: Case, expected: dict[str, np.ndarray]) -> Iterator[Check]:
    config = run_config()
    learner, engine = side.learner(config, case.folder, steps=1), side.engine(config, case.folder)
    learner.publish(engine)
    found = engine.generate(_prompts(case), GREEDY, None)
    measured = unequal(_tokens(found), expected)
    yield Check.of("generation", f"greedy tokens, {side.name}", case.family, "Transformers", measured, 0)
    yield Check.of("generation", f"logprobs, {side.name}", case.family, "learner", _gap(learner, case, found), BOUND)


def _published(side: Side, name: str, options: dict[str, Any], case: Case) -> Iterator[Check]:
    """After three updates, each published, the engine has the learner's weights and nothing of the old ones."""
    config = run_config(torch=options, optimizer={"warmup_ratio": 0.0})
    learner, engine = side.learner(config, case.folder, steps=4), side.engine(config, case.folder)
    for number in range(3):
        learner.publish(engine)
        engine.generate(_prompts(case), GREEDY, None)
        learner.update(case.batch(number))
    learner.publish(engine)
    found = engine.generate(_prompts(case), GREEDY, None)
    network = reference.network(case.folder)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            weight.copy_(torch.from_numpy(side.weights(learner)[key]))
    measured = unequal(_tokens(found), _greedy(network, _prompts(case)))
    yield Check.of("publishing", f"greedy tokens after 3 publishes, {name}", case.family, "Transformers", measured, 0)
    measured = _gap(learner, case, found)
    yield Check.of("publishing", f"logprobs after 3 publishes, {name}", case.family, "learner", measured, BOUND)


def _tokens(found: list[list[Completion]]) -> dict[str, np.ndarray]:
    return {f"question {number}": group[0].tokens for number, group in enumerate(found)}


def _gap(learner: Any, case: Case, found: list[list[Completion]]) -> Measured:
    """The engine's log-probabilities against the learner's, of the engine's own completions."""
    layout = GroupLayout(prompt=recorded.LAYOUT.prompt, group=1, completion=recorded.LAYOUT.completion)
    batch = grpo.pack(
        _prompts(case),
        [[each.tokens for each in group] for group in found],
        layout,
        advantages=np.zeros((len(found), 1)),
        rollout_logprobs=[[each.logprobs for each in group] for group in found],
    )
    assert batch.rollout_logprobs is not None
    scored = learner.logprobs(batch, "policy")
    return largest_difference({"token": batch.rollout_logprobs}, {"token": scored}, unit=NATS)
