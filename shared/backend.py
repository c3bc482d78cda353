"""What training, evaluation and runs ask of a backend, and the sections `rollout` and `learner` of a config.

No tensor of a backend crosses this line: NumPy arrays and numbers only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from shared.errors import InputError
from shared.grpo import GroupBatch
from shared.options.checks import at_least, check

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.grpo.schedule import OptimizerConfig
    from shared.grpo.section import GrpoConfig
    from shared.runs.forecast import Need


BELOW_ONE = 1.0 - 2.0**-20  # the largest uniform number used, so that rounding cannot put a draw beyond the last token
Remat = Literal["none", "layer", "dots", "offload"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Generation during training."""

    temperature: float = 0.9  # sampling temperature (spec: grpo, section 1)
    top_k: int = 0  # sample from the likeliest k tokens; 0: off (spec: grpo, section 1)
    # sample from the likeliest tokens that together have this probability; 1: off (spec: grpo, section 1)
    top_p: float = 1.0
    # leave out tokens less likely than this share of the likeliest one; 0: off (spec: grpo, section 1)
    min_p: float = 0.0
    max_prompt_tokens: int = 9_000  # longest prompt (spec: grpo, section 1)
    max_new_tokens: int = 2_000  # longest completion (spec: grpo, section 1)
    slots: int = 64  # groups that decode at once; the JAX backend takes fewer where memory does not hold them
    prefill_batch: int = 16  # prompts computed in one call
    decode_steps: int = 8  # tokens for each round trip to the host

    def __post_init__(self) -> None:
        at_least(self, 0, "temperature", "top_k")
        at_least(self, 1, "max_prompt_tokens", "max_new_tokens", "slots", "prefill_batch", "decode_steps")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "must be in (0, 1]")
        check(0 <= self.min_p < 1, "min_p", self.min_p, "must be in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """How the update is computed; none of it changes the result beyond rounding."""

    micro_batch_rows: int = 1  # rows in one forward and backward pass, over all devices
    group_layout: bool = True  # False: a row for each completion, its prompt computed again
    # auto: bfloat16 where the device is faster in it (TPUs, GPUs; under PyTorch also CPUs with units for it), float32
    # elsewhere. A run's config.json says which; to compare backends, name one.
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # What the backward pass keeps of each layer, the rest is computed again. "none": all of it; "dots": its products with
    # weights; "layer": its input; "offload": its input, in the host's memory. PyTorch knows "none" and "layer".
    remat: Remat = "layer"
    logprob_chunk: int = 1_024  # tokens whose logits exist at once on one device
    length_bucket: int = 0  # rows are as long as the batch needs, rounded up to this; 0: as the limits, compiled once

    def __post_init__(self) -> None:
        at_least(self, 1, "micro_batch_rows", "logprob_chunk")
        at_least(self, 0, "length_bucket")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn. Temperature 0 is greedy."""

    group_size: int
    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def check_tokens(tokens: np.ndarray, what: str, rows: int) -> None:
    """Raise InputError for token ids beyond an embedding of so many `rows`: JAX would take another row, PyTorch fail."""
    beyond = tokens[(tokens < 0) | (tokens >= rows)]
    if beyond.size:
        raise InputError(f"{what}: token id {int(beyond[0])} is beyond the model's embedding, which has {rows} rows")


def check_stop_tokens(stop_tokens: Sequence[int], rows: int) -> None:
    """Raise InputError where no token ends a completion, or one that the model cannot write; below 0 stands for none."""
    if not stop_tokens:
        raise InputError("the rollout engine needs at least one stop token")
    check_tokens(np.maximum(np.asarray(stop_tokens), 0), "stop tokens", rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The most that an engine will be asked, by those who know their prompts: it makes room for no more.

    The config's limits stand beside: they choose a model's rotation (docs/models.md), which must not depend on the prompts.
    """

    prompt_tokens: int  # of the longest prompt
    questions: int  # answered greedily in one evaluation
    scored_tokens: int = 0  # of a text whose next token is asked for, beyond its prompt and completion

    @classmethod
    def of_limits(cls, config: RunConfig) -> Workload:
        """As much as the config allows."""
        return cls(prompt_tokens=config.rollout.max_prompt_tokens, questions=2**31 - 1)


def longest_text(config: RunConfig, workload: Workload) -> int:
    """Tokens of the longest sequence that an engine must hold: the run's own limit, or what the workload needs."""
    completion = config.longest_sequence - config.rollout.max_prompt_tokens
    return min(config.longest_sequence, workload.prompt_tokens + completion + workload.scored_tokens)


def check_request(
    prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: np.ndarray | None, *, longest: int, rows: int
) -> None:
    """Raise InputError for a request that no engine can answer: `longest` limits a prompt, `rows` its token ids."""
    for index, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= longest:
            raise InputError(f"prompt {index} has {len(prompt)} tokens; rollout.max_prompt_tokens is {longest}")
        check_tokens(np.asarray(prompt), f"prompt {index}", rows)
    if uniforms is None and sampling.temperature > 0:
        raise InputError("sampling with a temperature needs its random numbers")
    needed = (len(prompts), sampling.group_size, sampling.max_new_tokens)
    if uniforms is not None and uniforms.shape != needed:
        raise InputError(f"random numbers of shape {uniforms.shape} were given for {needed} draws")


def longest_scored(config: RunConfig) -> int:
    """Tokens of the longest text that an engine says the next token of."""
    return config.longest_sequence - 1


def check_scored(config: RunConfig, texts: Sequence[np.ndarray], tokens: np.ndarray, *, rows: int) -> None:
    """Raise InputError for a text whose next token no engine can score, or `tokens` that an embedding of `rows` lacks."""
    check_tokens(np.asarray(tokens), "tokens to score", rows)
    for index, text in enumerate(texts):
        if not 1 <= len(text) <= longest_scored(config):
            raise InputError(f"text {index} has {len(text)} tokens; at most {longest_scored(config)} can be scored")
        check_tokens(np.asarray(text), f"text {index}", rows)


def scoring_temperature(config: GrpoConfig, temperature: float) -> float:
    """What logits are divided by when tokens drawn at `temperature` (0: greedy) are scored, on every side alike."""
    return temperature if config.score_temperature == "sampling" and temperature > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class Completion:
    """Token ids, the end-of-sequence token included, and the log-probability of each under the engine's weights.

    `truncated` is true where the length limit ended it.
    """

    tokens: np.ndarray  # [time] int32
    logprobs: np.ndarray  # [time] float32
    truncated: bool


@dataclasses.dataclass(frozen=True)
class Probe:
    """Rows of a tensor (along its first axis) that engine and learner are compared by; `rows` None: all of them."""

    name: str
    rows: tuple[int, ...] | None


class RolloutEngine(Protocol):
    """Generates completions with the weights last published to it."""

    version: int | None  # of the weights last taken whole: the learner's `step`; None: no learner's, or none yet
    whole_tensors: bool  # digests are of whole tensors only

    def readable(self) -> Mapping[str, int]:
        """Rows of each tensor that can be read back, by the names that the learner has for them."""
        ...

    def digests(self, probes: Sequence[Probe]) -> list[str]:
        """SHA-256 of the bytes of each probe, read back from what this engine generates with, in its number format.

        Every process calls it.
        """
        ...

    def generate(
        self, prompts: Sequence[np.ndarray], sampling: Sampling, uniforms: np.ndarray | None
    ) -> list[list[Completion]]:
        """One list of `group_size` completions for each prompt.

        Every process calls it with all prompts and gets all completions; which process makes which is the engine's affair.
        `uniforms` `[prompts, group_size, max_new_tokens]` decide every draw, so a completion depends on its prompt and
        its own numbers alone; None where sampling is greedy. Raises InputError for a prompt longer than the engine holds.
        """
        ...

    def next_token_logprobs(self, texts: Sequence[np.ndarray], tokens: np.ndarray) -> np.ndarray:
        """`[texts, tokens]` float32: the log-probability of each of `tokens` `[tokens]` to come next after each text.

        Of the whole vocabulary's distribution at temperature 1, whatever the run samples and scores with. Called like
        `generate`. A text may be a prompt and its completion (`longest_scored`); InputError for a longer one.
        """
        ...

    def sleep(self) -> None:
        """Give the device's memory to the learner until new weights are published, where the engine can."""
        ...

    def seconds(self) -> Mapping[str, float]:
        """Time spent since the last call, by phase (`prefill`, `decode`)."""
        ...


class Learner(Protocol):
    """Sharded weights, optimizer state and reference policy.

    Every process calls every method, with whole batches, and gets whole results; each works on its own rows.
    """

    step: int  # updates made so far, those before a restored checkpoint included

    def digests(self, probes: Sequence[Probe]) -> list[str]:
        """SHA-256 of the bytes of each probe of the policy, in the number format that is published."""
        ...

    def logprobs(self, batch: GroupBatch, which: Literal["policy", "reference"]) -> np.ndarray:
        """`[batch, time]` float32 log-probabilities of the batch's tokens, 0 where `completion_mask` is 0."""
        ...

    def update(self, batch: GroupBatch) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        ...

    def sync_reference(self) -> None:
        """Mix the policy into the reference policy, in float32 (spec: grpo, section 1)."""
        ...

    def publish(self, engine: Any) -> None:
        """The engine generates with the learner's weights from now on, as version `step`; its caches are reset."""
        ...

    def save(self, folder: Path | str, step: int, extra: Mapping[str, int]) -> None:
        """Save everything that the run needs to go on; `extra` comes back from `restore`. Atomic.

        `folder` may be an address in a bucket, where the backend's `checkpoints_in_buckets` says so.
        """
        ...

    def restore(self, folder: Path | str, step: int | None = None) -> tuple[int, dict[str, int]] | None:
        """Load the newest checkpoint (or `step`), or return None where there is none."""
        ...

    def finish_saves(self) -> None:
        """Return when every checkpoint begun is on disk."""
        ...

    def export(self, folder: Path) -> None:
        """Write the policy as a Hugging Face model directory (config.json and safetensors)."""
        ...


class Backend(Protocol):
    """Builds the parts for a run."""

    name: str
    process: int  # this process's number; number 0 writes files
    processes: int
    checkpoints_in_buckets: bool
    device_kind: str  # cpu, cuda or tpu

    def resolved(self, config: RunConfig) -> RunConfig:
        """The config with what depends on the device decided: `learner.compute_dtype` where it is auto."""
        ...

    def barrier(self) -> None:
        """Return when every process has come here."""
        ...

    def any_process(self, flag: bool) -> bool:
        """True in every process where it was true in any. Every process calls it."""
        ...

    def same(self, value: bytes) -> bool:
        """True in every process where all gave the same bytes, as many of them. Every process calls it."""
        ...

    def need(self, config: RunConfig, model: Path, workload: Workload, *, trains: bool) -> Need:
        """What the run needs of this machine, by the architecture in `model` (its config.json; no weights are read or needed).

        `trains` False: it only answers. Every process calls it.
        """
        ...

    def learner(
        self, config: RunConfig, model: Path, *, optimizer: OptimizerConfig, steps: int, reference: bool
    ) -> Learner:
        """A learner that starts from the weights in `model`; the schedule ends at `steps`."""
        ...

    def engine(
        self, config: RunConfig, model: Path, *, stop_tokens: Sequence[int], workload: Workload | None = None
    ) -> RolloutEngine:
        """An engine for `model`'s architecture; it must be published to before it generates. It makes room for `workload`, or
        for the config's limits. Raises InputError where the free memory does not hold that."""
        ...

    def engine_kind(self, config: RunConfig) -> str:
        """Which engine `engine` makes for this config: "jax", "vllm", "server" or "hf"."""
        ...

    def load(self, engine: Any, model: Path) -> None:
        """Give the engine the weights in `model`, without a learner."""
        ...

    def plain_logprobs(
        self, engine: Any, model: Path, prompts: Sequence[np.ndarray], completions: Sequence[Completion]
    ) -> list[np.ndarray]:
        """Of each completion the log-probabilities `[time]` of its tokens, at the temperature that the run scores with.

        By one forward pass without caches, with the weights read from `model` layer by layer, so that no second model is
        held. Neither the engine's weights nor its code take part: `shared.evaluation.engine_check` judges the engine by it.
        `engine` says where and in which type it computes. Every process calls it, with everything, and gets everything.
        """
        ...


def told_by_first(backend: Backend, number: int) -> int:
    """Process 0's number (0 to 2**31 - 1), in every process; all call it together."""
    if backend.processes == 1:
        return number
    own = number if backend.process == 0 else 0
    return sum(backend.any_process(bool(own >> bit & 1)) << bit for bit in range(31))
