"""An estimate of the device memory that a run needs, from the architecture only: reads no weights, builds no network."""

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

MASTER = 4  # bytes of a float32 number: the dtype of master weights, moments and gradients
BUCKET = 5e8  # elements of ZeRO's gradient bucket on a GPU (DeepSpeed's reduce_bucket_size)


def need(config: RunConfig, model: Path, device: torch.device, workload: Workload, *, trains: bool) -> Need:
    """See `shared.backend.Backend`. Every process must call it."""
    settings, dtype = read_config(model), getattr(torch, config.learner.compute_dtype)
    parameters = sum(math.prod(shape) for shape in weight_shapes(model)[0].values())
    free = memory.free_bytes(device, memory.processes_here())
    _, ways = processes()
    engine = _engine(config, settings, device, parameters, workload, trains=trains)
    place = "each GPU" if device.type == "cuda" else "this machine" if ways == 1 else f"each of {ways} processes"
    if not trains:
        weights = engine.pop("weights")
        return Need(
            memory=Memory(weights=weights, free=free, place=place, **engine), parameters=parameters, checkpoint_bytes=0
        )
    stage, item = config.torch.zero_stage, dtype.itemsize
    own_parameters = parameters / ways
    weights = item * (own_parameters if stage == 3 else parameters) + (MASTER * own_parameters if stage else 0)
    # At stages 0 and 1 a process keeps whole float32 gradients. At stages 2 and 3 it keeps float32 gradients of its own part, and
    # the network's gradients in the compute dtype: whole at stage 2, its own part at stage 3.
    gradients = (
        MASTER * parameters
        if stage in (0, 1)
        else item * (parameters if stage == 2 else own_parameters) + MASTER * own_parameters
    )
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
    estimate = Memory(
        weights=weights + (engine.pop("weights")),
        gradients=gradients,
        optimizer_state=2 * MASTER * (own_parameters if stage else parameters),
        reference=(item * (own_parameters if stage == 3 else parameters) + MASTER * own_parameters) * reference,
        update_temporaries=temporaries,
        free=free,
        place=place,
        **engine,
    )
    return Need(memory=estimate, parameters=parameters, checkpoint_bytes=MASTER * parameters * (3 + reference))


def _engine(
    config: RunConfig, settings: Any, device: torch.device, parameters: int, workload: Workload, *, trains: bool
) -> dict[str, float]:
    """Bytes of the engine on a device, by the fields of `Memory`: its own weights, its caches, and temporary arrays."""
    item = getattr(torch, config.learner.compute_dtype).itemsize
    kind, rollout = engine_kind(config), config.rollout
    if kind == "server":
        return {"weights": 0.0, "kv_cache": 0.0, "least_kv_cache": 0.0, "rollout_temporaries": 0.0}
    if kind == "vllm":
        check_in_process(settings.model_type)
        block, blocks, least_blocks = vllm.cache_blocks(config, settings, workload, longest_text(config, workload))
        weights, caches = float(item * parameters), float(block * blocks)
        # On a GPU vLLM takes the configured fraction of the memory, and frees it while the learner works.
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            weights, caches = 0.0, config.torch.gpu_memory_utilization * total
            return {"weights": 0.0, "kv_cache": caches, "least_kv_cache": caches, "rollout_temporaries": 0.0}
        return {
            "weights": weights,
            "kv_cache": caches,
            "least_kv_cache": float(block * least_blocks),
            "rollout_temporaries": 0.0,
        }
    greedy = Sampling(
        group_size=1, temperature=0.0, max_new_tokens=config.evaluation.max_new_tokens or rollout.max_new_tokens
    )
    drawn = Sampling(
        group_size=config.grpo.group_size, temperature=rollout.temperature, max_new_tokens=rollout.max_new_tokens
    )
    prompt = workload.prompt_tokens
    requests = [(greedy, min(config.evaluation.slots or rollout.slots, workload.questions))]
    if trains:
        requests.append((drawn, min(rollout.slots, config.grpo.questions_per_step)))
    slots = [(hf.slot_bytes(settings, prompt, sampling, item), count) for sampling, count in requests]
    texts = hf.text_bytes(settings, min(rollout.prefill_batch, max(count for _, count in slots)), prompt, item)
    return {
        "weights": float(item * parameters + MASTER * settings.vocab_size * settings.hidden_size),  # a head in float32
        "kv_cache": float(max(size * count for size, count in slots)),
        "least_kv_cache": float(max(size for size, _ in slots)),
        "rollout_temporaries": float(texts),
    }
