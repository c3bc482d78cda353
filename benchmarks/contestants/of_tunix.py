"""Tunix: its sampler, its scoring, and its trainer with its GRPO loss, on its own Qwen2."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import contest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params
from tunix.rl import algo_core, common
from tunix.rl.grpo.grpo_learner import GRPOConfig, TrainExample
from tunix.rl.trainer import Trainer
from tunix.sft.peft_trainer import TrainingConfig

PAD, NEVER = 0, 4_095  # NEVER ends a completion and is forbidden, so that all completions have the full length
# Flax uses the graph of modules as a key of JAX's caches. It holds this configuration, which has no hash in Tunix.
qwen2.ModelConfig.__hash__ = object.__hash__  # type: ignore[method-assign]


class Numbers:
    """A tokenizer whose text is token numbers."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: list[int], **_: Any) -> str:
        return " ".join(map(str, tokens))

    def bos_id(self) -> int:
        return 1

    def eos_id(self) -> int:
        return NEVER

    def pad_id(self) -> int:
        return PAD


def phases(work: contest.Work) -> Mapping[str, Callable[[], Any]]:
    """The phases, all rows in one micro-batch."""
    group, completion = work.completions.shape[1:]
    values = json.loads((work.model / "config.json").read_text(encoding="utf-8"))
    shape = qwen2.ModelConfig(
        num_layers=values["num_hidden_layers"],
        vocab_size=values["vocab_size"],
        embed_dim=values["hidden_size"],
        hidden_dim=values["intermediate_size"],
        num_heads=values["num_attention_heads"],
        head_dim=values["hidden_size"] // values["num_attention_heads"],
        num_kv_heads=values["num_key_value_heads"],
        rope_theta=int(values.get("rope_theta") or values["rope_parameters"]["rope_theta"]),
        norm_eps=values["rms_norm_eps"],
        use_tied_embedding=values["tie_word_embeddings"],
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    policy, reference = (
        params.create_model_from_safe_tensors(str(work.model), shape, mesh, dtype=jnp.float32) for _ in range(2)
    )
    settings = GRPOConfig(num_generations=group, beta=contest.BETA, epsilon=contest.EPSILON)
    settings.temperature = 1.0
    trainer = Trainer(policy, optax.adamw(contest.LEARNING_RATE), TrainingConfig(eval_every_n_steps=10_000), dict)
    trainer.with_loss_fn(
        lambda model, train_example: algo_core.grpo_loss_fn(model, train_example, settings, PAD, NEVER), has_aux=True
    )
    trainer.with_gen_model_input_fn(lambda example: {"train_example": example})
    step, _ = trainer.jit_train_and_eval_step()
    prompts, completions = jnp.asarray(work.repeated), jnp.asarray(work.rows)
    graph, state = nnx.split(reference)

    def scoring() -> jax.Array:
        logprobs = common.compute_per_token_logps(graph, state, prompts, completions, pad_id=PAD, eos_id=NEVER)
        return jax.block_until_ready(logprobs)

    example = TrainExample(
        prompt_ids=prompts,
        prompt_mask=jnp.ones_like(prompts),
        completion_ids=completions,
        completion_mask=jnp.ones_like(completions),
        advantages=jnp.asarray(work.advantages.reshape(-1), jnp.float32),
        ref_per_token_logps=scoring(),
        old_per_token_logps=None,
    )
    longest = work.prompts.shape[1] + 1  # Tunix puts a begin-of-sequence token before the prompt
    sampler = Sampler(
        policy,
        Numbers(),
        CacheConfig(
            cache_size=longest + completion,
            num_layers=shape.num_layers,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
        ),
    )
    texts = [" ".join(map(str, prompt)) for prompt in work.repeated]

    def rollout() -> None:
        output = sampler(
            texts,
            max_generation_steps=completion,
            max_prompt_length=longest,
            temperature=contest.TEMPERATURE,
            top_p=1.0,
            forbidden_tokens=[NEVER],
            eos_tokens=[NEVER],
            return_logprobs=True,
        )
        assert all(len(tokens) == completion for tokens in output.tokens)

    return {
        contest.ROLLOUT: rollout,
        contest.SCORING: scoring,
        contest.UPDATE: lambda: jax.block_until_ready(step(example)),
    }


if __name__ == "__main__":
    contest.answer(phases)
