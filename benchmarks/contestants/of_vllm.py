"""vLLM's offline engine, with its prefix cache and n samples of a prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import contest


def phases(work: contest.Work) -> Mapping[str, Callable[[], Any]]:
    """The rollout phase; vLLM has no others."""
    questions, group, completion = work.completions.shape
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(work.model),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=work.prompts.shape[1] + completion,
        max_num_seqs=questions * group,
        max_num_batched_tokens=max(2_048, work.prompts.size),
        enable_prefix_caching=True,
    )
    sampling = SamplingParams(
        n=group,
        temperature=contest.TEMPERATURE,
        max_tokens=completion,
        min_tokens=completion,
        ignore_eos=True,
        detokenize=False,
        logprobs=0,
    )
    prompts = [{"prompt_token_ids": prompt.tolist()} for prompt in work.prompts]

    def rollout() -> None:
        engine.reset_prefix_cache()  # in training each step has new prompts and new weights
        requests = engine.generate(prompts, sampling, use_tqdm=False)
        assert all(len(output.token_ids) == completion for request in requests for output in request.outputs)

    return {contest.ROLLOUT: rollout}


if __name__ == "__main__":
    contest.answer(phases)
