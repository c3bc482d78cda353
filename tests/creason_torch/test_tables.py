"""Rotary frequencies on every ZeRO stage: float32 and the values of Hugging Face, for policy and reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.support.families import LONG, LONGROPE, SWITCH, VARIANTS, tiny_network
from tests.support.groups import LONG_ROW
from tests.support.workers import Found, run_workers

pytestmark = pytest.mark.slow

# Phi-4's theta, and frequencies that are computed in another way: by longrope's two lists of factors, by Llama 3's rule.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi4": ("phi3", {"rope_parameters": {"rope_theta": 250_000.0}, "head_dim": 16}),
    "longrope": ("phi3", LONG | {"rope_parameters": LONGROPE}),
    "llama3": VARIANTS["llama3"],
    "qwen2 yarn": VARIANTS["qwen2 yarn"],
}
STAGES = [(1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16"), (0, "float32"), (3, "float32")]
LONG_ROWS = [(0, "float32"), (1, "bfloat16"), (3, "bfloat16")]
ROLLOUT = {"max_prompt_tokens": LONG_ROW.prompt, "max_new_tokens": LONG_ROW.completion}
SCALED = {"initializer_range": 0.3}  # so that attention looks at single tokens, and a wrong phase shows


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Model -> Hugging Face's network of it, and its folder."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name, (family, options) in MODELS.items():
        network = tiny_network(family, **(options | SCALED))
        network.save_pretrained(folder / name)
        found[name] = network, folder / name
    return found


@pytest.fixture(scope="module")
def found(networks, tmp_path_factory) -> dict[tuple[str, int, str], Found]:
    """(model, stage, dtype) -> the tables, and for Phi-4 the log-probabilities of a long row."""
    folder = tmp_path_factory.mktemp("found")
    specs = {}
    for name, (_, model) in networks.items():
        for stage, dtype in STAGES:
            actions: list[list[Any]] = [["tables", None]]
            if name == "phi4" and (stage, dtype) in LONG_ROWS:
                actions += [["long row", "policy"], ["long row", "reference"]]
            specs[name, stage, dtype] = {
                "model": str(model),
                "out": str(folder / f"{name}-{stage}-{dtype}"),
                "torch": {"zero_stage": stage},
                "learner": {"compute_dtype": dtype},
                "rollout": ROLLOUT,
                "actions": actions,
            }
    return dict(zip(specs, run_workers(list(specs.values()), folder), strict=True))


@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_tables_are_float32_and_those_of_hugging_face(networks, found, name, stage):
    tables = found[name, *stage]
    expected = networks[name][0].model.rotary_emb.inv_freq.numpy()
    if name == "longrope":
        assert LONG_ROW.prompt > SWITCH
        config = networks[name][0].config
        expected = ROPE_INIT_FUNCTIONS["longrope"](config, None, seq_len=LONG_ROW.prompt)[0].numpy()
    assert set(tables.metrics) == {"torch.float32"}
    for who in ("policy", "reference"):
        np.testing.assert_array_equal(tables.arrays[f"tables/{who}/inv_freq"], expected)


def test_phi4s_phases_are_right_a_thousand_tokens_away(found):
    closed = 250_000.0 ** (-np.arange(0, 16, 2) / 16)  # float64
    for stage in STAGES:
        phases = 1_000 * found["phi4", *stage].arrays["tables/policy/inv_freq"].astype(np.float64)
        np.testing.assert_allclose(phases, 1_000 * closed, rtol=0, atol=2e-4)


@pytest.mark.parametrize("which", ["policy", "reference"])
def test_a_long_row_has_the_same_logprobs_on_every_stage(found, which):
    """Of 2,000 tokens: in bfloat16 stages 1 and 3 agree far better than either does with float32."""
    exact, one, three = (found["phi4", *stage].arrays[f"long row/{which}"] for stage in LONG_ROWS)
    noise = np.abs(one - exact)[one != 0].mean()
    assert 0 < noise < 0.3
    np.testing.assert_allclose(three, one, rtol=0, atol=noise / 10)
