"""DeepSpeed in one place: its configuration, the process group, and access to whole parameters and moments at any ZeRO stage."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from creason_torch import private_deepspeed, private_python
from shared.config import OptimizerConfig, RunConfig
from shared.errors import InputError

MOMENTS = ("exp_avg", "exp_avg_sq")
CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}  # Linux's names of CPU features
PERSISTENT_PARAMS = 100_000  # elements; ZeRO-3 keeps smaller parameters whole on every process; DeepSpeed's default


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def fast_bfloat16() -> bool:
    """Whether the device computes bfloat16 in hardware: a GPU of the Ampere generation or later, or a CPU with AVX512_BF16, AMX
    or Arm's bf16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:  # not Linux
        return False
    words = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return not BFLOAT16_UNITS.isdisjoint(words)


def start_processes() -> None:
    """Join the process group that the launcher's environment variables describe, or make a group of this process alone."""
    # Without a GPU, DeepSpeed would look for other accelerators, and compile an operator that training does not need (minutes).
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not torch.cuda.is_available():
        private_deepspeed.skip_shared_memory_operator(importlib.metadata.version("deepspeed"))
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_init_required=False, verbose=False)


def end_process(code: int) -> NoReturn:
    """End this process with exit code `code`, after running the functions registered with `atexit`.

    A normal exit of Python could abort the process after its work is done. DeepSpeed never frees its process groups, so Gloo's
    threads go on, and one of them may still hold tensors of the last collective. If it frees them while Python shuts down,
    PyTorch aborts: https://github.com/pytorch/pytorch/issues/190489
    """
    if code == 0 and dist.is_initialized():
        dist.destroy_process_group()  # NCCL finishes its running collectives
    private_python.run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def torch_dtype(config: RunConfig) -> torch.dtype:
    """The compute dtype of a run. Raises InputError for `auto`, which `Backend.resolved` must replace first."""
    if config.learner.compute_dtype == "auto":
        raise InputError(
            "learner.compute_dtype = 'auto': not decided yet; call `Backend.resolved` first, or give the dtype"
        )
    return getattr(torch, config.learner.compute_dtype)


def deepspeed_config(config: RunConfig, optimizer: OptimizerConfig | None) -> dict[str, Any]:
    """DeepSpeed's configuration for the learner, or (with `optimizer` None) for a reference that is never updated.

    The learner itself handles gradient accumulation: it tells DeepSpeed which backward pass is the last one of a step, and it
    divides once, by the counts of the whole batch. So DeepSpeed is configured for one micro-batch, and divides only by the
    number of processes. Raises InputError for a combination that would lose precision.
    """
    stage, bfloat16 = config.torch.zero_stage, torch_dtype(config) == torch.bfloat16
    if stage == 0 and bfloat16 and optimizer is not None:
        raise InputError(
            "torch.zero_stage = 0: in bfloat16 it would keep no float32 master weights; use 1, 2 or 3, or "
            "learner.compute_dtype = 'float32'"
        )
    if optimizer is None:
        stage = 3 if stage == 3 else 0
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": PERSISTENT_PARAMS}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": bfloat16},
        "steps_per_print": None,
    }
    if optimizer is not None:
        settings["gradient_clipping"] = optimizer.max_grad_norm
        # PyTorch's own AdamW: it needs no compiled operator, and the tests compare with its arithmetic.
        settings["optimizer"] = {
            "type": "AdamW",
            "params": {
                "lr": optimizer.learning_rate,
                "betas": [optimizer.b1, optimizer.b2],
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                "torch_adam": True,
            },
        }
        if bfloat16:
            # Gradients are summed over micro-batches and over processes in float32.
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
            settings["communication_data_type"] = "fp32"
    return settings


def initialize(**arguments: Any) -> Any:
    """Call `deepspeed.initialize`, and hide the lines on memory that it prints."""
    import deepspeed

    with contextlib.redirect_stdout(io.StringIO()):
        return deepspeed.initialize(**arguments)


def sharded(settings: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """A context for building a network: under ZeRO-3, each process allocates only its own slices of the parameters."""
    import deepspeed

    if settings["zero_optimization"]["stage"] != 3:
        return contextlib.nullcontext()
    # DeepSpeed takes the dtype from the settings. Its argument `dtype` must not be used: on a CPU without float16, DeepSpeed 0.19
    # ignores it and rounds to bfloat16.
    return deepspeed.zero.Init(config_dict_or_path=dict(settings))


def gathered(weights: Mapping[str, nn.Parameter], bucket_bytes: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and whole tensor of each parameter, in the network's dtype. Under ZeRO-3 about `bucket_bytes` are gathered at a time.

    Every process must iterate to the end.
    """
    import deepspeed

    bucket: dict[str, nn.Parameter] = {}
    size = 0
    for name, param in weights.items():
        bucket[name] = param
        size += numel(param) * param.element_size()
        if size >= bucket_bytes:
            with deepspeed.zero.GatheredParameters(list(bucket.values())):
                yield from ((key, value.detach()) for key, value in bucket.items())
            bucket, size = {}, 0
    with deepspeed.zero.GatheredParameters(list(bucket.values())):
        yield from ((key, value.detach()) for key, value in bucket.items())


def write(param: nn.Parameter, value: torch.Tensor) -> None:
    """Copy `value` into a parameter of the network, sharded or not. Does not change the optimizer's master weight."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([param], modifier_rank=0), torch.no_grad():
        if not is_sharded(param) or dist.get_rank() == 0:
            param.data.copy_(value.reshape(param.shape))


def is_sharded(param: nn.Parameter) -> bool:
    """Whether ZeRO-3 shards the parameter."""
    return hasattr(param, "ds_id")


def numel(param: nn.Parameter) -> int:
    """Number of elements of the whole parameter."""
    return getattr(param, "ds_numel", param.numel())


def shape(param: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter."""
    return getattr(param, "ds_shape", param.shape)


def master(param: nn.Parameter) -> torch.Tensor:
    """The whole float32 master weight of a learner's parameter, on every process."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param(param)
    return param.detach().clone() if whole is None else whole.reshape(shape(param))


def set_master(param: nn.Parameter, value: torch.Tensor) -> None:
    """Set the master weight of a parameter, and the network's own copy of it."""
    from deepspeed.utils import safe_set_full_fp32_param

    value = value.to(param.device, torch.float32)
    safe_set_full_fp32_param(param, _padded(param, value))
    write(param, value)


def moment(engine: Any, param: nn.Parameter, key: str) -> torch.Tensor:
    """The whole `exp_avg` or `exp_avg_sq` of a parameter, on every process."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if not engine.zero_optimization():
        return engine.optimizer.state[param][key]
    return safe_get_full_optimizer_state(param, key).reshape(shape(param))


def set_moment(engine: Any, param: nn.Parameter, key: str, value: torch.Tensor) -> None:
    """Set one moment of a parameter. Call `make_moments` first."""
    from deepspeed.utils import safe_set_full_optimizer_state

    if not engine.zero_optimization():
        engine.optimizer.state[param][key].copy_(value)
    else:
        safe_set_full_optimizer_state(param, _padded(param, value), key)


def make_moments(engine: Any, step: int) -> None:
    """Create the optimizer state of every parameter, as after `step` updates, with moments of 0.

    PyTorch itself creates it only at the first update."""
    optimizer = engine.optimizer
    base = getattr(optimizer, "optimizer", optimizer)
    for tensor in _held_by(engine):
        base.state[tensor] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.zeros_like(tensor),
            "exp_avg_sq": torch.zeros_like(tensor),
        }
    if engine.zero_optimization_stage() in (1, 2):
        private_deepspeed.show_moments(optimizer)


def step(engine: Any) -> float:
    """Make one optimizer step; returns the global norm of the gradient before clipping."""
    if engine.zero_optimization():
        engine.step()
        return float(engine.get_global_grad_norm())
    # Without ZeRO, DeepSpeed clips the gradients but does not report their norm, and then frees them: so the norm is taken first.
    gradients = [param.grad for param in engine.module.parameters() if param.grad is not None]
    # The squares are summed in float64: in float32 the sum over a large embedding has an error of 1e-5.
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in gradients]
    norm = float(torch.stack(norms).norm())
    engine.step()
    return norm


class Slices:
    """Float32 tensors that are split over the processes: each process holds one slice of each flattened tensor."""

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self.shapes = {name: shape(param) for name, param in weights.items()}
        self.own: dict[str, torch.Tensor] = {}

    def set(self, name: str, whole: torch.Tensor) -> None:
        """Keep this process's slice of `whole`."""
        begin, end = bounds(whole.numel())
        self.own[name] = whole.reshape(-1)[begin:end].float().clone()

    def whole(self, name: str) -> torch.Tensor:
        """The whole tensor, gathered from all processes, on every process."""
        size = self.shapes[name].numel()
        width = -(-size // dist.get_world_size())
        own = nn.functional.pad(self.own[name], (0, width - self.own[name].numel()))
        return from_all(own)[:size].reshape(self.shapes[name])


def from_all(own: torch.Tensor) -> torch.Tensor:
    """All-gather: the tensors of all processes, concatenated along their first dimension in the order of ranks.

    `own` must have the same shape in every process."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)


def bounds(size: int) -> tuple[int, int]:
    """Begin and end of this process's slice of a flattened tensor of `size` elements."""
    width = -(-size // dist.get_world_size())
    return min(size, width * dist.get_rank()), min(size, width * (dist.get_rank() + 1))


def _held_by(engine: Any) -> list[torch.Tensor]:
    """The float32 tensors that the optimizer updates: the parameters, or this process's flat parts of them."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return [param for group in optimizer.param_groups for param in group["params"]]
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    return [param for group in optimizer.optimizer.param_groups for param in group["params"]]


def _padded(param: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """`value` flattened, and under ZeRO-3 padded to the total length of its slices."""
    flat = value.reshape(-1)
    if not is_sharded(param):
        return flat
    whole = param.ds_tensor.ds_numel * dist.get_world_size()  # type: ignore[attr-defined]
    return nn.functional.pad(flat, (0, int(whole) - flat.numel()))
