"""Is a run well? A short table of checks on the metrics of each step. A check that fails warns in one line, or stops the run.

A check counts the steps in a row that are beyond its bound. The counts are saved in the checkpoint, so that a run that was
interrupted decides as one that never was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pandas as pd

from shared.config import RunConfig
from shared.errors import SyncError, TrainingError

Line = Mapping[str, Any]  # a step's metrics
COUNT = "health."  # and the name of a check: under this name a checkpoint has the count of the check
BAR_WORDS = {"reward": "reward", "answered": "answered", "truncated": "cut off", "uniform_groups": "uniform"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table. The check fails where its metric is beyond the bound for `patience` steps in a row."""

    name: str
    metric: str
    means: str
    beyond: Literal[">", ">=", "<"]
    bound: float
    patience: int  # steps in a row; 0: off
    stops: bool  # otherwise it warns
    helps: Callable[[Line], str]  # what the user can do, for the metrics of a step

    def is_beyond(self, value: float) -> bool:
        """Not-a-number is beyond every bound."""
        within = {">": value <= self.bound, ">=": value < self.bound, "<": value >= self.bound}
        return not within[self.beyond]


def checks(config: RunConfig) -> list[Check]:
    """The table for a run, in the order of the report."""
    health, grpo = config.health, config.grpo
    completions = grpo.questions_per_step * grpo.group_size
    enough = math.ceil(health.no_signal_completions / completions)
    return [
        Check(
            name="no signal",
            metric="uniform_groups",
            means="in every group all completions have the same reward, so nothing is learned",
            beyond=">=",
            bound=1.0,
            patience=max(health.no_signal_steps, enough) if health.no_signal_steps else 0,
            stops=health.stop,
            helps=lambda line: _signal_helps(line, config),
        ),
        Check(
            name="exploding KL",
            metric="kl",
            means="the policy breaks away from the reference, and its text with it",
            beyond=">",
            bound=health.kl,
            patience=health.kl_steps if grpo.beta > 0 else 0,  # without a reference there is none
            stops=health.stop,
            helps=lambda line: "a lower optimizer.learning_rate, a higher grpo.beta",
        ),
        Check(
            name="collapsing entropy",
            metric="entropy",
            means="all completions of a question are alike, and nothing is left to learn",
            beyond="<",
            bound=health.entropy,
            patience=health.entropy_steps,
            stops=False,
            helps=lambda line: "a higher rollout.temperature or grpo.epsilon_high, a lower optimizer.learning_rate",
        ),
        Check(
            name="lengths at the limit",
            metric="truncated",
            means="the length limit ends completions before they answer",
            beyond=">",
            bound=health.cut_off,
            patience=health.cut_off_steps,
            stops=False,
            helps=lambda line: "a longer limit (rollout.max_new_tokens), grpo.reward_length",
        ),
        Check(
            name="engine and learner apart",
            metric="logprob_gap",
            means="the completions are not the learner's own",
            beyond=">",
            bound=grpo.max_logprob_gap,
            patience=1,
            stops=True,  # whatever `health.stop` says: what is learned from such rollouts is wrong
            helps=lambda line: "",
        ),
    ]


class Watch:
    """Counts, for each check, the steps in a row beyond its bound."""

    def __init__(self, config: RunConfig, saved: Mapping[str, int] | None = None):
        """`saved`: what the checkpoint of an earlier start of this run has (`counts`, among other numbers)."""
        self._checks = {check.name: check for check in checks(config)}
        saved = saved or {}
        self._steps_beyond = {name: saved.get(COUNT + name, 0) for name in self._checks}

    def counts(self) -> dict[str, int]:
        """The counts that are not 0, to be saved in the checkpoint."""
        return {COUNT + name: count for name, count in self._steps_beyond.items() if count}

    def check_update(self, step: int, line: Line, gap_explanation: str) -> None:
        """Raise TrainingError where the loss is no finite number, SyncError where engine and learner differ beyond the bound.

        `line` are the metrics of the update at `step`; `gap_explanation` says what such a difference means in this run.
        """
        if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
            raise TrainingError(
                f"step {step}: loss {line['loss']} and gradient norm {line['grad_norm']} are not finite; lower "
                "optimizer.learning_rate and start again from the last checkpoint"
            )
        gap = self._checks["engine and learner apart"]
        if gap.is_beyond(line[gap.metric]):
            raise SyncError(
                f"step {step}: engine and learner differ by {line[gap.metric]:.3g} nats a token, more than "
                f"grpo.max_logprob_gap = {gap.bound}; {gap_explanation}"
            )

    def count_step(self, step: int, line: Line) -> list[str]:
        """Count a step with the metrics `line`; returns a warning for each check that fails at this step, but not before.

        Raises TrainingError with that warning where such a check stops the run.
        """
        warnings = []
        for name, check in self._checks.items():
            value = line.get(check.metric)
            if not check.patience or value is None:  # a recording of an older version lacks some metrics
                continue
            count = self._steps_beyond[name] + 1 if check.is_beyond(value) else 0
            self._steps_beyond[name] = count
            if check.stops and count >= check.patience:
                raise TrainingError(f"{_warning(check, step, count, line)}; health.stop = False goes on all the same")
            if count == check.patience:
                warnings.append(_warning(check, step, count, line))
        return warnings


def bar_values(line: Line) -> dict[str, str]:
    """Those metrics of a step that the progress bar shows, by their words there."""
    return {word: f"{line[name]:.3f}" for name, word in BAR_WORDS.items() if line.get(name) is not None}


def table(metrics: pd.DataFrame, config: RunConfig) -> list[dict[str, Any]]:
    """The health of a run for its report: a row for each check, from all steps of `metrics` (`metrics_log.read_metrics`).

    Each row has `name`, `means`, `metric`, `bound` (as text), `last` and `worst` values, `steps` beyond the bound, `longest`
    of them in a row, and `verdict`: "well", "beyond its bound", "off" or "not measured".
    """
    rows = []
    every = config.grpo.inner_steps
    rounds = metrics.iloc[every - 1 :: every] if len(metrics) else metrics
    for check in checks(config):
        values = rounds[check.metric].dropna() if check.metric in rounds.columns else pd.Series(dtype=float)
        beyond = values.map(check.is_beyond).astype(bool)
        longest = int(beyond.groupby((~beyond).cumsum()).sum().max()) if len(values) else 0
        verdict = "well" if longest < check.patience else "beyond its bound"
        if not check.patience:
            verdict = "off"
        elif values.empty:
            verdict = "not measured"
        rows.append(
            {
                "name": check.name,
                "means": check.means,
                "metric": check.metric,
                "bound": f"{check.beyond} {check.bound:g} for {check.patience} steps" if check.patience else "",
                "last": None if values.empty else float(values.iloc[-1]),
                "worst": None if values.empty else float(values.min() if check.beyond == "<" else values.max()),
                "steps": int(beyond.sum()),
                "longest": longest,
                "verdict": verdict,
                "action": "stops" if check.stops else "warns",
            }
        )
    return rows


def _warning(check: Check, step: int, count: int, line: Line) -> str:
    text = f"step {step}: {check.name} for {count} steps: {check.means} ({_observed(check, line)})"
    helps = check.helps(line)
    return f"{text}; what helps: {helps}" if helps else text


def _observed(check: Check, line: Line) -> str:
    """In words, the metrics of the step that tell why the check fails."""
    shares = [
        f"{100 * line[name]:.0f} % of completions {words}"
        for name, words in (("answered", "had a readable answer"), ("truncated", "were cut off"))
        if line.get(name) is not None
    ]
    if check.metric == "uniform_groups":
        return ", ".join([*shares, f"mean reward {line['reward']:.3g}"] if "reward" in line else shares)
    if check.metric == "truncated":
        return ", ".join(shares)
    return f"{check.metric} {line[check.metric]:.3g}, bound {check.bound:g}"


def _signal_helps(line: Line, config: RunConfig) -> str:
    """What the user can do where no step has a signal; it depends on what the completions look like."""
    answered, cut_off = line.get("answered", 1.0), line.get("truncated", 0.0)
    helps = []
    if cut_off > 0.5:
        helps.append(f"a longer limit (rollout.max_new_tokens, now {config.rollout.max_new_tokens})")
    if answered < 0.5:
        if not config.grpo.reward_format:
            helps.append("a reward for the format (grpo.reward_format)")
        start = "a model.path that was fine-tuned on such answers" if config.model.path else "more warmup.steps"
        helps.append(f"a supervised start ({start})")
        helps.append("launch.evaluate --protocol=forced_choice, which shows what the model knows without the format")
    elif line.get("reward_answer", 0.0) >= config.grpo.reward_answer > 0:
        helps.append("nothing: every answer is right; take harder questions (data.difficulty), or stop here")
    else:
        helps.append("more completions a group (grpo.group_size), a higher rollout.temperature, easier questions")
    return ", ".join(helps)
