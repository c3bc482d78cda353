"""A small model with prompts and stop tokens, and what every rollout engine must do with them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from creason_torch.rollout import Engine, make_engine
from shared.backend import Completion, Sampling
from shared.config import RunConfig
from shared.errors import InputError
from tests.support.tiny import run_config, tiny_phi3
from tests.support.workers import REPOSITORY, free_port

LIMIT, GROUP, LONGEST = 12, 3, 300
LENGTHS = (1, 5, 17, 32, 150, LONGEST, 9)  # vLLM's caches are blocks of 128 tokens on a CPU: none, one and two are full
ROLLOUT = {"max_prompt_tokens": LONGEST, "max_new_tokens": LIMIT, "slots": 3, "prefill_batch": 2, "decode_steps": 4}
GREEDY = Sampling(group_size=1, temperature=0.0, max_new_tokens=LIMIT)
SAMPLED = Sampling(group_size=GROUP, temperature=0.9, max_new_tokens=LIMIT)
CPU = torch.device("cpu")
CLOSE = 2e-5  # nats between an engine and a plain pass
# In each model's generation_config.json, and nobody's business here: any of them changes what is drawn.
CHECKPOINTS_OWN = {
    "do_sample": True,
    "repetition_penalty": 1.3,
    "temperature": 0.3,
    "top_k": 3,
    "top_p": 0.6,
    "min_p": 0.2,
    "max_new_tokens": 4,
    "eos_token_id": [3, 7],
}
FAR = 0.5  # nats a token, grpo.max_logprob_gap: what stops a run


@dataclasses.dataclass(frozen=True)
class World:
    """Two models of one shape, prompts, and stop tokens that end some of the first one's completions early."""

    folder: Path
    network: PreTrainedModel
    other_folder: Path
    other_network: PreTrainedModel
    prompts: list[np.ndarray]
    stops: tuple[int, ...]
    uniforms: np.ndarray  # [prompts, GROUP, LIMIT]

    def engine(self, kind: str, *, torch_options: dict[str, Any] | None = None, **sections: Any) -> Engine:
        """An engine with the first model's weights."""
        config = rollout_config(kind, torch_options=torch_options, **sections)
        engine = make_engine(config, self.folder, stop_tokens=self.stops, device=CPU)
        engine.load(weights(self.folder))
        return engine


def rollout_config(kind: str, *, torch_options: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    """A run's configuration with this engine; `sections` as in `run_config`."""
    rollout = ROLLOUT | sections.pop("rollout", {})
    return run_config(torch={"rollout_engine": kind, **(torch_options or {})}, rollout=rollout, **sections)


def make_world(folder: Path, **overrides: Any) -> World:
    """Write both models below `folder`, if they are not there; `overrides` as in `tiny_phi3`."""
    for seed, name in enumerate(("one", "other")):
        if not (folder / name).exists():
            tiny_phi3(folder / name, seed=seed, **overrides)
            (folder / name / "generation_config.json").write_text(json.dumps(CHECKPOINTS_OWN))
    network, other = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("one", "other"))
    for each in (network, other):
        assert each.generation_config.repetition_penalty == CHECKPOINTS_OWN["repetition_penalty"]
        each.generation_config = GenerationConfig()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 320, length).astype(np.int32) for length in LENGTHS]
    paths = [generated(network, prompt, ()) for prompt in prompts]
    return World(
        folder=folder / "one",
        network=network,
        other_folder=folder / "other",
        other_network=other,
        prompts=prompts,
        stops=(paths[0][0], paths[1][5], paths[3][LIMIT - 1]),
        uniforms=rng.random((len(prompts), GROUP, LIMIT), np.float32),
    )


def weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """A model directory's weights as the stream that an engine takes."""
    yield from load_file(folder / "model.safetensors").items()


def generated(network: PreTrainedModel, prompt: np.ndarray, stops: tuple[int, ...]) -> list[int]:
    """Hugging Face's own greedy completion."""
    ids = torch.tensor(prompt[None]).long()
    with torch.no_grad():
        found = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=LIMIT,
            eos_token_id=list(stops) or None,
            pad_token_id=0,
        )
    return found[0, len(prompt) :].tolist()


def plain_logprobs(
    network: PreTrainedModel, prompt: np.ndarray, tokens: np.ndarray, *, temperature: float = 1.0
) -> np.ndarray:
    """Log-probabilities of the completion's tokens by one pass without any cache."""
    ids = torch.tensor(np.concatenate([prompt, tokens])[None]).long()
    with torch.no_grad():
        logits = network(ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1)[torch.arange(len(tokens)), ids[0, len(prompt) :]].numpy()


def gaps(network: PreTrainedModel, prompts: list[np.ndarray], found: list[list[Completion]]) -> list[float]:
    """Mean absolute difference in nats between the engine's log-probabilities and a plain pass, for each prompt."""
    return [
        float(np.mean([np.abs(c.logprobs - plain_logprobs(network, prompt, c.tokens)).mean() for c in group]))
        for prompt, group in zip(prompts, found, strict=True)
    ]


def assert_same(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    """The same completions, to the rounding of other batches."""
    assert [len(group) for group in found] == [len(group) for group in expected]
    for ours, other in zip(chain(*found), chain(*expected), strict=True):
        np.testing.assert_array_equal(ours.tokens, other.tokens)
        np.testing.assert_allclose(ours.logprobs, other.logprobs, rtol=0, atol=CLOSE)
        assert ours.truncated == other.truncated


def assert_scored(network: PreTrainedModel, prompts: list[np.ndarray], found: list[list[Completion]]) -> None:
    """Every log-probability is that of a plain pass; types and the end are as the contract says."""
    for prompt, group in zip(prompts, found, strict=True):
        for completion in group:
            assert completion.tokens.dtype == np.int32 and completion.logprobs.dtype == np.float32
            assert completion.tokens.shape == completion.logprobs.shape and len(completion.tokens) <= LIMIT
            expected = plain_logprobs(network, prompt, completion.tokens)
            np.testing.assert_allclose(completion.logprobs, expected, rtol=0, atol=CLOSE)


def assert_greedy(world: World, network: PreTrainedModel, found: list[list[Completion]]) -> None:
    """Hugging Face's greedy tokens, with their log-probabilities."""
    assert_scored(network, world.prompts, found)
    for prompt, (completion,) in zip(world.prompts, found, strict=True):
        assert completion.tokens.tolist() == generated(network, prompt, world.stops)
        assert completion.truncated == (completion.tokens[-1] not in world.stops)
        assert not np.isin(completion.tokens[:-1], world.stops).any()


def check_greedy(world: World, engine: Engine) -> None:
    """Greedy tokens are Hugging Face's; they end at the first token, in the middle, exactly at the limit, or are cut."""
    found = engine.generate(world.prompts, GREEDY, None)
    assert_greedy(world, world.network, found)
    assert [len(completion.tokens) for (completion,) in found][:4] == [1, 6, LIMIT, LIMIT]
    assert [completion.truncated for (completion,) in found][:4] == [False, False, True, False]


def check_sampled(world: World, engine: Engine) -> None:
    """Scored at temperature one; samples of a group differ, some end early; asked again, they are the same."""
    found = engine.generate(world.prompts, SAMPLED, world.uniforms)
    assert_scored(world.network, world.prompts, found)
    assert all(len({tuple(completion.tokens) for completion in group}) == GROUP for group in found[1:])
    everything = list(chain(*found))
    assert len({len(completion.tokens) for completion in everything}) > 1
    for completion in everything:
        assert completion.truncated == (completion.tokens[-1] not in world.stops)
        assert not np.isin(completion.tokens[:-1], world.stops).any()
    assert_same(engine.generate(world.prompts, SAMPLED, world.uniforms), found)


def check_law(world: World, engine: Engine) -> None:
    """The first token of many samples by a chi-square test, over the likelier tokens and the rest together."""
    count, temperature = 1_000, 0.7
    prompt = world.prompts[4]  # half of the vocabulary stands in it, so that a penalty of repetition would show
    uniforms = np.random.default_rng(2).random((1, count, 1), np.float32)
    sampling = Sampling(group_size=count, temperature=temperature, max_new_tokens=1)
    found = engine.generate([prompt], sampling, uniforms)
    drawn = np.bincount([int(completion.tokens[0]) for completion in found[0]], minlength=320)
    with torch.no_grad():
        logits = world.network(torch.tensor(prompt[None]).long()).logits[0, -1].double()
    expected = count * (logits / temperature).softmax(-1).numpy()
    likely = expected >= 10
    cells = [np.append(values[likely], values[~likely].sum()) for values in (drawn, expected)]
    freedom = likely.sum()
    statistic = ((cells[0] - cells[1]) ** 2 / cells[1]).sum()
    assert freedom > 5
    assert statistic < freedom + 3.1 * np.sqrt(2 * freedom) + 3  # about once in a thousand


def check_order_and_company(world: World, engine: Engine) -> None:
    """Backwards, one by one, and more often than there are slots."""
    found = engine.generate(world.prompts, SAMPLED, world.uniforms)
    assert_same(engine.generate(world.prompts[::-1], SAMPLED, world.uniforms[::-1]), found[::-1])
    alone = [engine.generate([prompt], SAMPLED, world.uniforms[[i]])[0] for i, prompt in enumerate(world.prompts)]
    assert_same(alone, found)
    again = [4] * 5
    assert_same(engine.generate([world.prompts[i] for i in again], SAMPLED, world.uniforms[again]), [found[4]] * 5)
    assert engine.generate([], SAMPLED, world.uniforms[:0]) == []


def check_own_numbers(world: World, engine: Engine) -> None:
    """A completion depends on its own numbers alone."""
    expected = engine.generate(world.prompts, SAMPLED, world.uniforms)
    uniforms = world.uniforms.copy()
    uniforms[4, 2] = 1 - uniforms[4, 2]
    found = engine.generate(world.prompts, SAMPLED, uniforms)
    assert not np.array_equal(found[4][2].tokens, expected[4][2].tokens)
    found[4][2] = expected[4][2]
    assert_same(found, expected)


def check_new_weights(world: World, engine: Engine) -> None:
    """After a load tokens and log-probabilities are the new weights', long prompts included; then back again."""
    before = engine.generate(world.prompts, GREEDY, None)
    engine.load(weights(world.other_folder))
    after = engine.generate(world.prompts, GREEDY, None)
    assert_greedy(world, world.other_network, after)
    engine.load(weights(world.folder))
    assert_same(engine.generate(world.prompts, GREEDY, None), before)


def check_stale_weights_show(world: World, engine: Engine) -> None:
    """The learner has moved on and nothing was published: the gap is what stops a run."""
    found = engine.generate(world.prompts, SAMPLED, world.uniforms)
    assert max(gaps(world.network, world.prompts, found)) < CLOSE
    assert min(gaps(world.other_network, world.prompts, found)) > FAR


def check_stale_caches_show(world: World, engine: Engine, without_reset: Callable[[], Any]) -> None:
    """New weights whose prefix cache is not reset: prompts longer than a block are answered with old keys and values."""
    engine.load(weights(world.folder))
    engine.generate(world.prompts, GREEDY, None)
    with without_reset():
        engine.load(weights(world.other_folder))
    found = gaps(world.other_network, world.prompts, engine.generate(world.prompts, GREEDY, None))
    long = [length > 128 for length in LENGTHS]
    assert min(gap for gap, cached in zip(found, long) if cached) > FAR
    assert max(gap for gap, cached in zip(found, long) if not cached) < CLOSE
    engine.load(weights(world.other_folder))
    assert max(gaps(world.other_network, world.prompts, engine.generate(world.prompts, GREEDY, None))) < CLOSE
    engine.load(weights(world.folder))


def check_filters(world: World, engine: Engine) -> None:
    """Filters narrow the draw to the likeliest token here; its score stays untruncated."""
    greedy = engine.generate(world.prompts, GREEDY, None)
    for options in ({"top_k": 1}, {"top_p": 1e-4}, {"min_p": 0.999}):
        sampling = dataclasses.replace(SAMPLED, **options)
        found = engine.generate(world.prompts, sampling, world.uniforms)
        assert_same(found, [group * GROUP for group in greedy])


def check_next_tokens(world: World, engine: Engine) -> None:
    """Of chosen tokens after texts as long as a prompt and its completion, against a plain pass; in any company."""
    rng = np.random.default_rng(5)
    texts = [*world.prompts, rng.integers(4, 320, LONGEST + LIMIT - 1).astype(np.int32)]
    asked = np.array([7, 300, 5, 44, 9], np.int32)
    found = engine.next_token_logprobs(texts, asked)
    assert found.shape == (len(texts), len(asked)) and found.dtype == np.float32
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            logits = world.network(torch.tensor(text[None]).long()).logits[0, -1].double()
        np.testing.assert_allclose(row, logits.log_softmax(-1)[asked.tolist()].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(engine.next_token_logprobs(texts[::-1], asked)[::-1], found, rtol=0, atol=1e-5)
    np.testing.assert_allclose(engine.next_token_logprobs(texts[2:3], asked[:2]), found[2:3, :2], rtol=0, atol=1e-5)
    assert engine.next_token_logprobs([], asked).shape == (0, len(asked))
    with pytest.raises(InputError, match=f"text 0 has {LONGEST + LIMIT} tokens; at most {LONGEST + LIMIT - 1}"):
        engine.next_token_logprobs([np.ones(LONGEST + LIMIT, np.int32)], asked)


def check_refusals(world: World, engine: Engine) -> None:
    """Requests that cannot be answered end with one line."""

    def message(*arguments: Any) -> str:
        with pytest.raises(InputError) as caught:
            engine.generate(*arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    long, empty = np.ones(LONGEST + 1, np.int32), np.ones(0, np.int32)
    assert f"prompt 1 has {LONGEST + 1} tokens; rollout.max_prompt_tokens is {LONGEST}" in message(
        [long[:40], long], GREEDY, None
    )
    assert "prompt 0 has 0 tokens" in message([empty], GREEDY, None)
    for token in (320, -1):
        beyond = np.array([5, token], np.int32)
        assert f"prompt 1: token id {token} is beyond the model's embedding, which has 320 rows" in message(
            [long[:40], beyond], GREEDY, None
        )
        with pytest.raises(InputError, match=f"text 0: token id {token} is beyond"):
            engine.next_token_logprobs([beyond], np.array([7]))
        with pytest.raises(InputError, match=f"tokens to score: token id {token} is beyond"):
            engine.next_token_logprobs([long[:40]], np.array([7, token]))
    assert "random numbers" in message(world.prompts, SAMPLED, None)
    assert "shape" in message(world.prompts, SAMPLED, world.uniforms[:2])
    assert "shape" in message(world.prompts, SAMPLED, world.uniforms[:, :1])


def check_wrong_weights(world: World, engine: Engine) -> None:
    """Missing, unknown and wrongly shaped weights are named; the engine does not go on with half of them."""
    whole = dict(weights(world.folder))
    wrong = {
        "model.norm.weight is missing": {name: w for name, w in whole.items() if name != "model.norm.weight"},
        "no place for the weight extra": whole | {"extra": torch.zeros(1)},
        "asks for (128,)": whole | {"model.norm.weight": torch.zeros(64)},
    }
    for reason, stream in wrong.items():
        with pytest.raises(InputError) as caught:
            engine.load(stream.items())
        assert reason in str(caught.value)
        with pytest.raises(InputError, match="no weights yet"):
            engine.generate(world.prompts, GREEDY, None)
    engine.load(whole.items())
    check_greedy(world, engine)


every_check = pytest.mark.parametrize(
    "check",
    [
        check_greedy,
        check_sampled,
        check_law,
        check_order_and_company,
        check_own_numbers,
        check_new_weights,
        check_stale_weights_show,
        check_filters,
        check_next_tokens,
        check_refusals,
        check_wrong_weights,
    ],
    ids=lambda check: check.__name__.removeprefix("check_"),
)


def draw_in_processes(
    world: World, kind: str, folder: Path, *, processes: int, torch_options: dict[str, Any] | None = None
) -> list[list[list[Completion]]]:
    """What each of several processes was given back for all prompts."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    command = [
        sys.executable,
        *launcher,
        "-m",
        "tests.support.rollout_worker",
        kind,
        str(world.folder.parent),
        str(folder),
        json.dumps(torch_options),
    ]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-4_000:]
    return [read(folder / f"{rank}.npz") for rank in range(processes)]


def write(path: Path, found: list[list[Completion]]) -> None:
    """Keep completions for the process that compares them."""
    arrays = {
        f"{row}/{sample}/{name}": np.asarray(getattr(completion, name))
        for row, group in enumerate(found)
        for sample, completion in enumerate(group)
        for name in ("tokens", "logprobs", "truncated")
    }
    np.savez(path, **arrays)


def read(path: Path) -> list[list[Completion]]:
    """What `write` wrote, of the usual prompts and samples."""
    with np.load(path) as held:
        return [
            [
                Completion(*(held[f"{row}/{sample}/{name}"] for name in ("tokens", "logprobs")),
                           truncated=bool(held[f"{row}/{sample}/truncated"]))
                for sample in range(GROUP)
            ]
            for row in range(len(LENGTHS))
        ]  # fmt: skip
