"""Rung 11: whole small runs: the same questions in the same order, and each run replayed by the other backend's learner."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from configs import smoke
from creason_jax import sharding
from creason_jax.backend import Backend as JaxBackend
from creason_torch.backend import Backend as TorchBackend
from parity.check import Check, unequal
from parity.world import World
from shared import replay, run
from shared.config import RunConfig, validate
from shared.metrics import METRICS_FILE, differences, read_metrics
from shared.replay import Recording
from shared.trajectories import TrajectoryReader

BOUND = 1e-4  # relative, of every step of a replay
COMPARED = ("loss", "grad_norm", "kl", "entropy", "mean_logprob")
EXACT = ("reward", "learning_rate", "completion_length", "tokens")


def checks(world: World) -> Iterator[Check]:
    """A live run of each backend from one seed, then each recording on the other's learner."""
    config = _config(world)
    folder = world.folder / "runs"
    backends = {"jax": _one_device(JaxBackend(config), config), "torch": TorchBackend(config)}
    for name, backend in backends.items():
        run.run(config, backend, folder / name, progress=False)
    yield from _same_questions(config, folder)
    for recorded, name in (("jax", "torch"), ("torch", "jax")):
        workdir = folder / f"{name}-replays-{recorded}"
        replay.run(config, backends[name], workdir, Recording.open(folder / recorded), progress=False)
        metrics = {"live": folder / recorded, "replay": workdir}
        tables = {what: read_metrics(path / METRICS_FILE) for what, path in metrics.items()}
        rows = differences(tables["live"], tables["replay"]).to_dict("records")
        for names, bound in ((COMPARED, BOUND), (EXACT, 0.0)):
            worst = max((row for row in rows if row["metric"] in names), key=lambda row: row["relative"])
            measured = (float(worst["relative"]), f"{worst['metric']} of step {worst['step']}")
            what = f"runs: {', '.join(names)}, {recorded} run replayed by {name}"
            yield Check.of(what, "smoke", f"{recorded} run", measured, bound)
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


def _one_device(backend: Any, config: RunConfig) -> Any:
    """The backend on the first device only: a small run gains nothing from pretended ones."""
    backend.mesh = sharding.make_mesh(config.learner, jax.devices()[:1])
    return backend


def _same_questions(config: RunConfig, folder: Path) -> Iterator[Check]:
    """Questions and rendered prompts of every step, and what both engines made of the first."""
    readers = {name: TrajectoryReader(folder / name / "trajectories") for name in ("jax", "torch")}
    asked: dict[str, dict[str, Any]] = {}
    answered: dict[str, dict[str, Any]] = {}
    for name, reader in readers.items():
        asked[name] = {}
        for step in reader.steps():
            batch, rewards, ids = reader.read(step)
            asked[name] |= {
                f"questions of step {step}": ids,
                f"prompts of step {step}": batch.tokens[:, : batch.layout.prompt],
            }
            if step == 0:
                answered[name] = {"tokens of step 0": batch.tokens, "rewards of step 0": rewards}
    yield Check.of(
        "runs: question order and token ids of prompts", "smoke", "torch", unequal(asked["jax"], asked["torch"]), 0
    )
    measured = unequal(answered["jax"], answered["torch"])
    yield Check.of("runs: sampled tokens and rewards of the first step", "smoke", "torch", measured, 0)
