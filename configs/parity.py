"""Parity: every rung of the ladder on both backends, on tiny random models of every family, against float64.

Two CPU cores, no accelerator; flags choose less, or a GPU:

    creason parity --config=configs/parity.py --workdir=runs/parity
    creason parity --config=configs/parity.py --workdir=runs/parity --rungs=scoring,gradients --families=qwen3
    creason parity --config=configs/parity.py --workdir=runs/fault --inject=layer_swapped
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The run's configuration; fields: parity/config.py."""
    config = ConfigDict()
    config.name = "parity"
    config.seed = 0
    config.steps = 20
    config.dtypes = ("float32", "bfloat16")
    config.device = "cpu"
    return config
