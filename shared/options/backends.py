"""The sections of a run's config that only one backend reads: `jax` and `torch`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from shared.options.checks import at_least, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class JaxConfig:
    """What only the JAX backend reads. But for `moments_dtype`, none of it changes the result beyond rounding.

    The PyTorch backend refuses a config in which `moments_dtype` or `reference_memory` is not the default: it has neither.
    """

    mesh_data: int = 1  # devices along the axis that splits rows and copies weights
    mesh_fsdp: int = -1  # devices along the axis that splits rows and weights; -1: all remaining devices
    mesh_tensor: int = 1  # devices along the axis that splits each layer's products
    # Hidden states between layers split along time over mesh_tensor: the backward pass keeps 1 / mesh_tensor of them.
    sequence_parallel: bool = False
    rollout_mesh_tensor: int = 0  # devices that decode together; 0: the learner's mesh
    # How Adam's moments are stored; computed with in float32. bfloat16 is rounded at random, without bias.
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    # where the reference policy is when it does not score and is not mixed
    reference_memory: Literal["device", "host"] = "device"

    def __post_init__(self) -> None:
        at_least(self, 1, "mesh_data", "mesh_tensor")
        at_least(self, 0, "rollout_mesh_tensor")
        check(self.mesh_fsdp == -1 or self.mesh_fsdp >= 1, "mesh_fsdp", self.mesh_fsdp, "must be at least 1, or -1")


def torch_unread(*, rollout_engine: str) -> dict[str, str]:
    """The fields of the torch section that nothing would read, and for each the reason, as the end of a message."""
    if rollout_engine == "server":
        return {}
    reason = f"only rollout_engine = 'server' reads it, and this is {rollout_engine!r}; leave one of the two out"
    return dict.fromkeys(("server_url", "server_weights"), reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchConfig:
    """What only the PyTorch backend reads; none of it changes the result beyond rounding."""

    zero_stage: Literal[0, 1, 2, 3] = (
        3  # DeepSpeed ZeRO shards: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights
    )
    rollout_engine: Literal["auto", "vllm", "server", "hf"] = "auto"  # auto: vllm where it is installed, else hf
    gpu_memory_utilization: float = 0.45  # share of a GPU that vLLM may fill while it is awake, beside the learner
    server_url: str = ""  # address of a running vLLM server, e.g. http://node8:8000
    server_weights: str = ""  # folder that the learner writes and the server reads new weights from
    publish_bucket_mb: int = 1_024  # megabytes of weights gathered at once on the way to the engine

    def __post_init__(self) -> None:
        at_least(self, 1, "publish_bucket_mb")
        check(0 < self.gpu_memory_utilization < 1, "gpu_memory_utilization", self.gpu_memory_utilization,
              "must be in (0, 1)")  # fmt: skip
        served = self.rollout_engine == "server"
        check(not served or self.server_url.startswith("http"), "server_url", self.server_url,
              "rollout_engine = 'server' needs the server's address, e.g. http://localhost:8000")  # fmt: skip
        check(not served or bool(self.server_weights), "server_weights", self.server_weights,
              "rollout_engine = 'server' needs a folder that learner and server both see")  # fmt: skip
        for name, reason in torch_unread(rollout_engine=self.rollout_engine).items():
            check(not getattr(self, name), name, getattr(self, name), reason)
