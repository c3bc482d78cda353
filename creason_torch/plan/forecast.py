"""What a run needs of a device's memory, from the architecture alone: no weights are read, nothing is built."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from creason_torch.model.decoder import read_config
from creason_torch.plan import memory
from creason_torch.rollout import check_in_process, engine_kind, hf, vllm
from creason_torch.rollout.engine import processes, weight_shapes
from shared.backend import Sampling, Workload, longest_text
from shared.config import RunConfig
from shared.runs import forecast
from shared.runs.forecast import Decoder, Memory, Need

MASTER = 4  # bytes of a float32 number, in which masters, moments and gradients are
BUCKET = 5e8  # numbers that ZeRO gathers gradients in on a GPU (DeepSpeed's reduce_bucket_size)


def need(config: RunConfig, model: Path, device: torch.device, workload: Workload, *, trains: bool) -> Need:
    """See `shared.backend.Backend`. Every process must call it."""
    settings, dtype = read_config(model), getattr(torch, config.learner.compute_dtype)
    numbers = sum(math.prod(shape) for shape in weight_shapes(model)[0].values())
    free = memory.free_bytes(device, memory.processes_here())
    _, ways = processes()
    engine = _engine(config, settings, device, numbers, workload, trains=trains)
    place = "each GPU" if device.type == "cuda" else "this machine" if ways == 1 else f"each of {ways} processes"
    if not trains:
        weights = engine.pop("weights")
        return Need(
            memory=Memory(weights=weights, free=free, place=place, **engine), parameters=numbers, checkpoint_bytes=0
        )
    stage, item = config.torch.zero_stage, dtype.itemsize
    own = numbers / ways
    weights = item * (own if stage == 3 else numbers) + (MASTER * own if stage else 0)
    # Stage 0 steps whole gradients; a process of the others keeps those of its part, beside the network's own.
    gradients = MASTER * numbers if stage in (0, 1) else item * (numbers if stage == 2 else own) + MASTER * own
    layout = forecast.layout_of(config, workload)
    width = min(-(-config.learner.micro_batch_rows // ways), -(-forecast.rows_of(config) // ways))
    sizes = Decoder(settings.num_hidden_layers, settings.hidden_size, settings.intermediate_size,
                    settings.num_attention_heads, settings.vocab_size)  # fmt: skip
    temporaries = forecast.update_temporaries(
        sizes, layout, width, item=item, remat=config.learner.remat, chunk=config.learner.logprob_chunk,
        whole_scores=0 if device.type == "cuda" else math.inf,
    )  # fmt: skip
    if stage and device.type == "cuda":
        temporaries += MASTER * BUCKET
    reference = config.grpo.beta > 0
    found = Memory(
        weights=weights + (engine.pop("weights")),
        gradients=gradients,
        optimizer_state=2 * MASTER * (own if stage else numbers),
        reference=(item * (own if stage == 3 else numbers) + MASTER * own) * reference,
        update_temporaries=temporaries,
        free=free,
        place=place,
        **engine,
    )
    return Need(memory=found, parameters=numbers, checkpoint_bytes=MASTER * numbers * (3 + reference))


def _engine(
    config: RunConfig, settings: Any, device: torch.device, numbers: int, workload: Workload, *, trains: bool
) -> dict[str, float]:
    """Of the engine: its weights beside the learner, its caches, and what is temporary while it generates."""
    item = getattr(torch, config.learner.compute_dtype).itemsize
    kind, rollout = engine_kind(config), config.rollout
    if kind == "server":
        return {"weights": 0.0, "kv_cache": 0.0, "least_kv_cache": 0.0, "rollout_temporaries": 0.0}
    if kind == "vllm":
        check_in_process(settings.model_type)
        block, wanted, least = vllm.cache_blocks(config, settings, workload, longest_text(config, workload))
        weights, caches = float(item * numbers), float(block * wanted)
        if device.type == "cuda":  # it takes the part that it is given, and sleeps while the learner learns
            total = torch.cuda.get_device_properties(device).total_memory
            weights, caches = 0.0, config.torch.gpu_memory_utilization * total
            return {"weights": 0.0, "kv_cache": caches, "least_kv_cache": caches, "rollout_temporaries": 0.0}
        return {
            "weights": weights,
            "kv_cache": caches,
            "least_kv_cache": float(block * least),
            "rollout_temporaries": 0.0,
        }
    greedy = Sampling(
        group_size=1, temperature=0.0, max_new_tokens=config.evaluation.max_new_tokens or rollout.max_new_tokens
    )
    drawn = Sampling(
        group_size=config.grpo.group_size, temperature=rollout.temperature, max_new_tokens=rollout.max_new_tokens
    )
    prompt = workload.prompt_tokens
    asked = [(greedy, min(config.evaluation.slots or rollout.slots, workload.questions))]
    if trains:
        asked.append((drawn, min(rollout.slots, config.grpo.questions_per_step)))
    slots = [(hf.slot_bytes(settings, prompt, sampling, item), count) for sampling, count in asked]
    texts = hf.text_bytes(settings, min(rollout.prefill_batch, max(count for _, count in slots)), prompt, item)
    return {
        "weights": float(item * numbers + MASTER * settings.vocab_size * settings.hidden_size),  # a head in float32
        "kv_cache": float(max(size * count for size, count in slots)),
        "least_kv_cache": float(max(size for size, _ in slots)),
        "rollout_temporaries": float(texts),
    }
