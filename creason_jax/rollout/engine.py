"""The generation engine: slots with static caches, each holding a whole group, refilled as groups end.

A slot computes its prompt once (prefill) and keeps the prompt's keys and values once for the G samples that are drawn from
it. Decoding runs several tokens for each round trip to the host; drawing, stopping and log-probabilities are on the device
(`creason_jax.rollout.decoding`).
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from creason_jax import distributed
from creason_jax.mesh import memory, sharding
from creason_jax.model import DecoderConfig, platform_of, unstack_layers
from creason_jax.model import abstract_params as parameter_shapes
from creason_jax.model.attention import chunked
from creason_jax.model.attention.choose import LARGE_SCORES
from creason_jax.rollout import decoding, readback
from creason_jax.rollout.decoding import Program, Shape, Slots
from shared.backend import (
    Completion,
    Probe,
    Sampling,
    Workload,
    check_request,
    check_scored,
    check_stop_tokens,
    longest_scored,
)
from shared.config import RunConfig
from shared.errors import InputError

_log = logging.getLogger(__name__)
SMALLEST_BUCKET = 32  # prompt lengths are rounded up to this times a power of two


class Engine:
    """Twin of the PyTorch engine; see `shared.backend.RolloutEngine` for the contract."""

    whole_tensors = False

    def __init__(
        self,
        config: RunConfig,
        model: DecoderConfig,
        mesh: jax.sharding.Mesh,
        *,
        stop_tokens: Sequence[int],
        workload: Workload | None = None,
        free_bytes: Callable[[], int | None] | None = None,
    ):
        """`free_bytes` says how much of a device's memory is left for prefill and decoding; without it, what is free now."""
        check_stop_tokens(stop_tokens, model.vocab_size)
        self.config = config
        self.workload = workload or Workload.of_limits(config)
        # In buckets, so that questions of about one length make one program, and the run's limit where that is near.
        self.longest_prompt = min(_bucket(self.workload.prompt_tokens), config.rollout.max_prompt_tokens)
        self.model = model
        self.mesh = sharding.engine_mesh(mesh, config.rollout.mesh_tensor)
        sharding.check_divisible(model, self.mesh, "rollout" if config.rollout.mesh_tensor else "learner")
        self.stop_tokens = tuple(stop_tokens)
        self.dtype = jnp.dtype(config.learner.compute_dtype)
        self.program = Program(
            model=model,
            mesh=self.mesh,
            dtype=self.dtype,
            stop_tokens=self.stop_tokens,
            decode_steps=config.rollout.decode_steps,
            grpo=config.grpo,
        )
        self.params: Any = None
        self.version: int | None = None
        self.shardings = _by_layer(sharding.param_shardings(model, self.mesh, sharding.ENGINE_RULES), model)
        self._publish = jax.jit(functools.partial(_published, self.dtype), out_shardings=self.shardings)
        self.free_bytes = free_bytes or functools.partial(memory.free_bytes, self.mesh)
        self._fitted: dict[Sampling, int] = {}
        self._prefill = config.rollout.prefill_batch
        self._seconds: dict[str, float] = {}

    def load(self, params: Any, *, version: int | None = None) -> None:
        """Take the learner's parameters: cast, layers unstacked, laid out for decoding. Caches start empty at each call of
        `generate`, so nothing computed with older weights is left."""
        self.params = self.version = None  # freed before its successor is made
        self.params = self._publish(params)
        self.version = version

    def readable(self) -> Mapping[str, int]:
        """See `shared.backend.RolloutEngine`."""
        return readback.readable(self.params)

    def digests(self, probes: Sequence[Probe]) -> list[str]:
        """See `shared.backend.RolloutEngine`."""
        return readback.digests(self.params, probes, self.dtype, self.mesh)

    def sleep(self) -> None:
        """See `shared.backend.RolloutEngine`. Caches live inside `generate` only, so there is nothing to give back."""

    def seconds(self) -> Mapping[str, float]:
        """See `shared.backend.RolloutEngine`."""
        found, self._seconds = self._seconds, {}
        return found

    def generate(
        self, prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: np.ndarray | None
    ) -> list[list[Completion]]:
        """See `shared.backend.RolloutEngine`."""
        if self.params is None:
            raise InputError("the rollout engine has no weights yet: publish the learner's to it first")
        check_request(prompts, sampling, uniforms, longest=self.longest_prompt, rows=self.model.vocab_size)
        self._make_room(sampling)
        slots = decoding.empty_slots(self.program, self._shape(sampling))
        waiting = deque(range(len(prompts)))
        parts, share = sharding.batch_ways(self.mesh), self._share(sampling)
        # Of each part of the mesh the free slots, whose prompts are computed there too.
        idle = [deque(range(part * share, (part + 1) * share)) for part in range(parts)]
        held: dict[int, int] = {}
        results: list[list[Completion]] = [[] for _ in prompts]
        while waiting or held:
            while waiting and any(idle):
                seated = self._seats(waiting, idle, self.prefill_width(sampling) // parts)
                slots = self._fill(slots, seated, prompts, sampling, uniforms)
                held.update(seated.values())
            slots = self._advance(slots, sampling)
            running = distributed.fetch(slots.running).max(axis=1)
            finished = [place for place in held if not running[place]]
            if finished:
                out = distributed.fetch((slots.tokens, slots.logprobs, slots.lengths))
                for place in finished:
                    results[held.pop(place)] = self._completions(place, out)
                    idle[place // share].append(place)
        return results

    def lower_publish(self, params: Any) -> Any:
        """Casting and laying out the learner's parameters (arrays or shapes with shardings) for decoding, lowered."""
        return self._publish.trace(params).lower(lowering_platforms=(platform_of(self.mesh),))

    def lower_prefill(self, sampling: Sampling, slots: int | None = None) -> Any:
        """The computation of `rollout.prefill_batch` prompts of the greatest length, lowered; `slots`: see `abstract_slots`."""
        width, longest = self.prefill_width(sampling), self.longest_prompt
        rows = sharding.batch_sharding(self.mesh)
        placed = (
            jax.ShapeDtypeStruct((width, longest), jnp.int32, sharding=rows),
            jax.ShapeDtypeStruct((width,), jnp.int32, sharding=rows),
            jax.ShapeDtypeStruct((width, sampling.group_size, sampling.max_new_tokens), jnp.float32, sharding=rows),
            jax.ShapeDtypeStruct((width,), jnp.int32, sharding=rows),
        )
        shapes = self.abstract_params(), self.abstract_slots(sampling, slots)
        traced = decoding.prefill.trace(self.program, sampling, *shapes, *placed)
        return traced.lower(lowering_platforms=(platform_of(self.mesh),))

    def lower_decode(self, sampling: Sampling, slots: int | None = None) -> Any:
        """The `rollout.decode_steps` tokens between two looks of the host, lowered; `slots`: see `abstract_slots`."""
        shapes = self.abstract_params(), self.abstract_slots(sampling, slots)
        traced = decoding.decode.trace(self.program, sampling, *shapes)
        return traced.lower(lowering_platforms=(platform_of(self.mesh),))

    def abstract_params(self) -> Any:
        """Shapes of the parameters as they are published, with their shardings."""
        shapes = parameter_shapes(self.model)
        shapes = {**shapes, "layers": jax.eval_shape(unstack_layers, shapes["layers"])}
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, self.dtype, sharding=sharding),
            shapes,
            self.shardings,
        )

    def abstract_slots(self, sampling: Sampling, slots: int | None = None) -> Slots:
        """Shapes of the slots and their caches, with their shardings; `slots`: how many, those of `self.slots` if None."""
        shapes = jax.eval_shape(lambda: decoding.empty_slots(self.program, self._shape(sampling, slots)))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            decoding.slot_shardings(self.program, shapes),
        )

    def next_token_logprobs(self, texts: Sequence[np.ndarray], tokens: np.ndarray) -> np.ndarray:
        """See `shared.backend.RolloutEngine`."""
        if self.params is None:
            raise InputError("the rollout engine has no weights yet: publish the learner's to it first")
        check_scored(self.config, texts, tokens, rows=self.model.vocab_size)
        begin = time.perf_counter()
        asked = tuple(int(token) for token in tokens)
        scored = np.zeros((len(texts), len(asked)), np.float32)
        width = self._scoring_width(_bucket(max(map(len, texts), default=1)))
        for start in range(0, len(texts), width):
            part = texts[start : start + width]
            rows = sharding.batch_sharding(self.mesh)
            arrays = padded(dict(enumerate(part)), width, longest_scored(self.config))
            placed = [distributed.place(values, rows) for values in arrays]
            scored[start : start + width] = distributed.fetch(
                decoding.score(self.program, asked, self.params, *placed)
            )[: len(part)]
        self._count("prefill", begin)
        return scored

    def _completions(self, place: int, out: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[Completion]:
        found = []
        for tokens, logprobs, length in zip(*(array[place] for array in out)):
            stopped = int(tokens[length - 1]) in self.stop_tokens
            found.append(Completion(tokens[:length].copy(), logprobs[:length].copy(), truncated=not stopped))
        return found

    def prefill_width(self, sampling: Sampling | None = None) -> int:
        """Prompts that are computed in one call; without `sampling`, when they are only scored."""
        return self._rounded(self._prefill, sampling)

    def slots(self, sampling: Sampling) -> int:
        """Groups that decode at once: those asked for, or as many as `fit` found room for."""
        return self._fitted.get(sampling) or self._asked_slots(sampling)

    def fit(self, sampling: Sampling) -> bool:
        """Take as many of the slots asked for as the free memory holds beside what prefill and decoding need; False where it
        holds none. Every process must call it."""
        free, parts = self.free_bytes(), sharding.batch_ways(self.mesh)
        wanted = self.slots(sampling)
        if free is None or (memory.on_cpu(self.mesh) and self._roughly_needed(sampling) < free):
            self._fitted[sampling] = wanted
            return True

        def needed(share: int) -> float:
            return self._needed(sampling, share * parts)

        found = parts * memory.fitting(wanted // parts, free, needed)
        self._fitted[sampling] = found
        if 0 < found < wanted:
            _log.warning("rollout: %d of %d slots fit the devices' memory", found, wanted)
        return found > 0

    def _make_room(self, sampling: Sampling) -> None:
        """Take what `fit` finds, with prompts computed fewer at a time where nothing fits otherwise. Raises InputError where
        not even one does."""
        asked = self._prefill
        while not self._fitted.get(sampling) and not self.fit(sampling):
            if self.prefill_width(sampling) <= sharding.batch_ways(self.mesh):
                self._prefill = asked
                raise InputError(
                    f"rollout: the memory left on a device holds no slot with a prompt of {self.longest_prompt} and "
                    f"{sampling.group_size} x {sampling.max_new_tokens} new tokens; what helps: more devices, a greater "
                    "rollout.mesh_tensor, fewer tokens, a smaller model, compute_dtype = 'bfloat16'"
                )
            self._prefill = max(1, self.prefill_width(sampling) // 2)
        if self._prefill < asked:
            _log.warning("rollout: %d of %d prompts are computed at a time, for the memory", self._prefill, asked)

    def _roughly_needed(self, sampling: Sampling) -> float:
        """More bytes on a CPU device than `_needed` finds, without compiling anything: most requests are far from the limit."""
        ways = sharding.batch_ways(self.mesh)
        logits = self.slots(sampling) // ways * sampling.group_size * self.model.vocab_size
        width = self.prefill_width(sampling) // ways
        kept = (
            2
            * self.model.num_hidden_layers
            * decoding.cached_heads(self.program)
            * self.model.head_dim
            * self.longest_prompt
        )
        slots = memory.bytes_on_device(self.abstract_slots(sampling))
        return (
            2 * slots + 2 * self.dtype.itemsize * width * kept + 16 * logits + self.of_texts(width, self.longest_prompt)
        )

    def of_texts(self, width: int, length: int) -> float:
        """More bytes on a CPU device than so many texts of this length take while they are computed, but for their caches."""
        model = self.model
        row = width * model.num_attention_heads * length
        scores = min(row * length, max(row * chunked.BLOCK, LARGE_SCORES))
        states = width * length * (4 * model.hidden_size + 3 * model.intermediate_size)
        return 16 * (scores + states + width * model.vocab_size)

    def _scoring_width(self, length: int) -> int:
        """Texts of at most this length that are scored in one call."""
        width, ways = self.prefill_width(), sharding.batch_ways(self.mesh)
        free = self.free_bytes() if memory.on_cpu(self.mesh) else None
        while free is not None and width > ways and self.of_texts(width // ways, length) > free:
            width = max(ways, width // 2 // ways * ways)
        return width

    def _needed(self, sampling: Sampling, slots: int) -> float:
        """Bytes on a device beside the weights with so many slots, at the fuller of prefill and decoding. The programs
        compiled to know it are those that run later, where their slots are the ones that are taken."""
        found: list[float] = []
        for lowered in (self.lower_prefill(sampling, slots), self.lower_decode(sampling, slots)):
            try:
                found.append(memory.reserved(memory.compiled(lowered)))
            except memory.TooLarge as refusal:
                found.append(refusal.needed)
        return max(found) - memory.bytes_on_device(self.abstract_params())

    def _share(self, sampling: Sampling) -> int:
        """Slots of each part of the mesh."""
        return self.slots(sampling) // sharding.batch_ways(self.mesh)

    def _rounded(self, wanted: int, sampling: Sampling | None) -> int:
        """The next multiple of the mesh's parts. What is drawn is a step's questions, what is greedy an evaluation's: more of
        anything would idle."""
        if sampling is not None:
            greedy = sampling.temperature == 0
            wanted = min(wanted, self.workload.questions if greedy else self.config.grpo.questions_per_step)
        ways = sharding.batch_ways(self.mesh)
        return -(-wanted // ways) * ways

    def _asked_slots(self, sampling: Sampling) -> int:
        greedy = sampling.temperature == 0 and self.config.evaluation.slots
        return self._rounded(greedy or self.config.rollout.slots, sampling)

    def _shape(self, sampling: Sampling, slots: int | None = None) -> Shape:
        slots = self.slots(sampling) if slots is None else slots
        return Shape(slots, sampling.group_size, sampling.max_new_tokens, self.longest_prompt)

    def _seats(self, waiting: deque[int], idle: list[deque[int]], each: int) -> dict[int, tuple[int, int]]:
        """For the next prefill, `each` rows of a part: row -> (slot, index of the prompt), the parts taking turns."""
        seated = {}
        for turn in range(each):
            for part, places in enumerate(idle):
                if waiting and places:
                    seated[part * each + turn] = places.popleft(), waiting.popleft()
        return seated

    def _fill(
        self,
        slots: Slots,
        seated: Mapping[int, tuple[int, int]],
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        uniforms: np.ndarray | None,
    ) -> Slots:
        """Compute the prompts that have a seat, put their caches in its slot, draw the first token of each sample."""
        begin = time.perf_counter()
        width = self.prefill_width(sampling)
        share = self._share(sampling)
        texts = {row: prompts[index] for row, (_, index) in seated.items()}
        tokens, lengths = padded(texts, width, self.longest_prompt)
        numbers = np.zeros((width, sampling.group_size, sampling.max_new_tokens), np.float32)
        target = np.full(width, share, np.int32)  # past the end: dropped when written
        for row, (place, index) in seated.items():
            target[row] = place % share
            if uniforms is not None:
                numbers[row] = uniforms[index]
        rows = sharding.batch_sharding(self.mesh)
        placed = [distributed.place(values, rows) for values in (tokens, lengths, numbers, target)]
        slots = jax.block_until_ready(decoding.prefill(self.program, sampling, self.params, slots, *placed))
        self._count("prefill", begin)
        return slots

    def _advance(self, slots: Slots, sampling: Sampling) -> Slots:
        begin = time.perf_counter()
        slots = jax.block_until_ready(decoding.decode(self.program, sampling, self.params, slots))
        self._count("decode", begin)
        return slots

    def _count(self, phase: str, begin: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begin


def _bucket(length: int) -> int:
    """The number of columns for texts of at most this length."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return bucket


def padded(texts: Mapping[int, np.ndarray], width: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts by row -> tokens `[width, bucket]` and lengths `[width]`; buckets are few, so that little is compiled."""
    bucket = _bucket(max(len(text) for text in texts.values()))
    tokens, lengths = np.zeros((width, min(bucket, longest)), np.int32), np.zeros(width, np.int32)
    for row, text in texts.items():
        tokens[row, : len(text)] = text
        lengths[row] = len(text)
    return tokens, lengths


def _by_layer(shardings: Any, model: DecoderConfig) -> Any:
    """The shardings of stacked parameters as those of parameters with a list of layers."""

    def one_layer(sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))

    layer = jax.tree.map(one_layer, shardings["layers"])
    return {**shardings, "layers": [layer] * model.num_hidden_layers}


def _published(dtype: jnp.dtype, params: Any) -> Any:
    """The learner's parameters in the engine's type, layers unstacked."""
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return {**cast, "layers": unstack_layers(cast["layers"])}
