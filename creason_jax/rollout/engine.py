"""The generation engine: continuous batching over slots with static KV caches; each slot holds a whole group.

A slot computes its prompt once (prefill) and keeps the prompt's keys and values once for the G samples that are drawn from
it. When a group has ended, the next prompt takes its slot. Decoding runs several tokens for each round trip to the host;
sampling, stopping and log-probabilities are computed on the device (`creason_jax.rollout.decoding`).
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
SMALLEST_BUCKET = 32  # tokens; prompt lengths are rounded up to this times a power of two


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
        """`free_bytes` returns how many bytes of a device prefill and decoding may use; None: those that are free then."""
        check_stop_tokens(stop_tokens, model.vocab_size)
        self.config = config
        self.workload = workload or Workload.of_limits(config)
        # Rounded up to a bucket, so that workloads of about the same prompt length share compiled programs.
        self.longest_prompt = min(_bucket(self.workload.prompt_tokens), config.rollout.max_prompt_tokens)
        self.model = model
        self.mesh = sharding.engine_mesh(mesh, config.jax.rollout_mesh_tensor)
        sharding.check_divisible(model, self.mesh, "rollout_mesh" if config.jax.rollout_mesh_tensor else "mesh")
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
        self._slots_that_fit: dict[Sampling, int] = {}
        self._prefill = config.rollout.prefill_batch
        self._seconds: dict[str, float] = {}

    def load(self, params: Any, *, version: int | None = None) -> None:
        """Take the learner's parameters: they are cast, their layers unstacked, and split for decoding.

        Caches start empty at each call of `generate`, so nothing that older weights computed remains."""
        self.params = self.version = None  # frees the old parameters before the new ones are made
        self.params = self._publish(params)
        self.version = version

    def readable(self) -> Mapping[str, int]:
        """See `shared.backend.RolloutEngine`."""
        return readback.readable(self.params)

    def digests(self, probes: Sequence[Probe]) -> list[str]:
        """See `shared.backend.RolloutEngine`."""
        return readback.digests(self.params, probes, self.dtype, self.mesh)

    def sleep(self) -> None:
        """See `shared.backend.RolloutEngine`. Caches exist only inside `generate`, so there is nothing to free."""

    def seconds(self) -> Mapping[str, float]:
        """See `shared.backend.RolloutEngine`."""
        seconds, self._seconds = self._seconds, {}
        return seconds

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
        # Free slots by part of the mesh. A part also computes the prompts of its own slots.
        idle = [deque(range(part * share, (part + 1) * share)) for part in range(parts)]
        prompt_of_slot: dict[int, int] = {}
        results: list[list[Completion]] = [[] for _ in prompts]
        while waiting or prompt_of_slot:
            while waiting and any(idle):
                assigned = self._seats(waiting, idle, self.prefill_width(sampling) // parts)
                slots = self._fill(slots, assigned, prompts, sampling, uniforms)
                prompt_of_slot.update(assigned.values())
            slots = self._advance(slots, sampling)
            running = distributed.fetch(slots.running).max(axis=1)
            finished = [slot for slot in prompt_of_slot if not running[slot]]
            if finished:
                out = distributed.fetch((slots.tokens, slots.logprobs, slots.lengths))
                for slot in finished:
                    results[prompt_of_slot.pop(slot)] = self._completions(slot, out)
                    idle[slot // share].append(slot)
        return results

    def lower_publish(self, params: Any) -> Any:
        """The lowered program that casts and splits the learner's parameters for decoding.

        `params` are arrays, or shapes with shardings."""
        return self._publish.trace(params).lower(lowering_platforms=(platform_of(self.mesh),))

    def lower_prefill(self, sampling: Sampling, slots: int | None = None) -> Any:
        """The lowered program that computes one batch of prompts (see `prefill_width`) of the greatest length.

        `slots`: see `abstract_slots`."""
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
        """The lowered program that decodes `rollout.decode_steps` tokens; `slots`: see `abstract_slots`."""
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
        target_tokens = tuple(int(token) for token in tokens)
        scored = np.zeros((len(texts), len(target_tokens)), np.float32)
        width = self._scoring_width(_bucket(max(map(len, texts), default=1)))
        for start in range(0, len(texts), width):
            part = texts[start : start + width]
            rows = sharding.batch_sharding(self.mesh)
            arrays = padded(dict(enumerate(part)), width, longest_scored(self.config))
            placed = [distributed.place(values, rows) for values in arrays]
            scored[start : start + width] = distributed.fetch(
                decoding.score(self.program, target_tokens, self.params, *placed)
            )[: len(part)]
        self._count("prefill", begin)
        return scored

    def _completions(self, slot: int, out: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[Completion]:
        completions = []
        for tokens, logprobs, length in zip(*(array[slot] for array in out)):
            stopped = int(tokens[length - 1]) in self.stop_tokens
            completions.append(Completion(tokens[:length].copy(), logprobs[:length].copy(), truncated=not stopped))
        return completions

    def prefill_width(self, sampling: Sampling | None = None) -> int:
        """The number of prompts computed in one call for `sampling`; None: for texts that are only scored."""
        return self._rounded(self._prefill, sampling)

    def wished_slots(self, sampling: Sampling) -> int:
        """Groups that the config would have decoded at once."""
        greedy = sampling.temperature == 0 and self.config.evaluation.slots
        return self._rounded(greedy or self.config.rollout.slots, sampling)

    def slots(self, sampling: Sampling) -> int:
        """Groups that decode at once: the wished ones, or as many of them as `limit_slots` found room for."""
        return self._slots_that_fit.get(sampling) or self.wished_slots(sampling)

    def limit_slots(self, sampling: Sampling) -> bool:
        """Use no more slots than the free memory holds beside what prefill and decoding need; False where it holds none. Every
        process must call it."""
        free, parts = self.free_bytes(), sharding.batch_ways(self.mesh)
        before = self.slots(sampling)
        if free is None or (memory.on_cpu(self.mesh) and self._roughly_needed(sampling) < free):
            self._slots_that_fit[sampling] = before
            return True

        def needed(share: int) -> float:
            return self._needed(sampling, share * parts)

        fitting = parts * memory.fitting(before // parts, free, needed)
        self._slots_that_fit[sampling] = fitting
        if 0 < fitting < before:
            _log.warning("rollout: %d of %d slots fit the devices' memory", fitting, before)
        return fitting > 0

    def _make_room(self, sampling: Sampling) -> None:
        """Limit the slots to the memory; where not one fits, compute fewer prompts at a time. Raises InputError where that does
        not help."""
        configured = self._prefill
        while not self._slots_that_fit.get(sampling) and not self.limit_slots(sampling):
            if self.prefill_width(sampling) <= sharding.batch_ways(self.mesh):
                self._prefill = configured
                raise InputError(
                    f"rollout: the memory left on a device holds no slot with a prompt of {self.longest_prompt} and "
                    f"{sampling.group_size} x {sampling.max_new_tokens} new tokens; what helps: more devices, a greater "
                    "jax.rollout_mesh_tensor, fewer tokens, a smaller model, compute_dtype = 'bfloat16'"
                )
            self._prefill = max(1, self.prefill_width(sampling) // 2)
        if self._prefill < configured:
            _log.warning(
                "rollout: %d prompts are computed at a time, not %d, to save memory", self._prefill, configured
            )

    def _roughly_needed(self, sampling: Sampling) -> float:
        """An upper bound of `_needed` on a CPU device, in bytes, without compiling: most requests are far below the limit."""
        ways = sharding.batch_ways(self.mesh)
        logits = self.slots(sampling) // ways * sampling.group_size * self.model.vocab_size
        width = self.prefill_width(sampling) // ways
        cached_per_prompt = (
            2
            * self.model.num_hidden_layers
            * decoding.cached_heads(self.program)
            * self.model.head_dim
            * self.longest_prompt
        )
        slots = memory.bytes_on_device(self.abstract_slots(sampling))
        return (
            2 * slots
            + 2 * self.dtype.itemsize * width * cached_per_prompt
            + 16 * logits
            + self.of_texts(width, self.longest_prompt)
        )

    def of_texts(self, width: int, length: int) -> float:
        """An upper bound of the bytes on a CPU device to compute `width` texts of `length` tokens, without their caches."""
        model = self.model
        row = width * model.num_attention_heads * length
        scores = min(row * length, max(row * chunked.BLOCK, LARGE_SCORES))
        states = width * length * (4 * model.hidden_size + 3 * model.intermediate_size)
        return 16 * (scores + states + width * model.vocab_size)

    def _scoring_width(self, length: int) -> int:
        """The number of texts of at most `length` tokens that are scored in one call."""
        width, ways = self.prefill_width(), sharding.batch_ways(self.mesh)
        free = self.free_bytes() if memory.on_cpu(self.mesh) else None
        while free is not None and width > ways and self.of_texts(width // ways, length) > free:
            width = max(ways, width // 2 // ways * ways)
        return width

    def _needed(self, sampling: Sampling, slots: int) -> float:
        """Bytes that prefill or decoding needs on a device with so many slots, the greater of both, without the weights.

        It compiles both programs. With the number of slots that is chosen in the end, they are the ones that run later."""
        needs: list[float] = []
        for lowered in (self.lower_prefill(sampling, slots), self.lower_decode(sampling, slots)):
            try:
                needs.append(memory.reserved(memory.compiled(lowered)))
            except memory.TooLarge as refusal:
                needs.append(refusal.needed)
        return max(needs) - memory.bytes_on_device(self.abstract_params())

    def _share(self, sampling: Sampling) -> int:
        """The number of slots in each part of the mesh."""
        return self.slots(sampling) // sharding.batch_ways(self.mesh)

    def _rounded(self, count: int, sampling: Sampling | None) -> int:
        """`count` limited to the number of questions, and rounded up to a multiple of the mesh's parts.

        Greedy sampling answers an evaluation's questions, other sampling those of one step; more slots would stay empty."""
        if sampling is not None:
            greedy = sampling.temperature == 0
            count = min(count, self.workload.questions if greedy else self.config.grpo.questions_per_step)
        ways = sharding.batch_ways(self.mesh)
        return -(-count // ways) * ways

    def _shape(self, sampling: Sampling, slots: int | None = None) -> Shape:
        slots = self.slots(sampling) if slots is None else slots
        return Shape(slots, sampling.group_size, sampling.max_new_tokens, self.longest_prompt)

    def _seats(self, waiting: deque[int], idle: list[deque[int]], rows_per_part: int) -> dict[int, tuple[int, int]]:
        """The next prefill: row -> (slot, index of the prompt). The parts of the mesh take prompts in turn.

        `waiting`: indices of prompts; `idle`: free slots by part. Both are consumed."""
        assigned = {}
        for turn in range(rows_per_part):
            for part, slots in enumerate(idle):
                if waiting and slots:
                    assigned[part * rows_per_part + turn] = slots.popleft(), waiting.popleft()
        return assigned

    def _fill(
        self,
        slots: Slots,
        assigned: Mapping[int, tuple[int, int]],
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        uniforms: np.ndarray | None,
    ) -> Slots:
        """Compute the assigned prompts, write their keys and values into their slots, draw the first token of each sample."""
        begin = time.perf_counter()
        width = self.prefill_width(sampling)
        share = self._share(sampling)
        texts = {row: prompts[index] for row, (_, index) in assigned.items()}
        tokens, lengths = padded(texts, width, self.longest_prompt)
        padded_uniforms = np.zeros((width, sampling.group_size, sampling.max_new_tokens), np.float32)
        own_slots = np.full(width, share, np.int32)  # beyond the last slot: the write is dropped
        for row, (slot, index) in assigned.items():
            own_slots[row] = slot % share
            if uniforms is not None:
                padded_uniforms[row] = uniforms[index]
        rows = sharding.batch_sharding(self.mesh)
        placed = [distributed.place(values, rows) for values in (tokens, lengths, padded_uniforms, own_slots)]
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
    """The number of columns of a batch whose longest text has `length` tokens."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return bucket


def padded(texts: Mapping[int, np.ndarray], width: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts by row -> tokens `[width, bucket]` and lengths `[width]`. There are few buckets, so few programs are compiled."""
    bucket = _bucket(max(len(text) for text in texts.values()))
    tokens, lengths = np.zeros((width, min(bucket, longest)), np.int32), np.zeros(width, np.int32)
    for row, text in texts.items():
        tokens[row, : len(text)] = text
        lengths[row] = len(text)
    return tokens, lengths


def _by_layer(shardings: Any, model: DecoderConfig) -> Any:
    """Turn the shardings of stacked parameters into shardings of parameters with a list of layers."""

    def one_layer(sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))

    layer = jax.tree.map(one_layer, shardings["layers"])
    return {**shardings, "layers": [layer] * model.num_hidden_layers}


def _published(dtype: jnp.dtype, params: Any) -> Any:
    """The learner's parameters in the engine's dtype, with a list of layers."""
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return {**cast, "layers": unstack_layers(cast["layers"])}
