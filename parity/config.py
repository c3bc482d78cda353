"""What a parity run checks."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from shared.errors import InputError
from shared.options.checks import check
from shared.options.reading import kinds_in_words


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Which rungs, on which families, in which precisions and on what; names: `parity.runner`, `parity.families`."""

    name: str = "parity"  # of the run, in its report
    seed: int = 0  # of models and batches
    rungs: tuple[str, ...] = ()  # rungs of the ladder; empty: all
    families: tuple[str, ...] = ()  # families of models; empty: all
    dtypes: tuple[str, ...] = ("float32", "bfloat16")  # number formats
    engines: tuple[str, ...] = ("jax", "hf", "vllm")  # engines that generate; vllm: where it is installed
    device: str = "cpu"  # cpu, or cuda: both backends on the first GPU
    steps: int = 20  # optimizer steps of the trajectories that are compared

    def __post_init__(self) -> None:
        known = {"float32", "bfloat16"}
        check(bool(self.dtypes) and set(self.dtypes) <= known, "dtypes", self.dtypes, "must be of float32, bfloat16")
        engines = {"jax", "hf", "vllm"}
        check(set(self.engines) <= engines, "engines", self.engines, f"must be of {', '.join(sorted(engines))}")
        check(self.device in ("cpu", "cuda"), "device", self.device, "must be cpu or cuda")
        check(self.steps >= 3, "steps", self.steps, "must be at least 3")


def validate(values: Mapping[str, Any]) -> ParityConfig:
    """Turn a mapping into a ParityConfig. Raises InputError naming the field that is wrong."""
    hints = typing.get_type_hints(ParityConfig)
    arguments = {}
    for name, value in dict(values).items():
        if name not in hints:
            raise InputError(f"unknown field {name}; known: {', '.join(hints)}")
        if hints[name] not in (str, int):
            check(isinstance(value, (list, tuple)), name, value, "must be a list of names")
            value = tuple(value)
        else:
            check(type(value) is hints[name], name, value, f"must be {kinds_in_words([hints[name]])}")
        arguments[name] = value
    return ParityConfig(**arguments)
