"""vLLM in this process: it reads the learner's weights one by one, and on a GPU it frees its memory while the learner works."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from creason_torch import private_vllm
from creason_torch.model.decoder import long_factors, read_config
from creason_torch.rollout import vllm_names, vllm_options
from creason_torch.rollout.engine import Drawn, Engine
from shared.backend import Sampling, Workload, longest_text
from shared.config import RunConfig
from shared.errors import InputError
from shared.runs import memory

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process, so it can read our tensors
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
CPU_ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",  # without it vLLM takes an installed libtpu for a TPU
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the learner's threads run in this process too
}
BLOCK = 128  # tokens in one block of the KV cache on a CPU
CACHES = 0.5  # the largest fraction of a CPU's free memory (after weights) for caches: a learner may need the rest


class VllmEngine(Engine):
    """vLLM in each process, together with the learner and its process group."""

    def _prepare(self) -> None:
        config, model, device = self.config, self.model, self.device
        on_cpu = device.type == "cpu"
        self.longest = _longest(config, model, self.workload)
        caches = self._cache_bytes() if on_cpu else None
        for name, value in (ENVIRONMENT | (CPU_ENVIRONMENT if on_cpu else {})).items():
            os.environ.setdefault(name, value)
        with _undisturbed(device), _launched(device):
            import vllm

            try:
                self.llm = vllm.LLM(
                    str(model),
                    skip_tokenizer_init=True,
                    generation_config="vllm",  # ignores the sampling options in the checkpoint
                    load_format="dummy",  # the weights come with the first `load`
                    dtype=config.learner.compute_dtype,
                    max_model_len=self.longest,
                    kv_cache_memory_bytes=caches,  # on a CPU; the variable VLLM_CPU_KVCACHE_SPACE overrides it
                    max_num_seqs=config.rollout.slots * config.grpo.group_size,
                    gpu_memory_utilization=config.torch.gpu_memory_utilization,
                    enable_prefix_caching=True,  # the samples of a group share their prompt
                    # With chunked prefill, vLLM resets the random generator of a seeded sample; a CPU's generator cannot do that.
                    enable_chunked_prefill=not on_cpu,
                    logprobs_mode=vllm_options.logprobs_mode(config),
                    enforce_eager=on_cpu,
                    enable_sleep_mode=not on_cpu,
                    hf_overrides={"head_dtype": "float32"},  # bfloat16 logits move log-probabilities by 4e-2
                    seed=config.seed,
                    # With an existing process group, vLLM joins it instead of making one; each process has a world size of 1.
                    distributed_executor_backend="external_launcher" if dist.is_initialized() else None,
                )
            except (ValueError, RuntimeError) as error:
                raise InputError(f"{model}: vLLM does not start with it ({_reason(error)})") from error
        private_vllm.keep_process_group(self.llm)
        self.asleep = False
        self.sleep()

    def sleep(self) -> None:
        """See `Engine.sleep`. Frees weights and caches on a GPU; on a CPU vLLM cannot, and nothing happens."""
        if self.device.type != "cpu" and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep, self.loaded = True, False

    def _cache_bytes(self) -> int:
        """Bytes of the KV cache on a CPU: what all groups that decode at once need, limited by the free memory.

        Raises InputError where the free memory does not hold one sequence."""
        block, all_blocks, blocks_of_one = cache_blocks(
            self.config, read_config(self.model), self.workload, self.longest
        )
        weights = self.weight_bytes()
        free_blocks = int(CACHES * max(0, self.free_bytes() - weights)) // block
        if free_blocks < blocks_of_one and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            raise InputError(
                f"rollout: the free memory, {memory.text(self.free_bytes())} for weights of {memory.text(weights)} and caches, "
                f"holds no sequence of {self.longest} tokens ({memory.text(blocks_of_one * block)}); what helps: fewer tokens, a "
                "smaller model, compute_dtype = 'bfloat16'"
            )
        return min(all_blocks, free_blocks) * block

    def _load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        # On a CPU vLLM keeps a packed copy of the head, and renews it only when it gets a weight under the head's own name.
        named = self._named_twice(weights) if self.device.type == "cpu" else weights
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        if not self.llm.reset_prefix_cache():
            raise InputError("vLLM did not reset its prefix cache: it would answer with old weights")

    def _held(self) -> Mapping[str, torch.Tensor]:
        """The weights whose values vLLM keeps. On a CPU it packs and frees the matrices of layers, so these are left out."""
        weights: dict[str, torch.Tensor] = {}
        dtype = getattr(torch, self.config.learner.compute_dtype)
        for name, held in self._network().named_parameters():
            parts = vllm_names.unfused(name, self._shapes)
            rows = sum(self._shapes[part][0] for part in parts)
            # vLLM pads an embedding with rows up to a multiple of 64.
            if not parts or held.dtype != dtype or held.ndim != len(self._shapes[parts[0]]) or len(held) < rows:
                continue
            sizes = [self._shapes[part][0] for part in parts]
            weights |= dict(zip(parts, held.detach()[:rows].split(sizes), strict=True))
        return weights

    def _network(self) -> torch.nn.Module:
        """vLLM's network in this process."""
        networks: list[torch.nn.Module] = []
        self.llm.apply_model(lambda network: networks.append(network))
        return networks[0]

    def _draw(self, prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: np.ndarray | None) -> Drawn:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        vllm_options.check_sampling(self.config, sampling)
        drawn = Drawn.empty(len(prompts), sampling)
        if not prompts:
            return drawn
        begin = time.perf_counter()
        rows_and_samples = [(row, sample) for row in range(len(prompts)) for sample in range(sampling.group_size)]
        prompted: list[Any] = [{"prompt_token_ids": prompts[row].tolist()} for row, _ in rows_and_samples]
        params = [
            SamplingParams(
                **vllm_options.options(
                    sampling, None if uniforms is None else uniforms[row_and_sample], self.stop_tokens
                ),
                detokenize=False,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for row_and_sample in rows_and_samples
        ]
        for row_and_sample, output in zip(
            rows_and_samples, self.llm.generate(prompted, params, use_tqdm=False), strict=True
        ):
            completion: Any = output.outputs[0]
            length = len(completion.token_ids)
            drawn.tokens[row_and_sample][:length] = completion.token_ids
            drawn.logprobs[row_and_sample][:length] = completion.logprobs.logprobs
            drawn.lengths[row_and_sample] = length
        self._count("decode", begin)
        return drawn

    def _score(self, texts: Sequence[np.ndarray], tokens: Sequence[int]) -> np.ndarray:
        from vllm import SamplingParams

        scored = np.zeros((len(texts), len(tokens)), np.float32)
        if not texts:
            return scored
        prompted: list[Any] = [{"prompt_token_ids": text.tolist()} for text in texts]
        params = SamplingParams(**vllm_options.scoring_options(tokens), detokenize=False)
        for row, output in enumerate(self.llm.generate(prompted, params, use_tqdm=False)):
            logprobs: Any = output.outputs[0].logprobs
            scored[row] = [logprobs[0][token].logprob for token in tokens]
        return scored


def cache_blocks(config: RunConfig, settings: Any, workload: Workload, longest: int) -> tuple[int, int, int]:
    """Bytes of one block of the KV cache, the blocks that all groups decoding at once need, and the blocks of one sequence."""
    size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    item = getattr(torch, config.learner.compute_dtype).itemsize
    block = 2 * settings.num_hidden_layers * settings.num_key_value_heads * size * BLOCK * item
    shared = workload.prompt_tokens // BLOCK  # full blocks of a prompt: its samples share them
    groups = max(config.rollout.slots, config.evaluation.slots)
    all_blocks = 1 + groups * (shared + config.grpo.group_size * (_blocks(longest) - shared))
    return block, all_blocks, 1 + _blocks(longest)


def _longest(config: RunConfig, model: Path, workload: Workload) -> int:
    """Tokens of the longest sequence that vLLM must hold: the run's limit, if fewer would choose other longrope factors."""
    needed, settings = longest_text(config, workload), read_config(model)
    same = long_factors(settings, needed) == long_factors(settings, config.longest_sequence)
    return needed if same else config.longest_sequence


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Undo what vLLM changes in this process: it seeds all global random generators, freezes the garbage collector's objects and,
    on a CPU, replaces `torch.set_num_threads`."""
    generators = random.getstate(), np.random.get_state()  # noqa: NPY002
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        try:
            yield
        finally:
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)
            random.setstate(generators[0])
            np.random.set_state(generators[1])  # noqa: NPY002
            gc.unfreeze()


@contextlib.contextmanager
def _launched(device: torch.device) -> Iterator[None]:
    """Set the variables of a launcher that vLLM reads, for a process group that was made without a launcher."""
    added = {}
    if dist.is_initialized():
        variables = {"RANK": dist.get_rank(), "LOCAL_RANK": device.index or 0, "WORLD_SIZE": dist.get_world_size()}
        added = {name: str(value) for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
