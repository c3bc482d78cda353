"""What the three engines share: checks of requests and of new weights, and splitting a request over processes."""

from __future__ import annotations

import abc
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from creason_torch import zero
from creason_torch.model.decoder import read_config
from creason_torch.plan import memory
from creason_torch.rollout import readback
from shared.backend import Completion, Probe, Sampling, Workload, check_request, check_scored, check_stop_tokens
from shared.config import RunConfig
from shared.errors import InputError
from shared.policy import weight_files


class Drawn(NamedTuple):
    """Completions as arrays: tokens `[prompts, G, C]` int32, logprobs `[prompts, G, C]` float32, lengths `[prompts, G]` int32."""

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray

    @classmethod
    def empty(cls, prompts: int, sampling: Sampling) -> Drawn:
        """Arrays of zeros for the completions of so many prompts."""
        shape = (prompts, sampling.group_size, sampling.max_new_tokens)
        return cls(np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape[:2], np.int32))


class Engine(abc.ABC):
    """Twin of the JAX engine; see `shared.backend.RolloutEngine` for the contract.

    In a run of several processes, each process calls `generate` with all prompts, draws the completions of its own contiguous
    part of them, and receives the completions of all.
    """

    whole_tensors = False

    def __init__(
        self,
        config: RunConfig,
        model: Path,
        *,
        stop_tokens: Sequence[int],
        device: torch.device,
        workload: Workload | None = None,
    ):
        self.config = config
        self.model = model
        self.stop_tokens = tuple(int(token) for token in stop_tokens)
        self.device = device
        self.workload = workload or Workload.of_limits(config)
        self.free_bytes: Callable[[], int] = functools.partial(memory.free_bytes, device, memory.processes_here())
        self.loaded = False
        self.version: int | None = None
        self._shapes, self._tied = weight_shapes(model)
        self.rows = self._shapes[weight_files.EMBEDDING][0]
        check_stop_tokens(stop_tokens, self.rows)
        self._seconds: dict[str, float] = {}
        self._prepare()

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], *, version: int | None = None) -> None:
        """Take new weights: pairs (Hugging Face name, whole tensor), all of them in every process. Caches are reset.

        A tensor must keep its values while the next ones are read. Raises InputError for a weight that is missing, unknown or
        of another shape.
        """
        self.loaded, self.version = False, None
        self._load(self._checked(weights))
        self.loaded, self.version = True, version

    def readable(self) -> Mapping[str, int]:
        """See `shared.backend.RolloutEngine`."""
        return {name: len(rows) for name, rows in self._held().items()}

    def digests(self, probes: Sequence[Probe]) -> list[str]:
        """See `shared.backend.RolloutEngine`."""
        held = self._held()
        return [readback.digest(readback.rows_of(held[probe.name], probe)) for probe in probes]

    def sleep(self) -> None:  # noqa: B027
        """Free the device's memory for the learner until the next `load`. This base class frees nothing."""

    def seconds(self) -> Mapping[str, float]:
        """See `shared.backend.RolloutEngine`."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def generate(
        self, prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: np.ndarray | None
    ) -> list[list[Completion]]:
        """See `shared.backend.RolloutEngine`."""
        if not self.loaded:
            raise InputError("the rollout engine has no weights yet: publish the learner's to it first")
        check_request(prompts, sampling, uniforms, longest=self.workload.prompt_tokens, rows=self.rows)
        own = _own_part(len(prompts))
        drawn = self._draw(prompts[own], sampling, None if uniforms is None else uniforms[own])
        return self._completions(_from_all(drawn, len(prompts), self.device))

    def next_token_logprobs(self, texts: Sequence[np.ndarray], tokens: np.ndarray) -> np.ndarray:
        """See `shared.backend.RolloutEngine`."""
        if not self.loaded:
            raise InputError("the rollout engine has no weights yet: publish the learner's to it first")
        check_scored(self.config, texts, tokens, rows=self.rows)
        begin = time.perf_counter()
        scored = self._score(texts[_own_part(len(texts))], [int(token) for token in tokens])
        self._count("prefill", begin)
        return _gathered(scored, len(texts), self.device)

    @abc.abstractmethod
    def _prepare(self) -> None:
        """Make the network or connect to the server, without weights; called at the end of `__init__`.

        Raises InputError where that fails."""

    @abc.abstractmethod
    def _load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Take weights that have been checked, and reset every cache."""

    def _held(self) -> Mapping[str, torch.Tensor]:
        """The weights in this process's network that can be read back, by their Hugging Face names."""
        raise TypeError(f"{type(self).__name__} holds no network in this process")

    @abc.abstractmethod
    def _draw(self, prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: np.ndarray | None) -> Drawn:
        """Draw completions for this process's own prompts of a request that has been checked. There may be no prompt."""

    @abc.abstractmethod
    def _score(self, texts: Sequence[np.ndarray], tokens: Sequence[int]) -> np.ndarray:
        """Float32 `[texts, tokens]` for this process's own texts of `next_token_logprobs`. There may be no text."""

    def _completions(self, drawn: Drawn) -> list[list[Completion]]:
        last = np.take_along_axis(drawn.tokens, np.maximum(drawn.lengths - 1, 0)[:, :, None], axis=2)[:, :, 0]
        truncated = ~np.isin(last, self.stop_tokens)
        return [
            [
                Completion(tokens[:length].copy(), logprobs[:length].copy(), truncated=bool(cut))
                for tokens, logprobs, length, cut in zip(*group)
            ]
            for group in zip(*drawn, truncated)
        ]

    def _named_twice(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights, with tied ones under both of their names, for an engine that stores head and embedding separately."""
        for name, tensor in weights:
            yield name, tensor
            yield from ((other, tensor) for other, first in self._tied.items() if first == name)

    def _checked(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights after a check of their names and shapes; the second name of a tied weight is left out."""
        missing = dict(self._shapes)
        for name, tensor in weights:
            if name in self._tied or name.endswith(weight_files.NOT_WEIGHTS):
                continue
            if name not in self._shapes:
                raise InputError(f"{self.model}: its config.json has no place for the weight {name}")
            shape, needed = tuple(tensor.shape), self._shapes[name]
            if shape != needed:
                raise InputError(f"{self.model}: weight {name} has shape {shape}, config.json asks for {needed}")
            missing.pop(name, None)
            yield name, tensor
        if missing:
            raise weight_files.missing(self.model, next(iter(missing)))

    def weight_bytes(self) -> int:
        """Bytes of the network's weights in the compute dtype."""
        item = getattr(torch, self.config.learner.compute_dtype).itemsize
        return item * sum(math.prod(shape) for shape in self._shapes.values())

    def _count(self, phase: str, begin: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begin


def weight_shapes(model: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shape of each weight of the architecture in the folder `model`; and for tied weights, second name -> first name."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(read_config(model))
    first_names = {weight: name for name, weight in network.named_parameters()}
    shapes = {name: tuple(weight.shape) for weight, name in first_names.items()}
    all_names = network.named_parameters(remove_duplicate=False)
    return shapes, {name: first_names[weight] for name, weight in all_names if name not in shapes}


def processes() -> tuple[int, int]:
    """This process's rank, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _own_part(count: int) -> slice:
    """The slice of `count` prompts that this process computes."""
    rank, ways = processes()
    width = -(-count // ways)
    return slice(min(count, rank * width), min(count, (rank + 1) * width))


def _from_all(own: Drawn, count: int, device: torch.device) -> Drawn:
    """All-gather: the completions of all processes, in the order of the prompts."""
    return Drawn(*(_gathered(array, count, device) for array in own))


def _gathered(own: np.ndarray, count: int, device: torch.device) -> np.ndarray:
    """All-gather: the rows of all processes, `count` in total."""
    _, ways = processes()
    if ways == 1:
        return own
    width = -(-count // ways)
    group_device = torch.device("cpu") if dist.get_backend() == "gloo" else device
    part = np.zeros((width, *own.shape[1:]), own.dtype)
    part[: len(own)] = own
    return zero.from_all(torch.from_numpy(part).to(group_device))[:count].cpu().numpy()
