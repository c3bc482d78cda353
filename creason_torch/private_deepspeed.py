"""Names of DeepSpeed that it does not promise to keep: all that we use stand here, and nowhere else.

They hold for `VERSION`; tests/test_private_names.py says when another version is installed, or when a name is gone.
"""

from __future__ import annotations

from typing import Any

VERSION = "0.19.8"
SAME_OPERATORS = "0.19."  # versions whose table of prebuilt operators is the one below


def skip_shared_memory_operator(version: str) -> None:
    """Let DeepSpeed not build, for minutes, an operator that training on a CPU does not need. `version`: the installed one."""
    from deepspeed import ops

    if version.startswith(SAME_OPERATORS):
        ops.__compatible_ops__["deepspeed_shm_comm"] = False


def show_moments(optimizer: Any) -> None:
    """Under ZeRO 1 and 2, make each parameter's part of the optimizer state known; DeepSpeed does it at the first step."""
    optimizer._lazy_init_hp_params_optimizer_state()
