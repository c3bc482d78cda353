"""Golden cases of the GRPO objective, and random inputs for every setting of it, as NumPy arrays for any backend."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from shared import grpo
from shared.config import GrpoConfig
from shared.grpo.losses import LOSSES, unread
from tests.support import golden_folder
from tests.support.golden_folder import GOLDEN

FOLDER = GOLDEN / "grpo_loss"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"] if FOLDER.is_dir() else []
needs_golden = golden_folder.needs("grpo_loss")
ALL_LOSSES = list(LOSSES)

OPTIONS: dict[str, dict[str, Any]] = {
    "on_policy": {"beta": 0.04},
    "off_policy": {"beta": 0.04, "delta": 1.6, "kl_in_ratio": True, "kl_estimator": "k2"},
    "corrected": {"beta": 0.1, "rollout_correction": "token", "rollout_correction_cap": 1.2, "kl_estimator": "k1"},
    "sequence": {"rollout_correction": "sequence", "rollout_correction_cap": 1.1, "ratio_level": "sequence"},
    "masked": {"beta": 0.0, "off_policy_mask_threshold": 0.05},
}
GIVEN = {
    "on_policy": ["ref_logprobs"],
    "off_policy": ["ref_logprobs", "old_logprobs"],
    "corrected": ["ref_logprobs", "rollout_logprobs"],
    "sequence": ["ref_logprobs", "old_logprobs", "rollout_logprobs"],
    "masked": ["old_logprobs"],
}


def golden_arrays(case: dict) -> dict[str, np.ndarray]:
    with np.load(FOLDER / "cases.npz") as stored:
        prefix = case["id"] + "/"
        return {key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)}


def is_on_policy(case: dict) -> bool:
    """Whether the case's old log-probabilities are its policy's."""
    arrays = golden_arrays(case)
    mask = arrays["completion_mask"] > 0
    return np.array_equal(arrays["policy_logps"][mask], arrays["old_logps"][mask])


def one_parameter_each(cases: list[dict]) -> pytest.MarkDecorator:
    found = golden_folder.parameters(cases, FOLDER / "cases.json", lambda _, case: case["name"])
    return pytest.mark.parametrize("case", found)


golden_cases = one_parameter_each(CASES)
on_policy_cases = one_parameter_each([case for case in CASES if is_on_policy(case)])
SHAPES = [golden_arrays(case)["completion_mask"].shape for case in CASES]
ROWS, TIME = np.max(SHAPES, axis=0).tolist() if SHAPES else (0, 0)  # cases are padded to it: operations compile once

every_setting = pytest.mark.parametrize(
    ("loss", "kind"), [(loss, kind) for loss in ALL_LOSSES for kind in OPTIONS], ids=lambda value: value
)


def golden_config(case: dict) -> GrpoConfig:
    same = [field.name for field in dataclasses.fields(GrpoConfig) if field.name in case]
    return config_of(
        case["loss_type"],
        ratio_level=case["importance_sampling_level"],
        epsilon_low=case["epsilon"],
        kl_in_ratio=case["kl_bias_correction"],
        **{name: case[name] for name in same},
    )


def config_of(loss: Any, **options: Any) -> GrpoConfig:
    """The section with this loss and these options, but for those that the loss does not read."""
    return GrpoConfig(loss=loss, **{name: value for name, value in options.items() if name not in unread(loss=loss)})


def golden_inputs(case: dict) -> dict[str, np.ndarray]:
    """The arguments of `objective`, `[ROWS, TIME]` float64 with nan beyond what is there."""
    arrays = golden_arrays(case)
    shape = arrays["completion_mask"].shape
    advantages = arrays["advantages"] if arrays["advantages"].ndim == 2 else arrays["advantages"][:, None]

    def enlarge(values: np.ndarray) -> np.ndarray:
        missing = [(0, ROWS - shape[0]), (0, TIME - shape[1])]
        return np.pad(values.astype(np.float64), missing, constant_values=np.nan)

    return {
        "logprobs": enlarge(arrays["policy_logps"]),
        "advantages": enlarge(np.broadcast_to(advantages, shape)),
        "mask": np.nan_to_num(enlarge(arrays["completion_mask"])),
        "row_mask": (np.arange(ROWS) < shape[0]).astype(np.float64),
        "old_logprobs": enlarge(arrays["old_logps"]),
        "ref_logprobs": enlarge(arrays["ref_logps"]),
    }


def golden_denominator(case: dict, sums: grpo.Sums, config: GrpoConfig) -> Any:
    """The denominator of the whole optimizer batch that a case implies: equal micro-batches, the case is one."""
    steps = case["gradient_accumulation_steps"]
    window = sums._replace(completions=sums.completions * steps, tokens=sums.tokens * steps)
    if case["loss_type"] in ("dapo", "cispo", "vespo"):
        window = window._replace(tokens=case["num_items_in_batch"] * steps / case["steps_per_generation"])
    return grpo.denominator(window, config, case["max_completion_length"])


def float64_bound(case: dict) -> float:
    """How near a float64 loss comes to the expected one: the oracle rounds SAPO's temperatures to float32."""
    return 1e-6 if case["loss_type"] == "sapo" else 1e-9


def option_config(loss: Any, kind: str) -> GrpoConfig:
    options = dict(OPTIONS[kind], epsilon_high=1.1 if LOSSES[loss].clip == "cap" else 0.28)
    if LOSSES[loss].ratio_level:
        options["ratio_level"] = LOSSES[loss].ratio_level
    return config_of(loss, **options)


def option_inputs(kind: str) -> dict[str, np.ndarray]:
    """5 completions of 6 tokens, float32 values, with nan wherever nothing counts."""
    rng = np.random.default_rng(7)
    logprobs = -rng.exponential(1.0, (5, 6))
    near = {name: logprobs + rng.normal(0, 0.3, logprobs.shape) for name in ("old", "ref", "rollout")}
    mask = (rng.random(logprobs.shape) < 0.7).astype(np.float32)
    mask[3] = 0
    arrays: dict[str, Any] = {"logprobs": logprobs} | {f"{name}_logprobs": values for name, values in near.items()}
    arrays = {name: np.where(mask > 0, values, np.nan) for name, values in arrays.items()}
    arrays = {name: values for name, values in arrays.items() if name in ["logprobs", *GIVEN[kind]]}
    arrays |= {"advantages": rng.normal(0, 1, 5), "mask": mask, "row_mask": np.array([1, 1, 1, 1, 0])}
    return {name: values.astype(np.float32) for name, values in arrays.items()}


def with_garbage(inputs: dict[str, np.ndarray], fill: float) -> dict[str, np.ndarray]:
    """The inputs with `fill` in every log-probability that does not count."""
    counted = counted_places(inputs)
    return {name: np.where(counted, v, np.float32(fill)) if "log" in name else v for name, v in inputs.items()}


def counted_places(inputs: dict[str, np.ndarray]) -> np.ndarray:
    return (inputs["mask"] > 0) & (inputs["row_mask"] > 0)[:, None]


def finite_differences(config: GrpoConfig, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Gradient of the float64 reference in the policy's log-probabilities, those under a stop-gradient held fixed."""
    others = dict(inputs)
    policy = others.pop("logprobs").astype(np.float64)
    gradient = np.zeros_like(policy)
    for place in np.ndindex(policy.shape):
        step = np.zeros_like(policy)
        step[place] = 1e-6
        up, down = (grpo.objective(policy + s, config=config, detached=policy, **others).loss for s in (step, -step))
        gradient[place] = (up - down) / 2e-6
    return gradient
