"""Tiny Phi-3 models made by Transformers, and run configurations that go with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Phi3Config, Phi3ForCausalLM

from shared.config import RunConfig, validate
from shared.grpo import GroupBatch

EOS = 3  # the stop token of the tiny models
SECTIONS: dict[str, dict[str, Any]] = {
    "grpo": {"group_size": 2, "questions_per_step": 2, "steps": 4},
    "rollout": {"max_prompt_tokens": 32, "max_new_tokens": 12, "slots": 3, "prefill_batch": 2, "decode_steps": 4},
    "learner": {"compute_dtype": "float32", "logprob_chunk": 16, "micro_batch_rows": 2},
    "jax": {"mesh_fsdp": 1},
}


def tiny_phi3(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Phi3ForCausalLM:
    """A random Phi-3 on the CPU in evaluation mode, saved into `folder` (config.json, safetensors).

    `overrides` are fields of `Phi3Config`. `dtype` is that of the saved weights and of the model that is returned. Norm
    scales are random too, so that one that is left out or put in the wrong place shows.
    """
    fields: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "original_max_position_embeddings": 32_768,
        "initializer_range": 0.08,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "attn_implementation": "eager",
    }
    config = Phi3Config(**(fields | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Phi3ForCausalLM(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" in name:
                    weight.copy_(1 + 0.2 * torch.randn_like(weight))
    model = model.to(dtype)
    model.save_pretrained(folder)
    return model


def hugging_face_logprobs(network: Phi3ForCausalLM, batch: GroupBatch) -> torch.Tensor:
    """`[completions, C]` of a batch with one completion to a row, without the gap between prompt and completion."""
    prompt, longest = batch.layout.prompt, batch.layout.completion
    rows = []
    for row in range(batch.tokens.shape[0]):
        there = batch.groups[row] >= 0
        read = int(there[:prompt].sum())
        tokens = torch.tensor(batch.tokens[row][there], dtype=torch.long)
        logprobs = torch.log_softmax(network(tokens[None]).logits[0], dim=-1)
        own = logprobs[read - 1 : -1].gather(1, tokens[read:, None])[:, 0]
        rows.append(torch.nn.functional.pad(own, (0, longest - len(own))))
    return torch.stack(rows)


def change_config(folder: Path, **changes: Any) -> None:
    """Set fields of `folder/config.json`."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def run_config(**sections: dict[str, Any]) -> RunConfig:
    """A validated RunConfig with small float32 defaults on one device; `sections` add to or replace fields of each."""
    merged = {name: SECTIONS.get(name, {}) | sections.get(name, {}) for name in SECTIONS.keys() | sections.keys()}
    return validate({"name": "tiny", **merged})
