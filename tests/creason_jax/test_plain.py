"""The plain forward pass by which an engine is judged, against Hugging Face in float64; and engines that it finds wrong."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from creason_jax.backend import Backend
from shared.backend import Completion
from shared.errors import SyncError
from shared.evaluation.engine_check import check_by_file, check_by_learner
from tests.support.families import SWITCH, tiny_variant
from tests.support.tiny import run_config

pytestmark = pytest.mark.slow

LIMIT = 8


def some(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(4, 320, length).astype(np.int32)


PROMPTS = [some(length) for length in (SWITCH - LIMIT, 5, 1, 23)]
COMPLETIONS = [Completion(some(length), np.zeros(length, np.float32), True) for length in (LIMIT, 3, 7, 1)]


def started(folder: Any, **sections: Any) -> tuple[Any, Backend, Any]:
    config = run_config(rollout={"max_prompt_tokens": SWITCH - LIMIT, "max_new_tokens": LIMIT}, **sections)
    ways = config.jax.mesh_data * config.jax.mesh_fsdp * config.jax.mesh_tensor
    backend = Backend(config, devices=jax.devices()[:ways])
    engine = backend.engine(config, folder, stop_tokens=[3])
    backend.load(engine, folder)
    return config, backend, engine


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("phi3 partial", {}),
        ("phi4 mini", {"jax": {"mesh_data": 2, "mesh_fsdp": 2, "mesh_tensor": 2}}),
        ("llama3", {"grpo": {"score_temperature": "sampling"}}),
        ("qwen2 tied", {"jax": {"mesh_fsdp": 3}}),
        ("qwen3 biased", {}),
    ],
)
def test_logprobs_are_those_of_hugging_face(tmp_path, variant, options):
    sized = {"hidden_size": 96, "vocab_size": 321} if variant == "qwen2 tied" else {}
    tiny_variant(variant, **sized).save_pretrained(tmp_path, max_shard_size="50KB")
    _, backend, engine = started(tmp_path, **options)
    found = backend.plain_logprobs(engine, tmp_path, PROMPTS, COMPLETIONS)
    network = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    temperature = 0.9 if "grpo" in options else 1.0
    for prompt, completion, scored in zip(PROMPTS, COMPLETIONS, found, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, completion.tokens])).long()
        with torch.no_grad():
            logits = network(ids[None]).logits[0, len(prompt) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(1, ids[len(prompt) :, None])[:, 0]
        np.testing.assert_allclose(scored, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_engines_pass_and_wrong_ones_do_not(tmp_path, dtype):
    for seed, name in enumerate(("one", "other")):
        tiny_variant("qwen2 tied", seed=seed).save_pretrained(tmp_path / name)
    folder = tmp_path / "one"
    config, backend, engine = started(folder, learner={"compute_dtype": dtype})
    learner = backend.learner(config, folder, optimizer=config.optimizer, steps=1, reference=False)
    judges = ((check_by_file, folder), (check_by_learner, learner))
    for check, judge in judges:
        assert check(config, backend, engine, PROMPTS, judge)["gap"] < {"float32": 1e-5, "bfloat16": 0.02}[dtype]
    backend.load(engine, tmp_path / "other")  # as if a publish had not arrived
    for check, judge in judges:
        with pytest.raises(SyncError, match="jax Engine"):
            check(config, backend, engine, PROMPTS, judge)
