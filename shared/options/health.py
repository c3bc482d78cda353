"""The section `health` of a run's config: from where on a run is not well, and for how long it may be so."""

from __future__ import annotations

import dataclasses

from shared.options.checks import at_least, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Bounds of `shared.training.health.checks`. Steps are counted in a row; 0 steps switch a check off.

    A step here is one round of rollouts: with `grpo.inner_steps` = 1 an optimizer step.
    """

    stop: bool = True  # False: what would stop the run is said, and it goes on
    # No group with a difference, in so many steps and in so many completions at least. 0 of 100 means, at 95 %, that fewer than
    # 3 in 100 completions differ from their group (rule of three: Hanley & Lippman-Hand, JAMA 1983): nothing to learn from.
    no_signal_steps: int = 5
    no_signal_completions: int = 100  # without a difference, at least; see no_signal_steps
    # Nats a token to the reference (k3, Schulman 2020, which one unlikely token can make large). The quickstart, which learns
    # fast, has a median of 0.05 and reached 1.1 in two steps in a row; a text that stays at 5 is not the reference's language.
    kl: float = 5.0
    kl_steps: int = 5  # in a row beyond kl
    # Nats a token. What reward can still be gained falls with entropy and ends where it is 0 (Cui et al. 2025,
    # arXiv:2505.22617). Short answers in a fixed format are near 0.1 and learn: so this warns and does not stop.
    entropy: float = 0.01
    entropy_steps: int = 10  # in a row below entropy
    # Share of completions that the length limit ended: what they say is lost, and their reward is noise (DAPO, Yu et al. 2025,
    # arXiv:2503.14476, section 3.4).
    cut_off: float = 0.5
    cut_off_steps: int = 5  # in a row beyond cut_off

    def __post_init__(self) -> None:
        at_least(
            self, 0, "no_signal_steps", "no_signal_completions", "kl_steps", "entropy_steps", "cut_off_steps", "entropy"
        )
        check(self.kl > 0, "kl", self.kl, "must be above 0; kl_steps = 0 switches the check off")
        check(0 < self.cut_off < 1, "cut_off", self.cut_off, "must be in (0, 1); cut_off_steps = 0 switches it off")
