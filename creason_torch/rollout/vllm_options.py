"""What both ways to vLLM have in common: the options of a sample, and which log-probabilities come back.

vLLM draws by itself: a sample's seed is made from the numbers that the plain engine draws with, so its completions depend on
nothing else either, but they are not the same ones. Its filters act in the order min-p, top-k, top-p.

What a request leaves out, a server takes from `generation_config.json` of the checkpoint (or from config.json), penalties of
repetition too, and raw log-probabilities do not show it: so each request says every such option, and engines are started
with `--generation-config vllm`, as a directory named there would cap the length of completions whatever is said.

vLLM gives raw log-probabilities (log-softmax of the logits, before temperature and filters) or processed ones (after both).
`grpo.score_temperature = 'one'` wants the raw ones, whatever the filters. 'sampling' wants the temperature and no filter: the
processed ones, if nothing is filtered. With a filter vLLM has no such number, and the request is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from shared.backend import Sampling
from shared.config import RunConfig
from shared.errors import InputError

# Nothing beside temperature and filters changes what is drawn.
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
    "ignore_eos": True,  # our own stop tokens alone end a completion
}


def options(sampling: Sampling, uniforms: np.ndarray | None, stop_tokens: Sequence[int]) -> dict[str, Any]:
    """Options of one sample, by the names that vLLM's `SamplingParams` and its server share. `uniforms` `[max_new_tokens]`."""
    return NEUTRAL | {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": None if uniforms is None or sampling.temperature == 0 else seed(uniforms),
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(stop_tokens),
        "logprobs": 0,  # of the token drawn and no other
    }


def seed(uniforms: np.ndarray) -> int:
    """A pure function of the numbers made for a sample, so keyed like them by (seed, step, question, sample)."""
    digest = hashlib.blake2b(np.ascontiguousarray(uniforms, np.float32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # vLLM keeps it in a signed integer of 64 bits


def scoring_options(tokens: Sequence[int]) -> dict[str, Any]:
    """Options of a text whose next token is scored, under the same names: `tokens` are those asked about.

    Greedy, because then no mode of vLLM's divides by a temperature; the token that it draws is thrown away.
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
    """Which of vLLM's log-probabilities a run needs; see the top of this file."""
    return "processed_logprobs" if config.grpo.score_temperature == "sampling" else "raw_logprobs"


def check_sampling(config: RunConfig, sampling: Sampling) -> None:
    """Raise InputError for what vLLM would cut short, or score otherwise than the learner does."""
    limit = config.longest_sequence - config.rollout.max_prompt_tokens
    if sampling.max_new_tokens > limit:
        raise InputError(f"{sampling.max_new_tokens} new tokens are asked for; this engine was made for {limit}")
    filters = sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
    if filters and sampling.temperature > 0 and config.grpo.score_temperature == "sampling":
        raise InputError(
            "grpo.score_temperature = 'sampling' with top_k, top_p or min_p: vLLM does not say these log-probabilities; "
            "use 'one', or torch.rollout_engine = 'hf'"
        )
