"""A run's configuration: an ml_collections file, validated into frozen dataclasses.

A config file is Python with `get_config() -> ConfigDict`; its keys are the fields of the sections and nothing else. Each
section is where its fields are read; here they are put together, and checked against each other. An error names the field and
the reason. Defaults are the paper's (spec: grpo, section 1) unless the comment says otherwise.

Whatever this imports may name `RunConfig` as a type only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from ml_collections import ConfigDict

from shared.backend import LearnerConfig, Remat, RolloutConfig
from shared.errors import InputError
from shared.evaluation.section import EvaluationConfig
from shared.grpo import losses
from shared.grpo.schedule import OptimizerConfig
from shared.grpo.section import PRESETS, GrpoConfig, Loss, changed_in_preset, grpo_preset
from shared.options.backends import JaxConfig, TorchConfig, torch_unread
from shared.options.checks import check
from shared.options.reading import build
from shared.policy.section import ModelConfig
from shared.preparation import section as data
from shared.preparation.section import DataConfig
from shared.training.sections import CheckpointConfig, HealthConfig, WarmupConfig

# All that a program or a config file needs stands under this name.
__all__ = [
    "CONFIG_FILE",
    "ONE_BACKEND",
    "PRESETS",
    "RENAMED",
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "GrpoConfig",
    "HealthConfig",
    "JaxConfig",
    "LearnerConfig",
    "Loss",
    "ModelConfig",
    "OptimizerConfig",
    "Remat",
    "RolloutConfig",
    "RunConfig",
    "TorchConfig",
    "WarmupConfig",
    "changed_in_preset",
    "check_backend",
    "check_data_given",
    "grpo_preset",
    "old_names",
    "validate",
    "validate_stored",
    "with_compute_dtype",
]

CONFIG_FILE = "config.json"  # the config of a run, in its work directory and beside its checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about a run. The same file serves both backends."""

    name: str  # of the run, in its report and metrics
    seed: int = 42  # decides splits, questions, weights made here, order and samples (spec: grpo, section 1)
    store_trajectories: bool = False  # token ids, masks, log-probabilities and rewards of every step
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    warmup: WarmupConfig = WarmupConfig()
    grpo: GrpoConfig = GrpoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    jax: JaxConfig = JaxConfig()
    torch: TorchConfig = TorchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    health: HealthConfig = HealthConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def __post_init__(self) -> None:
        truncated = self.rollout.top_k > 0 or self.rollout.top_p < 1 or self.rollout.min_p > 0
        check(not (truncated and self.grpo.rollout_correction != "none"), "grpo.rollout_correction",
              self.grpo.rollout_correction, "cannot go with top_k, top_p or min_p: the engine renormalises and the "
              "ratio is biased")  # fmt: skip
        check(self.rollout.temperature > 0, "rollout.temperature", self.rollout.temperature,
              "must be above 0 in training: greedy samples of a group are all equal")  # fmt: skip
        check(not (self.store_trajectories and self.learner.length_bucket), "learner.length_bucket",
              self.learner.length_bucket, "must be 0 with store_trajectories: stored rows have one length")  # fmt: skip
        check(self.grpo.overlong_soft < self.rollout.max_new_tokens, "grpo.overlong_soft", self.grpo.overlong_soft,
              f"must be below rollout.max_new_tokens = {self.rollout.max_new_tokens}")  # fmt: skip

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.grpo.steps:
            return self.grpo.steps
        return -(-self.data.train_questions // self.grpo.questions_per_step) * self.grpo.inner_steps

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt and the longest completion that the run asks for."""
        return self.rollout.max_prompt_tokens + max(self.rollout.max_new_tokens, self.evaluation.max_new_tokens)


def with_compute_dtype(config: RunConfig, dtype: Literal["float32", "bfloat16"]) -> RunConfig:
    """The config with `learner.compute_dtype = dtype` where it says auto."""
    if config.learner.compute_dtype != "auto":
        return config
    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, compute_dtype=dtype))


# Sections that only the backend of that name reads; a config file serves both, so it may have either.
ONE_BACKEND = ("jax", "torch")
# Fields that had another name: a config file and the command line are told the new one, a run's stored config is read.
RENAMED = {
    "learner.mesh_data": "jax.mesh_data",
    "learner.mesh_fsdp": "jax.mesh_fsdp",
    "learner.mesh_tensor": "jax.mesh_tensor",
    "learner.sequence_parallel": "jax.sequence_parallel",
    "learner.moments_dtype": "jax.moments_dtype",
    "learner.reference_memory": "jax.reference_memory",
    "rollout.mesh_tensor": "jax.rollout_mesh_tensor",
}


def check_backend(fields: Iterable[str], backend: str) -> None:
    """Raise InputError for the first of `fields`, given for this run alone, that its backend does not read."""
    for field in fields:
        reader = field.partition(".")[0]
        if reader in ONE_BACKEND and reader != backend:
            raise InputError(
                f"--config.{field}: only the {reader} backend reads it, and this is {backend}; leave it out"
            )


def check_data_given(fields: Iterable[str], config: RunConfig) -> None:
    """Raise InputError for the first of `fields`, given for this run alone, that says how questions are made where the config
    names question files: these are read as they are."""
    if not config.data.train:
        return
    read = {"data.train", "data.valid"} | (set() if config.grpo.steps else {"data.train_questions"})  # an epoch's steps
    for field in fields:
        if field.startswith("data.") and field not in read:
            raise InputError(
                f"--config.{field}: says how questions are made, and data.train = {config.data.train!r} names files that hold "
                "them already; leave one of the two out"
            )


def validate(config: ConfigDict | Mapping[str, Any], given: Iterable[str] = ()) -> RunConfig:
    """Turn a ConfigDict (or any mapping) into a RunConfig. Raises InputError naming the field that is wrong.

    `given`: fields that stand on the command line, such as `data.cohort`. Where they choose something for which nothing reads
    what the config file set for its own choice (`data.patients`, once the cohort is not synthetic), that is as if not set.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    if not isinstance(values, Mapping):
        raise InputError(f"the config must be a mapping of fields, not {type(values).__name__}")
    for old in old_names(values):
        raise InputError(f"{old}: is now {RENAMED[old]}")
    return build(RunConfig, _without_unread(values, set(given)))


def validate_stored(values: Mapping[str, Any]) -> RunConfig:
    """The config that a run wrote into its work directory: old names of fields are read as the new ones.

    Raises InputError as `validate` does.
    """
    return validate(under_new_names(values) if isinstance(values, Mapping) else values)


def old_names(values: Mapping[str, Any]) -> list[str]:
    """Fields of a stored config that have another name now, under the names that they have there."""
    sections = {name: section for name, section in values.items() if isinstance(section, Mapping)}
    return [old for old in RENAMED if old.partition(".")[2] in sections.get(old.partition(".")[0], {})]


def under_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with each field under the name that it has now."""
    renamed = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for old in old_names(values):
        (old_section, old_field), (section, field) = old.split("."), RENAMED[old].split(".")
        value = renamed[old_section].pop(old_field)
        fields = renamed.setdefault(section, {})
        if isinstance(fields, dict):
            fields.setdefault(field, value)
    return renamed


# Of a section, the fields that decide which others are read, and what says which are not.
UNREAD: dict[str, tuple[type, tuple[str, ...], Callable[..., dict[str, str]]]] = {
    "data": (DataConfig, data.DECIDING, data.unread),
    "grpo": (GrpoConfig, ("loss",), losses.unread),
    "torch": (TorchConfig, ("rollout_engine",), torch_unread),
}


def _without_unread(values: Mapping[str, Any], given: AbstractSet[str]) -> dict[str, Any]:
    """The values without those that the config file set and nothing reads after what the command line chose."""
    left = dict(values)
    for section, (kind, deciding, unread) in UNREAD.items():
        held = values.get(section)
        if not isinstance(held, Mapping) or not any(f"{section}.{name}" in given for name in deciding):
            continue
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        chosen = {name: held.get(name, defaults[name]) for name in deciding}
        dropped = {name for name in unread(**chosen) if f"{section}.{name}" not in given}
        left[section] = _without(held, dropped)
    return left


def _without(values: Mapping[str, Any], dropped: AbstractSet[str], prefix: str = "") -> dict[str, Any]:
    """The values without `dropped`, of which `mimic3.fix` is a field of a section inside."""
    return {
        name: _without(value, dropped, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in values.items()
        if prefix + name not in dropped
    }
