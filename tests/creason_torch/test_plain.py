"""The plain forward pass by which an engine is judged, against Hugging Face in float64; and engines that it finds wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from creason_torch.backend import Backend
from creason_torch.rollout.hf import HfEngine
from shared.backend import Completion
from shared.errors import InputError, SyncError
from shared.evaluation.engine_check import check_by_file, check_by_learner
from tests.support.families import SWITCH, tiny_variant
from tests.support.tiny import run_config

pytestmark = pytest.mark.slow

LIMIT = 8
VARIANTS = [
    "phi3 partial",
    "phi4 mini",
    "llama3",
    "llama linear tied",
    "llama biased",
    "qwen2 tied",
    "qwen3 biased",
    "mistral",
    "olmo2",
    "olmo2 biased",
]


def some(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(4, 320, length).astype(np.int32)


PROMPTS = [some(length) for length in (SWITCH - LIMIT, 5, 1, 23)]
COMPLETIONS = [Completion(some(length), np.zeros(length, np.float32), True) for length in (LIMIT, 3, 7, 1)]


def options(dtype: str = "float32", **sections: Any) -> Any:
    return run_config(
        rollout={"max_prompt_tokens": SWITCH - LIMIT, "max_new_tokens": LIMIT},
        torch={"rollout_engine": "hf", "zero_stage": 1},
        learner={"compute_dtype": dtype},
        **sections,
    )


def started(config: Any, folder: Any) -> tuple[Backend, Any]:
    backend = Backend(config)
    engine = backend.engine(config, folder, stop_tokens=[3])
    backend.load(engine, folder)
    return backend, engine


@pytest.mark.parametrize("temperature", [1.0, 0.9])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logprobs_are_those_of_hugging_face(tmp_path, variant, temperature):
    tiny_variant(variant).save_pretrained(tmp_path, max_shard_size="50KB")  # several files
    config = options(grpo={"score_temperature": "one" if temperature == 1 else "sampling"})
    backend, engine = started(config, tmp_path)
    found = backend.plain_logprobs(engine, tmp_path, PROMPTS, COMPLETIONS)
    network = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    for prompt, completion, scored in zip(PROMPTS, COMPLETIONS, found, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, completion.tokens])).long()
        with torch.no_grad():
            logits = network(ids[None]).logits[0, len(prompt) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(1, ids[len(prompt) :, None])[:, 0]
        np.testing.assert_allclose(scored, expected, rtol=0, atol=1e-5)
        assert scored.dtype == np.float32


def test_the_files_are_read_and_not_the_engine(tmp_path):
    """Neither its weights nor those of its network; a model that lacks a tensor ends with one line."""
    for seed, name in enumerate(("one", "other")):
        tiny_variant("qwen2 tied", seed=seed).save_pretrained(tmp_path / name)
    backend, engine = started(options(), tmp_path / "one")
    before = backend.plain_logprobs(engine, tmp_path / "one", PROMPTS, COMPLETIONS)
    backend.load(engine, tmp_path / "other")
    after = backend.plain_logprobs(engine, tmp_path / "one", PROMPTS, COMPLETIONS)
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "one" / "other.safetensors")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        backend.plain_logprobs(engine, tmp_path / "one", PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_engines_pass_and_wrong_ones_do_not(tmp_path, dtype, monkeypatch):
    for seed, name in enumerate(("one", "other")):
        tiny_variant("qwen2 tied", seed=seed).save_pretrained(tmp_path / name)
    config, folder = options(dtype), tmp_path / "one"
    backend, engine = started(config, folder)
    learner = backend.learner(config, folder, optimizer=config.optimizer, steps=1, reference=False)

    def check() -> list[float]:
        ours = check_by_file(config, backend, engine, PROMPTS, folder)
        return [float(found["gap"]) for found in (ours, check_by_learner(config, backend, engine, PROMPTS, learner))]

    def refused() -> None:
        for check, judge in ((check_by_file, folder), (check_by_learner, learner)):
            with pytest.raises(SyncError, match="torch HfEngine"):
                check(config, backend, engine, PROMPTS, judge)

    assert max(check()) < {"float32": 1e-5, "bfloat16": 0.02}[dtype]
    backend.load(engine, tmp_path / "other")  # as if a publish had not arrived
    refused()
    backend.load(engine, folder)
    check()
    engine.head = engine.head.roll(1, 0)  # a head that is not its table's
    refused()
    backend.load(engine, folder)
    prefill = HfEngine._prefill

    def forgetful(self: HfEngine, prompts: Any, caches: Any) -> torch.Tensor:
        logits = prefill(self, prompts, caches)
        caches.prompt_v = [values * 0 for values in caches.prompt_v]
        return logits

    monkeypatch.setattr(HfEngine, "_prefill", forgetful)  # right weights, wrong caches: only decoding shows it
    refused()
