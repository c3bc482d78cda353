from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm, Phi3RotaryEmbedding

from creason_jax import model as ours
from creason_jax.model import DecoderConfig
from creason_jax.model.decoder import RMSNorm
from creason_jax.model.rope import Rope
from creason_jax.model.rotary import inverse_frequencies, rotary
from shared.grpo import GroupLayout, pack
from tests.support.pairs import Pair, error_of, phi3_pair
from tests.support.tiny import change_config

PARTIAL = {"rope_type": "default", "rope_theta": 250_000.0, "partial_rotary_factor": 0.75}
FAMILIES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 1e-2},
    "partial_rotary": {"rope_parameters": PARTIAL, "num_key_value_heads": 1},
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory) -> Pair:
    return phi3_pair(tmp_path_factory.mktemp("model"), **FAMILIES[request.param])


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Pair:
    return phi3_pair(tmp_path_factory.mktemp("model"), num_hidden_layers=1)


@pytest.fixture
def folder(small, tmp_path) -> Path:
    """A copy of the small model's folder, to be broken."""
    return shutil.copytree(small.folder, tmp_path / "model")


def logits(
    params: Any, config: DecoderConfig, tokens: Any, positions: Any, layout=None, valid=None, **kind
) -> jax.Array:
    layout = layout or GroupLayout(prompt=tokens.shape[1], group=0, completion=0)
    valid = jnp.ones(tokens.shape, bool) if valid is None else jnp.asarray(valid)

    @jax.jit
    def run(params):
        hidden, _ = ours.forward(
            params,
            config,
            jnp.asarray(tokens),
            jnp.asarray(positions),
            lambda q, k, v: (ours.group_attention(q, k, v, valid, layout), None),
            **({"dtype": jnp.float32} | kind),
        )
        return hidden @ ours.head(params).astype(hidden.dtype)

    return run(params)


def torch_logits(model: Phi3ForCausalLM, tokens: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
    with torch.no_grad():
        where = None if positions is None else torch.tensor(positions)
        return model(torch.tensor(tokens), position_ids=where).logits.float().numpy()


def some_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 320, shape).astype(np.int32)


def test_float32_products_are_computed_in_float32():
    assert jax.config.jax_default_matmul_precision == "highest"
    assert jax.device_count() == 8 and jax.default_backend() == "cpu"


@pytest.mark.parametrize("theta", [1e4, 2.5e5, 1e6])
@pytest.mark.parametrize("size", [24, 32, 64, 96, 128])
def test_inverse_frequencies_equal_hugging_face(theta, size, small):
    factor = 0.75 if size in (24, 96) else 1.0
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": factor}
    heads = {"hidden_size": int(size / factor) * 2, "num_attention_heads": 2}
    theirs = Phi3Config(rope_parameters=rope, pad_token_id=0, **heads)
    expected, _ = Phi3RotaryEmbedding.compute_default_rope_parameters(theirs)
    config = dataclasses.replace(
        small.config, rope=Rope(rope_theta=theta, partial_rotary_factor=factor), head_dim=0, **heads
    )
    assert config.rotary_dim == size
    # One unit in the last place: the power of either library is not always rounded to the nearest number.
    np.testing.assert_array_max_ulp(inverse_frequencies(config), expected.numpy(), maxulp=1)
    assert np.mean(inverse_frequencies(config) == expected.numpy()) > 0.95


def test_rotary_angles_equal_hugging_face_far_away(pair):
    positions = np.array([[0, 1, 2, 1_000, 4_095, 15_999, 16_000, 32_767]])
    expected = pair.torch.model.rotary_emb(torch.zeros(1), torch.tensor(positions))
    found = jax.jit(lambda at: rotary(at, pair.config, jnp.float32))(positions)
    for ours_, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours_[:, :, 0], theirs, rtol=0, atol=2e-7)


@pytest.mark.parametrize("pads", [0, 1, 17])
def test_group_layout_gives_each_completion_its_own_logits_whatever_the_padding(small, pads):
    prompts = [some_tokens(9, seed=1), some_tokens(6, seed=2)]
    completions = [[some_tokens(n, seed=10 * row + n) for n in (5, 3)] for row in range(2)]
    layout = GroupLayout(prompt=9 + pads, group=2, completion=5 + pads % 2)
    batch = pack(prompts, completions, layout, advantages=np.zeros((2, 2)))
    found = logits(small.params, small.config, batch.tokens, batch.positions, layout, batch.groups >= 0)
    assert np.isfinite(found).all()
    for row, prompt in enumerate(prompts):
        for sample, completion in enumerate(completions[row]):
            expected = torch_logits(small.torch, np.concatenate([prompt, completion])[None])[0]
            start = layout.prompt + sample * layout.completion
            own = found[row, start : start + len(completion)]
            np.testing.assert_allclose(found[row, : len(prompt)], expected[: len(prompt)], rtol=0, atol=1e-5)
            np.testing.assert_allclose(own, expected[len(prompt) :], rtol=0, atol=1e-5)


def test_layers_as_a_list_give_the_same_as_the_scan(pair):
    tokens, positions = some_tokens(2, 7), np.broadcast_to(np.arange(7), (2, 7))
    valid, layout = jnp.ones((2, 7), bool), GroupLayout(prompt=7, group=0, completion=0)
    seen = []

    @jax.jit
    def run(params):
        def attend(index, q, k, v):
            seen.append(index)
            return ours.group_attention(q, k, v, valid, layout), k[0, 0, 0, 0]

        params = {**params, "layers": ours.unstack_layers(params["layers"])}
        hidden, kept = ours.unstacked_forward(params, pair.config, tokens, positions, attend)
        return hidden @ ours.head(params), kept

    found, kept = run(pair.params)
    np.testing.assert_allclose(found, torch_logits(pair.torch, tokens), rtol=0, atol=1e-5)
    assert seen == list(range(pair.config.num_hidden_layers)) and len(kept) == len(seen)


def test_more_layers_than_a_turn_of_the_scan_holds(tmp_path):
    deep = phi3_pair(tmp_path, num_hidden_layers=5, hidden_size=32, intermediate_size=48)
    tokens = some_tokens(1, 6)
    found = logits(deep.params, deep.config, tokens, np.arange(6)[None])
    np.testing.assert_allclose(found, torch_logits(deep.torch, tokens), rtol=0, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_stays_near(small):
    tokens = some_tokens(1, 8)
    found = logits(small.params, small.config, tokens, np.arange(8)[None], dtype=jnp.bfloat16)
    expected = torch_logits(small.torch, tokens)
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.asarray(found, np.float32) - expected)
    assert 1e-4 < error.mean() < 0.02 * expected.std()


def test_norm_in_bfloat16_casts_before_the_scale():
    norm = Phi3RMSNorm(64, eps=1e-5).to(torch.bfloat16)
    x, scale = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32) * 3
    norm.weight.data = torch.tensor(scale).bfloat16()
    twin = RMSNorm(64, 1e-5)
    twin.scale.set_value(jnp.asarray(scale, jnp.bfloat16))
    found = np.asarray(twin(jnp.asarray(x, jnp.bfloat16)), np.float32)
    np.testing.assert_array_equal(found, norm(torch.tensor(x).bfloat16()).detach().float().numpy())


def test_stacking_and_unstacking_are_inverse():
    layers = [{"a": jnp.arange(6.0).reshape(2, 3) + n, "b": {"c": jnp.full(4, n)}} for n in range(3)]
    stacked = ours.stack_layers(layers)
    assert stacked["a"].shape == (3, 2, 3)
    for found, expected in zip(ours.unstack_layers(stacked), layers, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, ours.stack_layers(ours.unstack_layers(stacked)), stacked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "config.json: model_type is 'gemma2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "'longrope' needs short_factor"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 4}}, "rope type 'dynamic'"),
        ({"sliding_window": 2_047}, "sliding_window 2047"),
    ],
)
def test_models_that_are_not_computed_are_refused(folder, changes, message):
    change_config(folder, **changes)
    found = error_of(lambda: DecoderConfig.read(folder))
    assert message in found and str(folder) in found


def test_incomplete_configurations_are_refused(folder):
    values = json.loads((folder / "config.json").read_text())
    del values["hidden_size"]
    (folder / "config.json").write_text(json.dumps(values))
    assert "hidden_size" in error_of(lambda: DecoderConfig.read(folder))
    (folder / "config.json").write_text("{")
    assert "config.json: not JSON" in error_of(lambda: DecoderConfig.read(folder))
    (folder / "config.json").unlink()
    assert "config.json: no such file" in error_of(lambda: DecoderConfig.read(folder))


def test_old_style_rope_fields_are_read(folder):
    change_config(folder, rope_parameters=None, rope_theta=5e5, partial_rotary_factor=0.5, sliding_window=262_144)
    config = DecoderConfig.read(folder)
    assert (config.rope.rope_theta, config.rope.partial_rotary_factor, config.rotary_dim) == (5e5, 0.5, 16)
