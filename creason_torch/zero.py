"""DeepSpeed in one place: its configuration, the process group, and parameters and moments whole, whatever shards them."""

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
BFLOAT16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux calls them
PERSISTENT_PARAMS = 100_000  # ZeRO-3 keeps smaller parameters whole on every process; DeepSpeed's default


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def fast_bfloat16() -> bool:
    """Whether this device has units for products of bfloat16: a GPU since Ampere, a CPU with AVX512_BF16, AMX or Arm's bf16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:  # not Linux
        return False
    words = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return not BFLOAT16_UNITS.isdisjoint(words)


def start_processes() -> None:
    """Join the process group that a launcher's environment describes, or make one of this process alone."""
    # Without a GPU, DeepSpeed would look for other accelerators, and build an operator that training does not need: minutes.
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not torch.cuda.is_available():
        private_deepspeed.skip_shared_memory_operator(importlib.metadata.version("deepspeed"))
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
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
    """End this process with `code`, after what was registered to be done at its end.

    Python itself must not end it. DeepSpeed keeps its process groups for ever, and with them the threads of Gloo, one of
    which may still hold the tensors of the last collective. Where such a thread lets go of them while Python takes itself
    down, PyTorch aborts the process, whose work was done: https://github.com/pytorch/pytorch/issues/190489
    """
    if code == 0 and dist.is_initialized():
        dist.destroy_process_group()  # NCCL finishes what is under way
    private_python.run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def torch_dtype(config: RunConfig) -> torch.dtype:
    """The type that a run computes in. Raises InputError for `auto`, which a backend has to decide first."""
    if config.learner.compute_dtype == "auto":
        raise InputError(
            "learner.compute_dtype = 'auto': not decided yet; a Backend's `resolved` does, or give the type"
        )
    return getattr(torch, config.learner.compute_dtype)


def deepspeed_config(config: RunConfig, optimizer: OptimizerConfig | None) -> dict[str, Any]:
    """DeepSpeed's configuration for the learner, or for a policy that is only read (`optimizer` None).

    Accumulation is ours: the learner says which backward pass is a step's last, and divides by the whole batch's counts
    once, so DeepSpeed is told of one micro-batch and divides by processes only. Raises InputError for combinations that
    lose precision or do not exist.
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
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": bfloat16},
        "steps_per_print": None,
    }
    if optimizer is not None:
        found["gradient_clipping"] = optimizer.max_grad_norm
        # torch's own AdamW: nothing is compiled, and its arithmetic is the one that the tests compare with.
        found["optimizer"] = {
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
            # Sums over micro-batches and over processes in float32.
            found["data_types"] = {"grad_accum_dtype": "fp32"}
            found["communication_data_type"] = "fp32"
    return found


def initialize(**arguments: Any) -> Any:
    """`deepspeed.initialize` without what it prints about memory."""
    import deepspeed

    with contextlib.redirect_stdout(io.StringIO()):
        return deepspeed.initialize(**arguments)


def sharded(settings: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """While a network is built in this context under ZeRO-3, each process allocates only its own slices."""
    import deepspeed

    if settings["zero_optimization"]["stage"] != 3:
        return contextlib.nullcontext()
    # The dtype is that of the settings: given by name, DeepSpeed 0.19 ignores it on a CPU without float16, and rounds to
    # bfloat16.
    return deepspeed.zero.Init(config_dict_or_path=dict(settings))


def gathered(weights: Mapping[str, nn.Parameter], bucket_bytes: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter whole, in the network's own dtype; under ZeRO-3 at most about `bucket_bytes` are gathered at once.

    Every process must consume the stream to its end.
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
    """Put `value` into a parameter of the network itself, sharded or not."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([param], modifier_rank=0), torch.no_grad():
        if not is_sharded(param) or dist.get_rank() == 0:
            param.data.copy_(value.reshape(param.shape))


def is_sharded(param: nn.Parameter) -> bool:
    """True for a ZeRO-3 parameter."""
    return hasattr(param, "ds_id")


def numel(param: nn.Parameter) -> int:
    """Elements of the whole parameter."""
    return getattr(param, "ds_numel", param.numel())


def shape(param: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter."""
    return getattr(param, "ds_shape", param.shape)


def master(param: nn.Parameter) -> torch.Tensor:
    """The whole float32 master of a learner's parameter, on every process."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = safe_get_full_fp32_param(param)
    return param.detach().clone() if found is None else found.reshape(shape(param))


def set_master(param: nn.Parameter, value: torch.Tensor) -> None:
    """Set the master and the network's own copy of it."""
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
    """Set one moment of a parameter; `make_moments` comes first."""
    from deepspeed.utils import safe_set_full_optimizer_state

    if not engine.zero_optimization():
        engine.optimizer.state[param][key].copy_(value)
    else:
        safe_set_full_optimizer_state(param, _padded(param, value), key)


def make_moments(engine: Any, step: int) -> None:
    """Create the optimizer state of every parameter, as if `step` updates had been made. Torch makes it at the first one."""
    optimizer = engine.optimizer
    base = getattr(optimizer, "optimizer", optimizer)
    for held in _held_by(engine):
        base.state[held] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.zeros_like(held),
            "exp_avg_sq": torch.zeros_like(held),
        }
    if engine.zero_optimization_stage() in (1, 2):
        private_deepspeed.show_moments(optimizer)


def step(engine: Any) -> float:
    """One step of the optimizer; returns the gradient's global norm before clipping."""
    if engine.zero_optimization():
        engine.step()
        return float(engine.get_global_grad_norm())
    # Without ZeRO, DeepSpeed clips but does not say at what, and drops the gradients.
    gradients = [param.grad for param in engine.module.parameters() if param.grad is not None]
    # Squares summed in float64: in float32 a large embedding's sum is off by 1e-5.
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in gradients]
    norm = float(torch.stack(norms).norm())
    engine.step()
    return norm


class Slices:
    """Float32 tensors, of each of which a process holds one slice: the flattened tensor cut by processes."""

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self.shapes = {name: shape(param) for name, param in weights.items()}
        self.own: dict[str, torch.Tensor] = {}

    def set(self, name: str, whole: torch.Tensor) -> None:
        """Keep this process's slice of `whole`."""
        begin, end = bounds(whole.numel())
        self.own[name] = whole.reshape(-1)[begin:end].float().clone()

    def whole(self, name: str) -> torch.Tensor:
        """Put the slices of all processes together, on every process."""
        size = self.shapes[name].numel()
        width = -(-size // dist.get_world_size())
        own = nn.functional.pad(self.own[name], (0, width - self.own[name].numel()))
        return from_all(own)[:size].reshape(self.shapes[name])


def from_all(own: torch.Tensor) -> torch.Tensor:
    """The tensors of all processes, of one shape, joined along their first dimension in the order of processes."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)


def bounds(size: int) -> tuple[int, int]:
    """Begin and end of this process's slice of a flattened tensor of `size` elements."""
    width = -(-size // dist.get_world_size())
    return min(size, width * dist.get_rank()), min(size, width * (dist.get_rank() + 1))


def _held_by(engine: Any) -> list[torch.Tensor]:
    """The float32 tensors that the optimizer itself steps: parameters, or a process's flat part of them."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return [param for group in optimizer.param_groups for param in group["params"]]
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    return [param for group in optimizer.optimizer.param_groups for param in group["params"]]


def _padded(param: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """Flat, and for ZeRO-3 as long as its slices together are."""
    flat = value.reshape(-1)
    if not is_sharded(param):
        return flat
    whole = param.ds_tensor.ds_numel * dist.get_world_size()  # type: ignore[attr-defined]
    return nn.functional.pad(flat, (0, int(whole) - flat.numel()))
