"""The Hugging Face engine: its model code, with attention over KV caches that hold the prompt of a group once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from creason_torch.model.decoder import check_tables, fix_rotation, read_config
from creason_torch.model.logprobs import target_logprobs
from creason_torch.rollout.engine import Drawn, Engine
from creason_torch.rollout.sampling import draw
from shared.backend import Sampling, scoring_temperature
from shared.errors import InputError
from shared.runs import memory

ATTENTION = "creason_rollout"
_log = logging.getLogger(__name__)
COLUMNS = 64  # step in which the number of read columns grows, on a CPU in bfloat16
NOTHING_DRAWN = Sampling(group_size=1, temperature=0.0, max_new_tokens=1)  # for caches of texts that are only scored


class Caches:
    """KV caches of S groups, as lists over layers: of prompts `[S, K, P, N]`, of samples `[S, K, G, C, N]`.

    The network calls `attend` once for each layer. During prefill, `rows` are the groups whose prompts are computed. During
    decoding, `place` is the number of tokens in each sample's cache, the new one included; 0 means prefill.
    """

    def __init__(self, network: Any, lengths: torch.Tensor, width: int, sampling: Sampling):
        settings = network.config
        size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
        slots, heads = len(lengths), settings.num_key_value_heads
        samples = (sampling.group_size, sampling.max_new_tokens)

        def zeros(*sizes: int) -> list[torch.Tensor]:
            layers = range(settings.num_hidden_layers)
            return [lengths.new_zeros((slots, heads, *sizes, size), dtype=network.dtype) for _ in layers]

        self.prompt_k, self.prompt_v = zeros(width), zeros(width)
        self.own_k, self.own_v = zeros(*samples), zeros(*samples)
        self.missing = torch.arange(width, device=lengths.device) >= lengths[:, None]
        self.rows = slice(0)
        self.place = 0

    def keep(self, groups: torch.Tensor) -> None:
        """Keep only these groups (indices) in the caches."""
        for caches in (self.prompt_k, self.prompt_v, self.own_k, self.own_v):
            for layer, cache in enumerate(caches):  # one by one: all copies at once would take half of the memory again
                caches[layer] = cache[groups]
        self.missing = self.missing[groups]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """Write k and v into the layer's caches, and attend: q `[B, H, T, N]`, k and v `[B, K, T, N]`; returns `[B, T, H, N]`.

        During prefill B counts prompts and T tokens; during decoding B is S and T is G."""
        over = self._over_samples if self.place else self._over_prompts
        return over(layer, q, k, v, scale).transpose(1, 2)

    def _over_prompts(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        width = k.shape[2]
        self.prompt_k[layer][self.rows, :, :width] = k
        self.prompt_v[layer][self.rows, :, :width] = v
        # Padding is on the right, so the causal mask hides it from the prompt's tokens.
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)

    def _over_samples(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        slots, heads, group, size = q.shape
        kv_heads = k.shape[1]
        shared = heads // kv_heads
        self.own_k[layer][:, :, :, self.place - 1] = k
        self.own_v[layer][:, :, :, self.place - 1] = v
        width = self._columns(q)
        own_k, own_v = self.own_k[layer][:, :, :, :width], self.own_v[layer][:, :, :, :width]
        q = (q * scale).reshape(slots, kv_heads, shared, group, size).transpose(2, 3)  # [S, K, G, R, N]
        over_prompt = q.reshape(slots, kv_heads, group * shared, size) @ self.prompt_k[layer].mT
        over_prompt = over_prompt.masked_fill(self.missing[:, None, None], -torch.inf)
        over_own = (q @ own_k.mT).reshape(slots, kv_heads, group * shared, width)
        if width > self.place:
            over_own[..., self.place :] = -torch.inf
        scores = torch.cat([over_prompt, over_own], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
        to_prompt, to_own = weights.split([over_prompt.shape[-1], width], dim=-1)
        out = (to_prompt @ self.prompt_v[layer]).view(q.shape)
        out = out + to_own.reshape(*q.shape[:-1], width) @ own_v
        return out.transpose(2, 3).reshape(slots, heads, group, size)

    def _columns(self, q: torch.Tensor) -> int:
        """The number of columns of the samples' caches that are read.

        On a CPU, oneDNN compiles a program for every shape of a bfloat16 product, and keeps it. If each token added one column,
        that would take a megabyte for each token. So there the number grows in steps of `COLUMNS`.
        """
        if not q.is_cpu or q.dtype == torch.float32:
            return self.place
        return min(-(-self.place // COLUMNS) * COLUMNS, self.own_k[0].shape[3])


def attend(
    module: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attention_mask: None,
    *,
    caches: Caches,
    scaling: float,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that Hugging Face's attention layers call; `caches` is an argument of the network's call. No mask is built.

    Raises InputError for a sliding window shorter than prompt and completion together.
    """
    longest = caches.missing.shape[1] + caches.own_k[0].shape[3]
    if sliding_window is not None and sliding_window < longest:
        raise InputError(
            f"sliding_window is {sliding_window} in config.json, shorter than prompt and completion together ({longest}): "
            "torch.rollout_engine = 'hf' does not compute it; choose 'vllm', or lower the limits of rollout"
        )
    return caches.attend(module.layer_idx, q, k, v, scaling), None


class HfEngine(Engine):
    """Draws with `creason_torch.rollout.sampling`, so its completions are those of the JAX engine, except for rounding."""

    def _prepare(self) -> None:
        config, model = self.config, self.model
        if self.weight_bytes() > self.free_bytes():
            raise InputError(
                f"{model}: its weights take {memory.text(self.weight_bytes())} of the {memory.text(self.free_bytes())} that are "
                "free; take a smaller model, a larger machine, or compute_dtype = 'bfloat16'"
            )
        AttentionInterface.register(ATTENTION, attend)
        with self.device, no_init_weights():
            self.network = AutoModelForCausalLM.from_config(
                read_config(model), dtype=getattr(torch, config.learner.compute_dtype), attn_implementation=ATTENTION
            ).eval()
        self.network.tie_weights()  # `no_init_weights` also skips the tying
        fix_rotation(self.network, config.longest_sequence)
        check_tables(self.network)
        self.head = torch.empty(0)

    @torch.no_grad()
    def _load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Caches start empty at each call of `generate`, so nothing that older weights computed remains."""
        own = dict(self.network.named_parameters())
        for name, tensor in weights:
            own[name].copy_(tensor)
        self.head = self.network.get_output_embeddings().weight.detach().float()

    def _held(self) -> Mapping[str, torch.Tensor]:
        return dict(self.network.named_parameters())

    @torch.inference_mode()
    def _draw(self, prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: np.ndarray | None) -> Drawn:
        drawn = Drawn.empty(len(prompts), sampling)
        slots = self._fitting(prompts, sampling) if prompts else 1
        for start in range(0, len(prompts), slots):
            part = slice(start, start + slots)
            part_uniforms = np.zeros(drawn.tokens[part].shape, np.float32) if uniforms is None else uniforms[part]
            for array, values in zip(
                drawn, self._slots(prompts[part], sampling, _tensor(part_uniforms).to(self.device))
            ):
                array[part] = values.cpu().numpy()
        return drawn

    @torch.inference_mode()
    def _score(self, texts: Sequence[np.ndarray], tokens: Sequence[int]) -> np.ndarray:
        scored = np.zeros((len(texts), len(tokens)), np.float32)
        width = self._prefill_width(max(map(len, texts), default=1))
        for start in range(0, len(texts), width):
            part = texts[start : start + width]
            lengths = torch.tensor([len(text) for text in part], device=self.device)
            caches = Caches(self.network, lengths, max(map(len, part)), NOTHING_DRAWN)
            logprobs = self._prefill(part, caches).log_softmax(dim=-1)
            scored[start : start + width] = logprobs[:, list(tokens)].cpu().numpy()
        return scored

    def _fitting(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> int:
        """The number of groups that decode at once: as configured, or as many as the free memory holds.

        Raises InputError where it does not hold one."""
        requested = self.config.rollout.slots
        if sampling.temperature == 0 and self.config.evaluation.slots:
            requested = self.config.evaluation.slots
        longest = max(map(len, prompts))
        requested = min(requested, len(prompts))
        free = self.free_bytes() - self._of_texts(1, longest)
        slots = min(requested, int(free // self._of_slot(longest, sampling)))
        if slots < 1:
            raise InputError(
                f"rollout: the {memory.text(self.free_bytes())} of free memory hold no group with a prompt of {longest} and "
                f"{sampling.group_size} x {sampling.max_new_tokens} new tokens; what helps: fewer tokens, a smaller model, "
                "compute_dtype = 'bfloat16', torch.rollout_engine = 'vllm'"
            )
        if slots < requested:
            _log.warning("rollout: %d of %d slots fit the memory", slots, requested)
        return slots

    def _of_slot(self, longest: int, sampling: Sampling) -> int:
        """See `slot_bytes`: bytes of one group while it decodes."""
        return slot_bytes(self.network.config, longest, sampling, self.network.dtype.itemsize)

    def _of_texts(self, width: int, length: int) -> int:
        """See `text_bytes`: bytes to compute `width` texts of `length` tokens together."""
        return text_bytes(self.network.config, width, length, self.network.dtype.itemsize)

    def _prefill_width(self, length: int) -> int:
        """The number of texts of `length` tokens that are computed in one call: as configured, or as many as fit the memory."""
        width, free = self.config.rollout.prefill_batch, self.free_bytes()
        while width > 1 and self._of_texts(width, length) > free:
            width //= 2
        return width

    def _slots(
        self, prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens and log-probabilities `[S, G, C]`, and lengths `[S, G]`, of groups that decode together."""
        begin = time.perf_counter()
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        caches = Caches(self.network, lengths, max(map(len, prompts)), sampling)
        logits = self._prefill(prompts, caches)[:, None].expand(-1, sampling.group_size, -1)
        self._count("prefill", begin)
        begin = time.perf_counter()
        tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(uniforms.shape, device=self.device)
        ends = torch.full(uniforms.shape[:2], uniforms.shape[2], device=self.device)
        stop_tokens = torch.tensor(self.stop_tokens, device=self.device)
        groups = torch.arange(len(prompts), device=self.device)  # the groups that are still in the caches
        # The check whether all samples have ended waits for the device; only on a CPU that costs nothing.
        steps_per_check = 1 if self.device.type == "cpu" else self.config.rollout.decode_steps
        for position in range(uniforms.shape[2]):
            tokens[groups, :, position], logprobs[groups, :, position] = self.draw(
                logits, uniforms[groups, :, position], sampling
            )
            stopped = torch.isin(tokens[groups, :, position], stop_tokens)
            ends[groups] = ends[groups].where(~stopped, ends[groups].clamp(max=position + 1))
            if position + 1 == uniforms.shape[2]:
                break
            if (position + 1) % steps_per_check == 0:
                running = (ends[groups] > position + 1).any(dim=1).nonzero()[:, 0]
                if len(running) == 0:
                    break
                if 2 * len(running) <= len(groups):
                    caches.keep(running)
                    groups = groups[running]
            caches.place = position + 1
            positions = (lengths[groups] + position)[:, None].expand(-1, sampling.group_size)
            logits = self._logits(self._hidden(tokens[groups, :, position], positions, caches))
        unwritten = torch.arange(uniforms.shape[2], device=self.device) >= ends[:, :, None]
        results = tokens.masked_fill(unwritten, 0), logprobs.masked_fill(unwritten, 0), ends
        self._count("decode", begin)
        return results

    def _count(self, phase: str, begin: float) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the time counts until the GPU has finished
        super()._count(phase, begin)

    def _prefill(self, prompts: Sequence[np.ndarray], caches: Caches) -> torch.Tensor:
        """Logits `[S, V]` of the first token after each prompt. Writes the prompts' keys and values into the caches."""
        logits = []
        width = self._prefill_width(max(map(len, prompts)))
        for start in range(0, len(prompts), width):
            part = [_tensor(prompt).long() for prompt in prompts[start : start + width]]
            tokens = torch.nn.utils.rnn.pad_sequence(part, batch_first=True).to(self.device)
            positions = torch.arange(tokens.shape[1], device=self.device).expand_as(tokens)
            caches.rows = slice(start, start + len(part))
            last = torch.tensor([len(prompt) - 1 for prompt in part], device=self.device)
            hidden = self._hidden(tokens, positions, caches)
            logits.append(self._logits(hidden[torch.arange(len(part), device=self.device), last]))
        return torch.cat(logits)

    def _hidden(self, tokens: torch.Tensor, positions: torch.Tensor, caches: Caches) -> torch.Tensor:
        """Final hidden states `[B, T, D]` of tokens `[B, T]`."""
        network = self.network.model
        return network(input_ids=tokens, position_ids=positions, use_cache=False, caches=caches).last_hidden_state

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.linear(hidden.float(), self.head)

    def draw(
        self, logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw tokens `[...]` from float32 logits `[..., V]`, and return them with their log-probabilities.

        The log-probabilities are at the scoring temperature and of the whole distribution, without top-k, top-p or min-p.
        """
        tokens = draw(
            logits,
            uniforms,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )
        return tokens, target_logprobs(logits / scoring_temperature(self.config.grpo, sampling.temperature), tokens)


def slot_bytes(settings: Any, longest: int, sampling: Sampling, item: int) -> int:
    """Bytes of one group while it decodes: its caches (`item` bytes for each number), attention scores and logits.

    `settings`: the model's Hugging Face configuration; `longest`: tokens of its prompt.
    """
    size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    columns = longest + sampling.group_size * sampling.max_new_tokens
    # Two layers more than the model has: the caches of a layer are copied when they are read, and when groups are left out.
    layers = settings.num_hidden_layers + 2
    caches = 2 * layers * settings.num_key_value_heads * size * columns * item
    scores = 16 * settings.num_attention_heads * sampling.group_size * (longest + sampling.max_new_tokens)
    return caches + scores + 24 * sampling.group_size * settings.vocab_size


def text_bytes(settings: Any, width: int, length: int, item: int) -> int:
    """Bytes to compute `width` texts of `length` tokens together, without their caches; `item`: bytes of a number."""
    states = width * length * (8 * settings.hidden_size + 4 * settings.intermediate_size) * item
    return states + 8 * width * settings.vocab_size


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A copy of the array, which may be read-only or have negative strides."""
    return torch.from_numpy(np.array(array, order="C"))
