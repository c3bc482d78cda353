"""Loading and writing Hugging Face directories: what is read, how much of it at once, and what is refused."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from creason_jax import model as ours
from creason_jax.mesh import sharding
from creason_jax.model import weights
from shared.config import JaxConfig
from shared.policy import weight_files
from shared.storage import files
from tests.support.pairs import Pair, error_of, load_whole, phi3_pair, variant_pair
from tests.support.tiny import change_config, tiny_phi3


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Pair:
    return phi3_pair(tmp_path_factory.mktemp("model"), num_hidden_layers=1)


@pytest.fixture(scope="module", params=["phi4 mini", "llama biased"])
def pair(request, tmp_path_factory) -> Pair:
    return variant_pair(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture
def folder(small, tmp_path) -> Path:
    """A copy of the small model's folder, to be broken."""
    return shutil.copytree(small.folder, tmp_path / "model")


@pytest.mark.slow
def test_what_is_on_the_host_at_once_is_a_few_shards(tmp_path, monkeypatch):
    """Bytes that Python and NumPy hold while a model loads, beside the arrays of the devices (a CPU keeps some as they are)."""
    monkeypatch.setattr(weights, "CHUNK_BYTES", 2**12)
    big = phi3_pair(tmp_path, hidden_size=256, intermediate_size=512, num_hidden_layers=6, vocab_size=2_048)
    mesh = sharding.make_mesh(JaxConfig(mesh_fsdp=4, mesh_tensor=2))
    for rules in (sharding.LEARNER_RULES, sharding.ENGINE_RULES):
        shardings = sharding.param_shardings(big.config, mesh, rules)
        pairs = zip(jax.tree.leaves(ours.abstract_params(big.config)), jax.tree.leaves(shardings), strict=True)
        largest = max(4 * int(np.prod(each.shard_shape(leaf.shape))) for leaf, each in pairs)
        tracemalloc.start()
        params = ours.load_params(tmp_path, big.config, shardings)
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        jax.tree.map(np.testing.assert_array_equal, params, big.params)
        # JAX lets go of a shard a little after it is placed, so a few may be there; 512 KiB: shapes, and the file's header.
        assert peak - kept < 4 * largest + 2**19 < 4 * big.config.num_params / 2
        assert peak > largest


@pytest.mark.parametrize("chunk", [1, 1_000, 2**26])
def test_the_size_of_what_is_read_at_once_does_not_matter(pair, chunk, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK_BYTES", chunk)
    jax.tree.map(np.testing.assert_array_equal, load_whole(pair.folder)[1], pair.params)


def test_progress_is_shown_when_asked_and_counts_every_byte_once(pair, capsys):
    load_whole(pair.folder, progress=True)
    shown = capsys.readouterr().err
    assert "weights: 100%" in shown
    load_whole(pair.folder)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_as_float32_with_the_same_values(tmp_path, dtype):
    model = tiny_phi3(tmp_path / "in", dtype=dtype, num_hidden_layers=2)
    config, params = load_whole(tmp_path / "in")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    ours.save_params(tmp_path, params, config)
    found = load_file(tmp_path / "model.safetensors")
    for name, weight in model.named_parameters():
        assert weight.dtype == dtype
        np.testing.assert_array_equal(found[name], weight.detach().float().numpy(), err_msg=name)
        assert torch.equal(torch.tensor(found[name]).to(dtype), weight)


def test_large_models_are_written_in_several_files(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 2**15)
    ours.save_params(tmp_path, pair.params, pair.config)
    paths = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    held = {name: path.name for path in paths for name in load_file(path)}
    assert len(paths) > 2 and index["weight_map"] == held
    assert paths[0].name == f"model-00001-of-{len(paths):05d}.safetensors"
    assert index["metadata"]["total_size"] == 4 * pair.config.num_params
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in paths]
    assert all(size <= 2**15 or len(load_file(path)) == 1 for size, path in zip(sizes, paths))
    files.copy_companions(pair.folder, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, load_whole(tmp_path)[1], pair.params)
    network, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in network.state_dict().items():
        assert torch.equal(pair.torch.state_dict()[name], tensor), name


def replace_tensor(folder: Path, name: str, value: np.ndarray | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors | ({} if value is None else {name: value}), folder / "model.safetensors")


ALL_TENSORS = [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.qkv_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.mlp.gate_up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("name", ALL_TENSORS)
def test_missing_and_misshapen_tensors_are_named(folder, name):
    tensor = load_file(folder / "model.safetensors")[name]
    wrong = [np.concatenate([tensor, tensor[:1]]), tensor[:-1], tensor[None]]
    wrong += [tensor[:, :-1], np.concatenate([tensor, tensor[:, :1]], axis=1)] if tensor.ndim == 2 else []
    for value in wrong:
        replace_tensor(folder, name, np.ascontiguousarray(value))
        found = error_of(lambda: load_whole(folder))
        assert f"tensor {name} has shape {value.shape}" in found and str(tensor.shape) in found
    replace_tensor(folder, name, None)
    assert f"tensor {name} is missing" in error_of(lambda: load_whole(folder))


def test_more_key_value_heads_than_the_config_says_are_refused(folder):
    change_config(folder, num_key_value_heads=1)
    assert "qkv_proj.weight has shape (256, 128)" in error_of(lambda: load_whole(folder))


@pytest.mark.parametrize("kept", [0, 5, 1_000, -1])
def test_truncated_files_are_named(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: truncated" in error_of(lambda: load_whole(folder))


def test_missing_files_are_named(folder, small, monkeypatch):
    (folder / "model.safetensors").unlink()
    assert f"{folder}: no model.safetensors" in error_of(lambda: load_whole(folder))
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 2**15)
    ours.save_params(folder, small.params, small.config)
    load_whole(folder)
    last = sorted(folder.glob("model-*"))[-1]
    tensors = load_file(last)
    save_file({"other": tensors.popitem()[1], **tensors}, last)
    found = error_of(lambda: load_whole(folder))
    assert found.startswith(f"{last}: tensor model.") and "is missing, though the index names it" in found
    last.unlink()
    assert f"{last}: no such file" in error_of(lambda: load_whole(folder))


def test_tensors_of_another_model_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    extra = "model.layers.0.self_attn.q_norm.weight"
    save_file(tensors | {extra: np.ones(32, np.float32)}, folder / "model.safetensors")
    assert f"tensor {extra} is not of the model that config.json describes" in error_of(lambda: load_whole(folder))
    # A table that old directories store, and the head of a tied model stored a second time, are read past.
    same = {"lm_head.weight": tensors["model.embed_tokens.weight"].copy(), "model.rotary_emb.inv_freq": np.ones(16)}
    save_file(tensors | same, folder / "model.safetensors")
    change_config(folder, tie_word_embeddings=True)
    assert "head" not in load_whole(folder)[1]


def test_a_tied_model_with_a_head_of_its_own_is_refused(folder, monkeypatch):
    change_config(folder, tie_word_embeddings=True)
    refusal = "lm_head.weight in model.safetensors is not model.embed_tokens.weight; set tie_word_embeddings to false"
    assert refusal in error_of(lambda: load_whole(folder))
    for size in (2**26, 1_000):  # compared at once
        monkeypatch.setattr(weight_files, "COMPARED_BYTES", size)
        tensors = load_file(folder / "model.safetensors")
        head = tensors["model.embed_tokens.weight"].copy()
        replace_tensor(folder, "lm_head.weight", head)
        load_whole(folder)
        head[-1, -1] += 1e-6
        replace_tensor(folder, "lm_head.weight", head)
        assert refusal in error_of(lambda: load_whole(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    tensor = load_file(folder / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    tensor[3, 5] = value
    replace_tensor(folder, "model.layers.0.mlp.down_proj.weight", tensor)
    found = error_of(lambda: load_whole(folder))
    assert (
        f"{folder / 'model.safetensors'}: tensor model.layers.0.mlp.down_proj.weight holds values that are not" in found
    )


@pytest.mark.parametrize("dtype", [np.int8, np.float64])
def test_tensors_of_another_kind_are_refused(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    replace_tensor(folder, "model.norm.weight", tensors["model.norm.weight"].astype(dtype))
    found = error_of(lambda: load_whole(folder))
    assert "tensor model.norm.weight is stored as" in found and "only F32, F16, BF16 are read" in found


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"model.norm.weight": 3}}'])
def test_an_index_without_a_map_is_refused(folder, content):
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    assert f"{index}: no weight_map from tensors to files" in error_of(lambda: load_whole(folder))


@pytest.mark.slow
def test_nothing_is_read_before_everything_was_found(folder, monkeypatch):
    replace_tensor(folder, "lm_head.weight", None)
    monkeypatch.setattr(weights._Reader, "read", lambda *_: pytest.fail("read"))
    assert "tensor lm_head.weight is missing" in error_of(lambda: load_whole(folder))
