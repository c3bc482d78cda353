"""vLLM in this process: weights are streamed into it, and on a GPU it sleeps while the learner works."""

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
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is in this process, and reads our stream of weights itself
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
CPU_ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",  # else libtpu beside it is taken for a TPU
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the learner's threads are in this process too
}
BLOCK = 128  # tokens of a block of its caches on a CPU
CACHES = 0.5  # of the memory that its weights leave free on a CPU at most: a learner may live there, too


class VllmEngine(Engine):
    """One instance for each process, beside the learner and its process group."""

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
                    generation_config="vllm",  # not the checkpoint's own options of sampling
                    load_format="dummy",  # the weights come with the first `load`
                    dtype=config.learner.compute_dtype,
                    max_model_len=self.longest,
                    kv_cache_memory_bytes=caches,  # on a CPU; VLLM_CPU_KVCACHE_SPACE in the environment counts more
                    max_num_seqs=config.rollout.slots * config.grpo.group_size,
                    gpu_memory_utilization=config.torch.gpu_memory_utilization,
                    enable_prefix_caching=True,  # the samples of a group share their prompt
                    # A sample with a seed whose prompt is computed in parts makes vLLM set its generator back, which those
                    # of a CPU cannot do.
                    enable_chunked_prefill=not on_cpu,
                    logprobs_mode=vllm_options.logprobs_mode(config),
                    enforce_eager=on_cpu,
                    enable_sleep_mode=not on_cpu,
                    hf_overrides={"head_dtype": "float32"},  # bfloat16 logits move log-probabilities by 4e-2
                    seed=config.seed,
                    # In a process group that exists already vLLM takes its place in it; each process is a world of one.
                    distributed_executor_backend="external_launcher" if dist.is_initialized() else None,
                )
            except (ValueError, RuntimeError) as error:
                raise InputError(f"{model}: vLLM does not start with it ({_reason(error)})") from error
        private_vllm.keep_process_group(self.llm)
        self.asleep = False
        self.sleep()

    def sleep(self) -> None:
        """See `Engine.sleep`. Weights and caches are dropped; on a CPU vLLM cannot, and nothing happens."""
        if self.device.type != "cpu" and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep, self.loaded = True, False

    def _cache_bytes(self) -> int:
        """Of the caches on a CPU: what all groups that decode at once need, or what is free. Raises InputError where that does
        not hold one sequence."""
        block, wanted, least = cache_blocks(self.config, read_config(self.model), self.workload, self.longest)
        weights = self.weight_bytes()
        there = int(CACHES * max(0, self.free_bytes() - weights)) // block
        if there < least and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            raise InputError(
                f"rollout: the free memory, {memory.text(self.free_bytes())} for weights of {memory.text(weights)} and caches, "
                f"holds no sequence of {self.longest} tokens ({memory.text(least * block)}); what helps: fewer tokens, a "
                "smaller model, compute_dtype = 'bfloat16'"
            )
        return min(wanted, there) * block

    def _load(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        # On a CPU vLLM keeps a packed copy of the head, which it makes anew only for a weight of the head's own name.
        named = self._named_twice(weights) if self.device.type == "cpu" else weights
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        if not self.llm.reset_prefix_cache():
            raise InputError("vLLM did not reset its prefix cache: it would answer with old weights")

    def _held(self) -> Mapping[str, torch.Tensor]:
        """Weights that vLLM keeps with their values. On a CPU it packs the matrices of layers, and what is left is empty."""
        found: dict[str, torch.Tensor] = {}
        dtype = getattr(torch, self.config.learner.compute_dtype)
        for name, held in self._network().named_parameters():
            parts = vllm_names.unfused(name, self._shapes)
            rows = sum(self._shapes[part][0] for part in parts)
            # An embedding has more rows than the model, up to a multiple of 64.
            if not parts or held.dtype != dtype or held.ndim != len(self._shapes[parts[0]]) or len(held) < rows:
                continue
            sizes = [self._shapes[part][0] for part in parts]
            found |= dict(zip(parts, held.detach()[:rows].split(sizes), strict=True))
        return found

    def _network(self) -> torch.nn.Module:
        """vLLM's own, in this process."""
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
        places = [(row, sample) for row in range(len(prompts)) for sample in range(sampling.group_size)]
        prompted: list[Any] = [{"prompt_token_ids": prompts[row].tolist()} for row, _ in places]
        params = [
            SamplingParams(
                **vllm_options.options(sampling, None if uniforms is None else uniforms[place], self.stop_tokens),
                detokenize=False,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for place in places
        ]
        for place, output in zip(places, self.llm.generate(prompted, params, use_tqdm=False), strict=True):
            found: Any = output.outputs[0]
            length = len(found.token_ids)
            drawn.tokens[place][:length] = found.token_ids
            drawn.logprobs[place][:length] = found.logprobs.logprobs
            drawn.lengths[place] = length
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
            found: Any = output.outputs[0].logprobs
            scored[row] = [found[0][token].logprob for token in tokens]
        return scored


def cache_blocks(config: RunConfig, settings: Any, workload: Workload, longest: int) -> tuple[int, int, int]:
    """Bytes of one block of caches, the blocks that all groups that decode at once need, and those of one sequence."""
    size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    item = getattr(torch, config.learner.compute_dtype).itemsize
    block = 2 * settings.num_hidden_layers * settings.num_key_value_heads * size * BLOCK * item
    shared = workload.prompt_tokens // BLOCK  # full blocks of a prompt, which its samples share
    groups = max(config.rollout.slots, config.evaluation.slots)
    wanted = 1 + groups * (shared + config.grpo.group_size * (_blocks(longest) - shared))
    return block, wanted, 1 + _blocks(longest)


def _longest(config: RunConfig, model: Path, workload: Workload) -> int:
    """Tokens of the longest sequence that vLLM must hold; the run's limit where less would choose other longrope factors."""
    needed, settings = longest_text(config, workload), read_config(model)
    same = long_factors(settings, needed) == long_factors(settings, config.longest_sequence)
    return needed if same else config.longest_sequence


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """vLLM seeds every global generator, freezes what can be collected and, on a CPU, takes `torch.set_num_threads` away."""
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
    """What a launcher's environment says, for a process group that was made without one."""
    added = {}
    if dist.is_initialized():
        wanted = {"RANK": dist.get_rank(), "LOCAL_RANK": device.index or 0, "WORLD_SIZE": dist.get_world_size()}
        added = {name: str(value) for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
