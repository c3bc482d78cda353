"""Rung 12: whole small runs: the same questions in the same order, and each run replayed by the other backend's learner."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs import smoke
from parity.check import Check, Measured, unequal
from parity.world import World
from shared.config import RunConfig, validate
from shared.grpo import completion_view
from shared.runs import replay, run
from shared.runs.replay import Recording
from shared.training.metrics_log import METRICS_FILE, differences, read_metrics
from shared.training.trajectories import TrajectoryReader

BOUND = 1e-4  # relative, of every step of a replay
FEW = 0.05  # of the completions of a step
COMPARED = ("loss", "grad_norm", "kl", "entropy", "mean_logprob")
EXACT = ("reward", "learning_rate", "completion_length", "tokens")


def checks(world: World) -> Iterator[Check]:
    """A live run of each backend from one seed, then each recording on the other's learner."""
    config = _config(world)
    folder = world.folder / "runs"
    backends = {side.name: side.backend(config) for side in world.sides}
    run.run(config, backends["jax"], folder / "jax", progress=False)
    same = _from_the_policy_of(config, folder / "jax")
    run.run(same, backends["torch"], folder / "torch", progress=False)
    yield from _same_questions(folder)
    for recorded, name in (("jax", "torch"), ("torch", "jax")):
        workdir = folder / f"{name}-replays-{recorded}"
        chosen = {"jax": config, "torch": same}[recorded]
        replay.run(chosen, backends[name], workdir, Recording.open(folder / recorded), progress=False)
        metrics = {"live": folder / recorded, "replay": workdir}
        tables = {what: read_metrics(path / METRICS_FILE) for what, path in metrics.items()}
        rows = differences(tables["live"], tables["replay"]).to_dict("records")
        for names, bound in ((COMPARED, BOUND), (EXACT, 0.0)):
            worst = max((row for row in rows if row["metric"] in names), key=lambda row: row["relative"])
            measured = Measured(float(worst["relative"]), f"{worst['metric']} of step {worst['step']}", "relative")
            what = f"{', '.join(names)}, {recorded} run replayed by {name}"
            yield Check.of("runs", what, "smoke", f"{recorded} run", measured, bound)
        for metric in ("loss", "reward"):
            curves = {f"{recorded} run": tables["live"][metric], f"replayed by {name}": tables["replay"][metric]}
            world.curves[f"{metric} of the {recorded} run and of its replay"] = {
                label: [None if math.isnan(value) else value for value in values] for label, values in curves.items()
            }


def _config(world: World) -> RunConfig:
    config = smoke.get_config()
    config.seed = world.config.seed
    config.store_trajectories = True
    config.torch.rollout_engine = "hf"
    return validate(config)


def _from_the_policy_of(config: RunConfig, workdir: Path) -> RunConfig:
    """The run on the questions of another and from its policy: two warm-ups end with weights that are not quite the same."""
    questions = workdir / "data" / "questions"
    data = dataclasses.replace(
        config.data, train=str(questions / "train.parquet"), valid=str(questions / "valid.parquet")
    )
    model = dataclasses.replace(config.model, path=str(workdir / "policy"))
    return dataclasses.replace(config, data=data, model=model)


def _same_questions(folder: Path) -> Iterator[Check]:
    """Questions and rendered prompts of every step; what both engines sampled in the first, which starts from equal weights.

    A draw within rounding of a boundary between two tokens may fall on either side of it, and the completion goes on from
    there, so a few may differ.
    """
    readers = [TrajectoryReader(folder / name / "trajectories") for name in ("jax", "torch")]
    asked: list[dict[str, Any]] = [{}, {}]
    for found, reader in zip(asked, readers):
        for step in reader.steps():
            batch, _, ids = reader.read(step)
            found[f"questions of step {step}"] = ids
            found[f"prompts of step {step}"] = batch.tokens[:, : batch.layout.prompt]
    yield Check.of("runs", "question order and token ids of prompts", "smoke", "torch", unequal(*asked), 0)
    firsts = [reader.read(0)[0] for reader in readers]
    sampled = [completion_view(batch.tokens, batch.layout) for batch in firsts]
    different = (sampled[0] != sampled[1]).any(axis=1)
    first = f"completion {int(different.argmax())}" if different.any() else ""
    measured = Measured(float(different.mean()), first, "share")
    yield Check.of("runs", "completions of the first step that differ", "smoke", "torch", measured, FEW)
