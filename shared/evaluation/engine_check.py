"""A check before an evaluation: does the engine compute what the model's weights compute?

An engine whose weights did not arrive, or only in part, still writes fluent answers of a worse model, and nothing in them
shows it. So before every evaluation the engine answers a few of the prompts with some tokens, and its log-probabilities of
these tokens are compared with those of a plain forward pass. That pass uses no caches and shares nothing with the engine: in
a run it is the learner's, elsewhere `Backend.plain_logprobs`. Where the difference is above the bound, SyncError ends the
program before an answer is written.

Where letters are chosen by their probability (`forced_choice`), the engine's log-probabilities of letters are compared too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared import grpo
from shared.backend import (
    Backend,
    Completion,
    Learner,
    RolloutEngine,
    Sampling,
    longest_scored,
    scoring_temperature,
)
from shared.errors import SyncError
from shared.evaluation.forced_choice import forced_text
from shared.grpo import GroupLayout
from shared.randomness import uniforms

if TYPE_CHECKING:
    from shared.config import RunConfig

PROMPTS = 4  # and at least one for each process, which may have an engine of its own
TOKENS = 32  # of each answer, at most
# Nats a token, in the answer with the largest difference. Right engines were measured to differ by 2e-5, in bfloat16 by 0.01,
# wrong ones by 0.3 and more.
BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}


@dataclasses.dataclass(frozen=True)
class Forced:
    """What a forced choice asks an engine for: after `phrase` `[time]` one of `letters` `[5]`, all token ids.

    `stop`: the tokens that end a completion.
    """

    phrase: np.ndarray
    letters: np.ndarray
    stop: Sequence[int]


# From prompts and completions to the log-probabilities of each completion's tokens, at the temperature that a run scores with.
PlainLogprobs = Callable[[Sequence[np.ndarray], Sequence[Completion]], list[np.ndarray]]


def check_engine(
    config: RunConfig,
    backend: Backend,
    engine: RolloutEngine,
    prompts: Sequence[np.ndarray],
    plain: PlainLogprobs,
    forced: Forced | None = None,
) -> dict[str, float | str]:
    """Compare the engine with `plain` on some of `prompts`; returns the figures that are kept beside the answers.

    `engine`: its name. `tokens`: how many were compared. `gap`: the mean difference in the answer where it is largest, and
    `bound`, the largest gap that is allowed, both in nats a token. With `forced` also `letters`, how many were compared, and
    `letters_gap`, their mean difference, which has the same bound.

    Every process calls it, and it raises in all or in none. Raises SyncError where a difference is above `BOUNDS`, or not a
    number.
    """
    figures: dict[str, float | str] = {"engine": engine_name(backend, engine), "tokens": 0, "gap": 0.0}
    bound = BOUNDS[config.learner.compute_dtype]
    chosen = _chosen(prompts, max(PROMPTS, backend.processes))
    if chosen:
        completions = _answers(config, engine, chosen)
        expected = plain(chosen, completions)
        gaps = [
            np.abs(completion.logprobs - scored).mean()
            for completion, scored in zip(completions, expected, strict=True)
        ]
        figures |= {"tokens": sum(len(completion.tokens) for completion in completions), "gap": float(np.max(gaps))}
        _refuse_beyond(config, backend, figures, "gap", "")
        if forced is not None:
            figures |= _letters_compared(config, engine, chosen, completions, plain, forced)
            _refuse_beyond(config, backend, figures, "letters_gap", " that may come next")
    return figures | {"bound": bound}


def _refuse_beyond(config: RunConfig, backend: Backend, figures: dict[str, float | str], name: str, which: str) -> None:
    bound = BOUNDS[config.learner.compute_dtype]
    if backend.any_process(not float(figures[name]) <= bound):  # so that not-a-number is refused too
        raise SyncError(
            f"evaluation: the engine ({figures['engine']}) differs from a plain forward pass by {figures[name]:.3g} nats a "
            f"token{which}, more than {bound} ({config.learner.compute_dtype}); its answers would be another model's, so none "
            "is kept; use another engine (torch.rollout_engine, --engine), or report this one"
        )


def _letters_compared(
    config: RunConfig,
    engine: RolloutEngine,
    prompts: Sequence[np.ndarray],
    completions: Sequence[Completion],
    plain: PlainLogprobs,
    forced: Forced,
) -> dict[str, float | str]:
    """How far the engine's log-probabilities of letters, each after an answer and the phrase, are from those of `plain`.

    The mean over letters is compared: in bfloat16 a single unlikely letter may differ by more than the bound.
    """
    places = [place % len(prompts) for place in range(max(len(forced.letters), len(prompts)))]
    texts = [
        forced_text(
            prompts[place],
            completions[place].tokens,
            forced.phrase,
            longest=longest_scored(config),
            stop=forced.stop,
        )
        for place in places
    ]
    columns = np.arange(len(texts)) % len(forced.letters)
    stated = engine.next_token_logprobs(texts, forced.letters)[np.arange(len(texts)), columns]
    letters = [
        Completion(forced.letters[[column]], stated[[row]], truncated=True) for row, column in enumerate(columns)
    ]
    scored = np.concatenate(plain(texts, letters))
    return {"letters": len(texts), "letters_gap": float(np.abs(stated - scored).mean())}


def check_by_file(
    config: RunConfig,
    backend: Backend,
    engine: RolloutEngine,
    prompts: Sequence[np.ndarray],
    folder: Path,
    forced: Forced | None = None,
) -> dict[str, float | str]:
    """`check_engine` for an engine that has the weights in `folder`, where there is no learner."""
    plain = functools.partial(backend.plain_logprobs, engine, folder)
    return check_engine(config, backend, engine, prompts, plain, forced)


def check_by_learner(
    config: RunConfig, backend: Backend, engine: RolloutEngine, prompts: Sequence[np.ndarray], learner: Learner
) -> dict[str, float | str]:
    """`check_engine` for an engine that has the learner's weights."""
    return check_engine(config, backend, engine, prompts, functools.partial(learner_logprobs, config, learner))


def learner_logprobs(
    config: RunConfig, learner: Learner, prompts: Sequence[np.ndarray], completions: Sequence[Completion]
) -> list[np.ndarray]:
    """`PlainLogprobs` by a learner. Rows have the layout of training, so that nothing is compiled for this alone."""
    layout = GroupLayout(
        prompt=config.rollout.max_prompt_tokens,
        group=config.grpo.group_size,
        completion=config.rollout.max_new_tokens,
    )
    batch = grpo.pack(
        prompts,
        [[completion.tokens] * layout.group for completion in completions],
        layout,
        advantages=np.zeros((len(prompts), layout.group)),
    )
    batch = grpo.pad_rows(batch, max(len(prompts), config.grpo.questions_per_step))
    batch = batch if config.learner.group_layout else grpo.separate_rows(batch)
    scored = grpo.completion_view(learner.logprobs(batch, "policy"), batch.layout)
    return [row[: len(completion.tokens)] for row, completion in zip(scored[:: layout.group], completions)]


def engine_name(backend: Backend, engine: RolloutEngine) -> str:
    """The name by which an evaluation remembers which engine answered."""
    return f"{backend.name} {type(engine).__name__}"


def _chosen(prompts: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """The shortest prompt, the longest, and some of the lengths between."""
    if not len(prompts):
        return []
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    places = np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int)
    return [prompts[order[place]] for place in places]


def _answers(config: RunConfig, engine: RolloutEngine, prompts: Sequence[np.ndarray]) -> list[Completion]:
    """Greedy answers as in an evaluation; drawn ones where the learner scores only at the temperature of training."""
    limit = min(config.evaluation.max_new_tokens or TOKENS, config.rollout.max_new_tokens, TOKENS)
    drawn = scoring_temperature(config.grpo, config.rollout.temperature) != 1
    temperature = config.rollout.temperature if drawn else 0.0
    sampling = Sampling(group_size=1, temperature=temperature, max_new_tokens=limit)
    numbers = None
    if drawn:
        numbers = np.stack([[uniforms(limit, config.seed, "engine check", row)] for row in range(len(prompts))])
    return [group[0] for group in engine.generate(prompts, sampling, numbers)]
