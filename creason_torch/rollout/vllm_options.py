"""What the two vLLM engines share: the options of a sample, and the kind of log-probabilities that vLLM returns.

**Seeds.** vLLM draws tokens itself. A sample's seed is computed from the uniform numbers that the Hugging Face engine would use.
So a completion depends on these numbers only, as with that engine; but the completions of the two engines differ. vLLM applies
its filters in the order min-p, top-k, top-p.

**Defaults.** An option that a request leaves out comes from the checkpoint's `generation_config.json` or `config.json`.
Repetition penalties do too, and raw log-probabilities do not show them. So each request names every such option. Engines are
started with `--generation-config vllm`: with a folder there, vLLM could limit the length of completions, whatever the request
says.

**Log-probabilities.** vLLM returns raw ones (log-softmax of the logits, before temperature and filters) or processed ones (after
both). `grpo.score_temperature = 'one'` needs the raw ones, with any filters. 'sampling' needs the temperature but no filters:
the processed ones, if the run uses no filter. With a filter, vLLM cannot return them, and the request is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from shared.backend import Sampling
from shared.config import RunConfig
from shared.errors import InputError

# Every other option is neutral: only temperature and filters change what is drawn.
NEUTRAL: dict[str, Any] = {
    "n": 1,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "stop": [],
    "bad_words": [],
    "logit_bias": None,
    "allowed_token_ids": None,
    "watermarking": False,
    "ignore_eos": True,  # only the request's `stop_token_ids` end a completion
}


def options(sampling: Sampling, uniforms: np.ndarray | None, stop_tokens: Sequence[int]) -> dict[str, Any]:
    """Options of one sample, under the names that vLLM's `SamplingParams` and its server share.

    `uniforms` `[max_new_tokens]`: the sample's uniform numbers, or None for greedy sampling.
    """
    return NEUTRAL | {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": None if uniforms is None or sampling.temperature == 0 else seed(uniforms),
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(stop_tokens),
        "logprobs": 0,  # only of the drawn token
    }


def seed(uniforms: np.ndarray) -> int:
    """The seed of a sample: a pure function of its uniform numbers, which (seed, step, question, sample) determine."""
    digest = hashlib.blake2b(np.ascontiguousarray(uniforms, np.float32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # vLLM stores it as a signed 64-bit integer


def scoring_options(tokens: Sequence[int]) -> dict[str, Any]:
    """Options to get the log-probability of each of `tokens` as the next token after a text; names as in `options`.

    Greedy, because then vLLM divides by no temperature in any of its modes. The token that it draws is ignored.
    """
    return NEUTRAL | {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": None,
        "max_tokens": 1,
        "stop_token_ids": [],
        "logprob_token_ids": list(tokens),
        "logprobs": len(tokens),
    }


def logprobs_mode(config: RunConfig) -> Literal["raw_logprobs", "processed_logprobs"]:
    """The kind of vLLM's log-probabilities that a run needs; see the top of this file."""
    return "processed_logprobs" if config.grpo.score_temperature == "sampling" else "raw_logprobs"


def check_sampling(config: RunConfig, sampling: Sampling) -> None:
    """Raise InputError for completions that are too long for this engine, and for log-probabilities that vLLM cannot give."""
    limit = config.longest_sequence - config.rollout.max_prompt_tokens
    if sampling.max_new_tokens > limit:
        raise InputError(f"{sampling.max_new_tokens} new tokens are asked for; this engine was made for {limit}")
    filters = sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
    if filters and sampling.temperature > 0 and config.grpo.score_temperature == "sampling":
        raise InputError(
            "grpo.score_temperature = 'sampling' with top_k, top_p or min_p: vLLM cannot return these log-probabilities; "
            "use 'one', or torch.rollout_engine = 'hf'"
        )
