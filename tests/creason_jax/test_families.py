"""Every family and variant against Hugging Face's own code: rotation, logits, gradients, decoding, files."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.olmo2 import modeling_olmo2 as olmo2

from creason_jax import model as ours
from creason_jax.learner.learner import Learner
from creason_jax.mesh import sharding
from creason_jax.model import DecoderConfig
from creason_jax.model.decoder import RMSNorm
from creason_jax.model.rotary import inverse_frequencies, rotary, rotate
from creason_jax.rollout.engine import Engine
from shared.backend import Sampling
from shared.config import JaxConfig, OptimizerConfig
from shared.grpo import GroupLayout, pack
from shared.policy.families import COMMON, FAMILIES
from shared.storage import files
from tests.support.families import SHAPE, SWITCH, VARIANTS
from tests.support.pairs import Pair, error_of, variant_pair
from tests.support.tiny import run_config

pytestmark = pytest.mark.slow

LIMIT = 8
GREEDY = Sampling(group_size=1, temperature=0.0, max_new_tokens=LIMIT)
LONGROPE = ("phi3 longrope", "phi4 mini")
# Variants that decode by the same code as another one of their family; compiling an engine for each takes long.
NOT_DECODED = (
    *("phi3", "phi3 partial", "phi3 longrope", "llama2", "llama linear tied"),
    *("qwen2 tied", "qwen2 yarn", "qwen3 biased", "mistral head", "olmo2 biased"),
)
MESHES = [(1, 4, 2), (2, 1, 4)]  # two key-value heads do not divide by 4: they are replicated


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory) -> Pair:
    return variant_pair(tmp_path_factory.mktemp("model"), request.param)


@functools.partial(jax.jit, static_argnums=1)
def logits(params: Any, config: DecoderConfig, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    layout = GroupLayout(prompt=tokens.shape[1], group=0, completion=0)
    valid = jnp.ones(tokens.shape, bool)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return ours.group_attention(q, k, v, valid, layout), None

    hidden, _ = ours.forward(params, config, tokens, positions, attend, dtype=jnp.float32)
    return hidden @ ours.head(params)


@functools.partial(jax.jit, static_argnums=1)
def graded(params: Any, config: DecoderConfig, tokens: jax.Array, positions: jax.Array) -> tuple[Any, jax.Array]:
    """Gradient of the tokens' summed log-probability, and the logits."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        found = logits(params, config, tokens, positions)
        law = jax.nn.log_softmax(found[:, :-1])
        return jnp.take_along_axis(law, tokens[:, 1:, None], axis=-1).sum(), found

    return jax.grad(loss, has_aux=True)(params)


def some_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[-1]).integers(4, 320, shape).astype(np.int32)


def both(pair: Pair, length: int, start: int = 0, config: DecoderConfig | None = None) -> tuple[Any, np.ndarray]:
    """Our logits and Hugging Face's of the same tokens at positions from `start`."""
    tokens = some_tokens(1, length)
    positions = start + np.arange(length, dtype=np.int32)[None]
    with torch.no_grad():
        expected = pair.torch(torch.tensor(tokens), position_ids=torch.tensor(positions)).logits.numpy()
    assert expected.std() > 0.3
    return logits(pair.params, config or pair.config, tokens, positions), expected


def limited(pair: Pair, longest: int) -> DecoderConfig:
    return DecoderConfig.read(pair.folder, longest=longest)


def test_logits_and_gradients_of_short_rows_equal_hugging_face(pair, tmp_path):
    """A tied table gets the gradient of both its uses, a fused matrix that of all its parts."""
    config, tokens = limited(pair, 21), some_tokens(2, 21)
    network = copy.deepcopy(pair.torch)
    expected_logits = network(torch.tensor(tokens)).logits
    law = expected_logits[:, :-1].log_softmax(-1)
    law.gather(-1, torch.tensor(tokens[:, 1:, None]).long()).sum().backward()
    gradients, found_logits = graded(
        pair.params, config, tokens, np.broadcast_to(np.arange(21, dtype=np.int32), tokens.shape)
    )
    np.testing.assert_allclose(found_logits, expected_logits.detach(), rtol=0, atol=1e-5)
    ours.save_params(tmp_path, gradients, config)
    found = load_file(tmp_path / "model.safetensors")
    expected = {name: weight.grad.numpy() for name, weight in network.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        size = np.linalg.norm(expected[name])
        assert (
            size > (0.02 if pair.name == "olmo2 biased" else 0.1)
            and np.linalg.norm(gradient - expected[name]) <= 1e-5 * size
        ), name


@pytest.mark.parametrize("start", [0, 14_001])
def test_long_rows_and_far_positions_equal_hugging_face(pair, start):
    found, expected = both(pair, 2_000, start=start)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_inverse_frequencies_and_angles_equal_hugging_face(pair):
    for longest in (SWITCH, SWITCH + 1):
        config, theirs = limited(pair, longest), pair.torch.model.rotary_emb
        positions = np.array([[longest - 1, 0, 1, 7, SWITCH // 2]])
        expected = theirs(torch.zeros(1), torch.tensor(positions))
        # Units in the last place: the power of either library is not always rounded to the nearest number.
        np.testing.assert_array_max_ulp(inverse_frequencies(config), theirs.inv_freq.numpy(), maxulp=2)
        assert config.rope.attention_scaling == pytest.approx(theirs.attention_scaling, rel=1e-12)
        for mine, other in zip(rotary(positions, config, jnp.float32), expected, strict=True):
            np.testing.assert_allclose(mine[:, :, 0], other, rtol=0, atol=1e-5)


def test_import_then_export_keeps_every_bit_and_transformers_loads_it(pair, tmp_path):
    ours.save_params(tmp_path, pair.params, pair.config)
    files.copy_companions(pair.folder, tmp_path)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path, pair.folder))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    network, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert DecoderConfig.read(tmp_path) == pair.config
    expected_count = sum(leaf.size for leaf in jax.tree.leaves(pair.params))
    assert pair.config.num_params == network.num_parameters() == expected_count


@pytest.mark.parametrize("family", FAMILIES)
def test_a_silent_config_means_what_transformers_takes_it_for(family):
    theirs = AutoConfig.for_model(family)
    assumed = COMMON | dict(FAMILIES[family].defaults)
    sliding = {"sliding_window"} if FAMILIES[family].window == "some" else set()  # null there until it is switched on
    assert {name: getattr(theirs, name) for name in assumed.keys() - sliding} == {
        name: value for name, value in assumed.items() if name not in sliding
    }
    if "num_key_value_heads" not in assumed:
        assert theirs.num_key_value_heads == theirs.num_attention_heads
    silent = {"model_type": family, "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96}
    silent |= {"num_hidden_layers": 2, "num_attention_heads": 32, "sliding_window": None}
    config = DecoderConfig.from_hugging_face(silent)
    expected = AutoConfig.for_model(**silent)
    assert config.num_key_value_heads == expected.num_key_value_heads
    nulled = DecoderConfig.from_hugging_face(silent | {"num_key_value_heads": None})
    assert nulled.num_key_value_heads == nulled.num_attention_heads  # Transformers' Mistral refuses null
    assert config.rope.rope_theta == expected.rope_parameters["rope_theta"]


def test_late_rounding_of_norms_and_rotation_is_transformers_to_the_bit():
    """OLMo-2 rounds to bfloat16 once, behind the scale and behind the rotation; float32 does not show it."""
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(2, 64)).astype(np.float32) * 3
    norm = olmo2.Olmo2RMSNorm(64, eps=1e-5).to(torch.bfloat16)
    norm.weight.data = torch.tensor(scale).bfloat16()
    twin = RMSNorm(64, 1e-5, late_rounding=True)
    twin.scale.set_value(jnp.asarray(scale, jnp.bfloat16))
    found = np.asarray(twin(jnp.asarray(x, jnp.bfloat16)), np.float32)
    np.testing.assert_array_equal(found, norm(torch.tensor(x).bfloat16()).detach().float().numpy())

    values = SHAPE | {"model_type": "olmo2"}
    config, positions = DecoderConfig.from_hugging_face(values), np.arange(5, dtype=np.int32)[None]
    heads = torch.tensor(rng.normal(size=(1, 5, 4, 16)), dtype=torch.bfloat16)
    tables = olmo2.Olmo2RotaryEmbedding(AutoConfig.for_model(**values))(heads, torch.tensor(positions))
    expected, _ = olmo2.apply_rotary_pos_emb(heads, heads, *tables, unsqueeze_dim=2)
    rotated = rotate(jnp.asarray(heads.float().numpy(), jnp.bfloat16), rotary(positions, config, jnp.bfloat16))
    assert rotated.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(rotated, np.float32), expected.float().numpy())


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("rules", [sharding.LEARNER_RULES, sharding.ENGINE_RULES], ids=["learner", "engine"])
def test_each_device_loads_its_own_part(pair, axes, rules):
    mesh = sharding.make_mesh(JaxConfig(**dict(zip(("mesh_data", "mesh_fsdp", "mesh_tensor"), axes))))
    params = ours.load_params(pair.folder, pair.config, sharding.param_shardings(pair.config, mesh, rules))
    jax.tree.map(np.testing.assert_array_equal, params, pair.params)
    ways = {
        ".".join(part.key for part in path): leaf.size // leaf.addressable_shards[0].data.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    tensor, fsdp = axes[2], axes[1] if rules is sharding.LEARNER_RULES else 1
    heads = tensor if pair.config.num_key_value_heads % tensor == 0 else 1
    assert ways["layers.q.kernel"] == ways["layers.down.kernel"] == tensor * fsdp
    assert ways["layers.k.kernel"] == heads * fsdp
    for name, parts in {"q.bias": tensor, "k.bias": heads, "up.bias": tensor, "o.bias": 1, "q_norm.scale": 1}.items():
        assert ways.get(f"layers.{name}", parts) == parts
    theirs = {name.rpartition("layers.0.self_attn.")[2] for name, _ in pair.torch.named_parameters()}
    for ours_name, name in (("q.bias", "q_proj.bias"), ("q_norm.scale", "q_norm.weight")):
        assert (f"layers.{ours_name}" in ways) == (name in theirs), name


def make_engine(pair: Pair, longest: int) -> tuple[Any, Engine]:
    """A run with sequences of at most `longest` tokens, and its engine."""
    config = run_config(rollout={"max_prompt_tokens": longest - LIMIT, "max_new_tokens": LIMIT}, grpo={"group_size": 2})
    mesh = sharding.make_mesh(JaxConfig(), jax.devices()[:1])
    engine = Engine(config, limited(pair, config.longest_sequence), mesh, stop_tokens=[3])
    engine.load(ours.load_params(pair.folder, pair.config, sharding.param_shardings(pair.config, mesh)))
    return config, engine


@pytest.mark.parametrize("pair", [name for name in VARIANTS if name not in NOT_DECODED], indirect=True)
def test_greedy_tokens_equal_hugging_face_generate(pair):
    """With longrope: below the switch; beyond it is a test of its own."""
    _, engine = make_engine(pair, 32)
    prompts = [np.random.default_rng(n).integers(4, 320, n).astype(np.int32) for n in (1, 7, 24)]
    for prompt, (completion,) in zip(prompts, engine.generate(prompts, GREEDY, None), strict=True):
        assert completion.tokens.tolist() == generated(pair.torch, prompt)


def generated(network: PreTrainedModel, prompt: np.ndarray) -> list[int]:
    ids = torch.tensor(prompt[None]).long()
    options = {"do_sample": False, "max_new_tokens": LIMIT, "eos_token_id": 3, "pad_token_id": 0}
    with torch.no_grad():
        found = network.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("length", [SWITCH, SWITCH + 1])
@pytest.mark.parametrize("pair", LONGROPE, indirect=True)
def test_one_token_crosses_the_switch_of_longrope(pair, length):
    for longest, config in ((each, limited(pair, each)) for each in (SWITCH, SWITCH + 1)):
        found, expected = both(pair, length, config=config)
        if longest == length:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        else:
            assert np.abs(found - expected).max() > 0.01


@pytest.mark.parametrize("pair", ["phi4 mini"], indirect=True)
def test_a_run_beyond_the_switch_rotates_prefill_decode_and_scoring_alike(pair):
    """A prompt below the switch whose completion crosses it: Hugging Face scores the whole with its long factors."""
    config, engine = make_engine(pair, SWITCH + 4)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 320, n).astype(np.int32) for n in (SWITCH - 4, SWITCH - 6, 5)]
    sampling = Sampling(group_size=2, temperature=1.0, max_new_tokens=LIMIT)
    found = engine.generate(prompts, sampling, rng.random((3, 2, LIMIT), np.float32))
    batch = pack(
        prompts,
        [[each.tokens for each in group] for group in found],
        GroupLayout(prompt=SWITCH - 4, group=2, completion=LIMIT),
        advantages=np.zeros((3, 2)),
        rollout_logprobs=[[each.logprobs for each in group] for group in found],
    )
    learner = Learner(config, pair.folder, engine.mesh, optimizer=OptimizerConfig(), steps=1, reference=False)
    assert learner.model == engine.model
    np.testing.assert_allclose(learner.logprobs(batch, "policy"), batch.rollout_logprobs, rtol=0, atol=1e-5)
    crossed = 0
    for prompt, group in zip(prompts, found, strict=True):
        for completion in group:
            whole = np.concatenate([prompt, completion.tokens])
            # Padded on the right to beyond the switch, where nothing before looks, so that long factors are taken.
            padded = np.pad(whole, (0, SWITCH + 1), constant_values=5)
            with torch.no_grad():
                law = pair.torch(torch.tensor(padded[None]).long()).logits[0].log_softmax(-1).numpy()
            expected = law[np.arange(len(prompt) - 1, len(whole) - 1), completion.tokens]
            np.testing.assert_allclose(completion.logprobs, expected, rtol=0, atol=1e-5)
            crossed += len(prompt) < SWITCH < len(whole)
    assert crossed


OLD_AND_NEW = {
    "phi3 old": ("phi3", {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_scaling": None}),
    "phi3 su": (
        "phi3",
        {
            "rope_theta": 1e4,
            "rope_scaling": {
                "type": "su",
                "short_factor": [1.5] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 64,
            },
            "original_max_position_embeddings": 128,
        },
    ),
    "phi3 silent": ("phi3", {}),
    "llama old": ("llama", {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama new": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}),
    "llama inner first": ("llama", {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 7e4}}),
    "llama silent": ("llama", {}),
    "llama3 old": (
        "llama",
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "qwen2 yarn old": ("qwen2", {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}),
    "qwen2 yarn whole": (
        "qwen2",
        {
            "rope_theta": 1e6,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "mscale": 0.7,
                "mscale_all_dim": 1.3,
                "truncate": False,
            },
        },
    ),
    "mistral silent": ("mistral", {}),
    "mistral old": ("mistral", {"rope_theta": 1e6, "sliding_window": None, "head_dim": 32}),
    "olmo2 silent": ("olmo2", {}),
    "olmo2 old": ("olmo2", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "qwen3 factor": (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "rope_theta": 1e6}},
    ),
}


@pytest.mark.parametrize("name", OLD_AND_NEW)
def test_old_and_new_rope_fields_are_read_as_transformers_reads_them(name, tmp_path):
    family, fields = OLD_AND_NEW[name]
    values = SHAPE | {"model_type": family} | fields
    (tmp_path / "config.json").write_text(json.dumps(values))
    theirs = AutoConfig.from_pretrained(tmp_path)
    network = AutoModelForCausalLM.from_config(theirs)
    config = DecoderConfig.read(tmp_path, longest=32)
    rotation = network.model.rotary_emb
    np.testing.assert_array_max_ulp(inverse_frequencies(config), rotation.inv_freq.numpy(), maxulp=2)
    assert config.rope.attention_scaling == pytest.approx(rotation.attention_scaling, rel=1e-12)
    assert config.rope.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (config.rms_norm_eps, config.tie_word_embeddings) == (theirs.rms_norm_eps, theirs.tie_word_embeddings)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope type 'linear' is not computed"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not computed"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "'linear' needs factor"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor holds '2' where a number"),
        ("llama", {"rope_theta": None, "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("phi3", {"partial_rotary_factor": 0.2}, "3 of a head's 16 dimensions"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}},
         "short_factor has 1 numbers; it needs 8"),
        ("phi3", {"sliding_window": 99}, "sliding_window 99 is shorter than the longest sequence (100 tokens)"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 99, "max_window_layers": 1}, "sliding_window 99"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 99,
                   "layer_types": ["full_attention", "sliding_attention"]}, "sliding_window 99"),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types has 'linear_attention'"),
        ("qwen2", {"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantized weights are not supported"),
        ("mistral", {"sliding_window": 99}, "sliding_window 99 is shorter than the longest sequence (100 tokens)"),
        ("gemma2", {}, "this backend computes phi3, llama, qwen2, qwen3, mistral, olmo2"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused(family, changes, message):
    values = SHAPE | {"model_type": family} | changes
    assert message in error_of(lambda: DecoderConfig.from_hugging_face(values, longest=100))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("phi3", {"sliding_window": 100}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 100}),
        ("olmo2", {"sliding_window": 10}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}),
        ("qwen2", {"sliding_window": 10}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 2}),
        ("qwen3", {"use_sliding_window": False, "sliding_window": 10, "max_window_layers": 0}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 10, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_a_window_that_no_sequence_leaves_is_no_window(family, changes):
    values = SHAPE | {"model_type": family}
    read = functools.partial(DecoderConfig.from_hugging_face, longest=100)
    assert read(values | changes) == read(values)
