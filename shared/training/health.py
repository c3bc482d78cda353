"""Is a run well? A short table of checks on each step's metrics; what is not well is said in one line, and may stop the run.

Counts of steps in a row are kept in the checkpoint, so that a run that was interrupted decides as one that never was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from shared.errors import SyncError, TrainingError

if TYPE_CHECKING:
    from shared.config import RunConfig

Line = Mapping[str, Any]  # a step's metrics
COUNT = "health."  # in a checkpoint: steps in a row, by the name of a check
LIVE = {"reward": "reward", "answered": "answered", "truncated": "cut off", "uniform_groups": "uniform"}  # in the bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table: a metric that is beyond its bound for `patience` steps in a row."""

    name: str
    metric: str
    means: str
    beyond: Literal[">", ">=", "<"]
    bound: float
    patience: int  # steps in a row; 0: off
    stops: bool  # else it warns
    helps: Callable[[Line], str]

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

    def __init__(self, config: RunConfig, held: Mapping[str, int] | None = None):
        """`held`: what a checkpoint keeps of an earlier start of this run (`counts`)."""
        self._checks = {check.name: check for check in checks(config)}
        held = held or {}
        self._rows = {name: held.get(COUNT + name, 0) for name in self._checks}

    def counts(self) -> dict[str, int]:
        """What a checkpoint keeps; nothing while all is well."""
        return {COUNT + name: count for name, count in self._rows.items() if count}

    def check_update(self, step: int, line: Line, gap_means: str) -> None:
        """Raise TrainingError for an update that is no number, SyncError for one on an engine's completions of other weights.

        `gap_means`: what the gap says of this run.
        """
        if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
            raise TrainingError(
                f"step {step}: loss {line['loss']} and gradient norm {line['grad_norm']} are not finite; lower "
                "optimizer.learning_rate and start again from the last checkpoint"
            )
        apart = self._checks["engine and learner apart"]
        if apart.is_beyond(line[apart.metric]):
            raise SyncError(
                f"step {step}: engine and learner differ by {line[apart.metric]:.3g} nats a token, more than "
                f"grpo.max_logprob_gap = {apart.bound}; {gap_means}"
            )

    def see(self, step: int, line: Line) -> list[str]:
        """Count the metrics of a step and return a line for each check that is beyond its bound long enough since now.

        Raises TrainingError with that line where such a check stops the run.
        """
        told = []
        for name, check in self._checks.items():
            value = line.get(check.metric)
            if not check.patience or value is None:  # an older recording does not say it
                continue
            self._rows[name] = self._rows[name] + 1 if check.is_beyond(value) else 0
            count = self._rows[name]
            if check.stops and count >= check.patience:
                raise TrainingError(f"{_said(check, step, count, line)}; health.stop = False goes on all the same")
            if count == check.patience:
                told.append(_said(check, step, count, line))
        return told


def live(line: Line) -> dict[str, str]:
    """What the progress bar shows of a step's metrics."""
    return {word: f"{line[name]:.3f}" for name, word in LIVE.items() if line.get(name) is not None}


def table(metrics: pd.DataFrame, config: RunConfig) -> list[dict[str, Any]]:
    """The health of a run for its report: a row for each check, from all steps of `metrics` (`metrics.read_metrics`).

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


def _said(check: Check, step: int, count: int, line: Line) -> str:
    text = f"step {step}: {check.name} for {count} steps: {check.means} ({_seen(check, line)})"
    helps = check.helps(line)
    return f"{text}; what helps: {helps}" if helps else text


def _seen(check: Check, line: Line) -> str:
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
    """By what the completions look like."""
    answered, cut_off = line.get("answered", 1.0), line.get("truncated", 0.0)
    found = []
    if cut_off > 0.5:
        found.append(f"a longer limit (rollout.max_new_tokens, now {config.rollout.max_new_tokens})")
    if answered < 0.5:
        if not config.grpo.reward_format:
            found.append("a reward for the format (grpo.reward_format)")
        start = "a model.path that was fine-tuned on such answers" if config.model.path else "more warmup.steps"
        found.append(f"a supervised start ({start})")
        found.append("launch.evaluate --protocol=forced_choice, which shows what the model knows without the format")
    elif line.get("reward_answer", 0.0) >= config.grpo.reward_answer > 0:
        found.append("nothing: every answer is right; take harder questions (data.difficulty), or stop here")
    else:
        found.append("more completions a group (grpo.group_size), a higher rollout.temperature, easier questions")
    return ", ".join(found)
