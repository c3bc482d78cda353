"""The sections of a run's config about training: `warmup`, `health` and `checkpoint`."""

from __future__ import annotations

import dataclasses

from shared.grpo.schedule import OptimizerConfig
from shared.options.checks import at_least, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """Next-token training before GRPO, for a policy that starts from random weights; off where `steps` is 0."""

    steps: int = 0  # optimizer steps; 0: none
    batch_size: int = 32  # documents in a step
    sequence_length: int = 256  # tokens of a document; longer ones are cut
    worked_answers: int = 1_000  # training questions shown with their answer; the rest is serialised records
    worked_fraction: float = 0.5  # share of worked answers in a batch
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, b2=0.95, warmup_ratio=0.05)

    def __post_init__(self) -> None:
        at_least(self, 0, "steps", "worked_answers")
        at_least(self, 1, "batch_size")
        at_least(self, 2, "sequence_length")
        check(0 <= self.worked_fraction <= 1, "worked_fraction", self.worked_fraction, "must be in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Bounds of `shared.training.health.checks`. Steps are counted in a row; 0 steps switch a check off.

    A step here is one round of rollouts: with `grpo.inner_steps` = 1 an optimizer step.
    """

    stop: bool = True  # False: the run warns and continues where it would stop
    # No group with a difference, in so many steps and in so many completions at least. 0 of 100 means, at 95 %, that fewer than
    # 3 in 100 completions differ from their group (rule of three: Hanley & Lippman-Hand, JAMA 1983): nothing to learn from.
    no_signal_steps: int = 5
    no_signal_completions: int = 100  # without a difference, at least; see no_signal_steps
    # Nats a token to the reference (k3, Schulman 2020, which one unlikely token can make large). The quickstart, which learns
    # fast, has a median of 0.05 and reached 1.1 in two steps in a row; a text that stays at 5 is not the reference's language.
    kl: float = 5.0
    kl_steps: int = 5  # steps in a row above kl
    # Nats a token. What reward can still be gained falls with entropy and ends where it is 0 (Cui et al. 2025,
    # arXiv:2505.22617). Short answers in a fixed format are near 0.1 and learn: so this warns and does not stop.
    entropy: float = 0.01
    entropy_steps: int = 10  # steps in a row below entropy
    # Share of completions that the length limit ended: what they say is lost, and their reward is noise (DAPO, Yu et al. 2025,
    # arXiv:2503.14476, section 3.4).
    cut_off: float = 0.5
    cut_off_steps: int = 5  # steps in a row above cut_off

    def __post_init__(self) -> None:
        at_least(
            self, 0, "no_signal_steps", "no_signal_completions", "kl_steps", "entropy_steps", "cut_off_steps", "entropy"
        )
        check(self.kl > 0, "kl", self.kl, "must be above 0; kl_steps = 0 switches the check off")
        check(0 < self.cut_off < 1, "cut_off", self.cut_off, "must be in (0, 1); cut_off_steps = 0 switches it off")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the whole state of a run is saved."""

    every: int = 256  # optimizer steps between two checkpoints (spec: grpo, section 1)
    keep: int = 2  # checkpoints kept, the newest
    # This run's alone: a folder that all processes see, or gs://bucket/folder (JAX backend); empty: in the work directory.
    folder: str = ""

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "keep")
        check("://" not in self.folder or self.folder.startswith("gs://"), "folder", self.folder,
              "must be a folder or a gs:// address; elsewhere a killed save may look whole")  # fmt: skip
