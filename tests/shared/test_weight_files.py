"""What is in the files of a model directory: nothing in them is dropped, or replaced by another, without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import tiny_network
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from shared.config import validate
from shared.errors import InputError
from shared.policy import weight_files
from shared.policy.families import FAMILIES
from shared.runs.policy import check_policy

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def written(folder: Path, tensors: dict[str, torch.Tensor], *, files: int = 1, **config) -> Path:
    """A model directory with these tensors, dealt to so many files in turn; an index where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(tensors, folder / weight_files.SINGLE)
        return folder
    names = [f"model-{part + 1:05d}-of-{files:05d}.safetensors" for part in range(files)]
    weight_map = {name: names[place % files] for place, name in enumerate(tensors)}
    for part in names:
        save_file({name: tensors[name] for name, place in weight_map.items() if place == part}, folder / part)
    (folder / weight_files.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def some(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {EMBEDDING: torch.randn(20, 4).to(dtype), NORM: torch.ones(4, dtype=dtype)}


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dtype", [None, torch.float32], ids=["", "head in float32"])
def test_the_head_of_a_tied_model_is_its_embedding_or_refused(tmp_path, files, dtype, head_dtype):
    tensors = some(dtype)
    same = tensors[EMBEDDING].to(head_dtype or dtype, copy=True)
    folder = written(tmp_path / "same", tensors | {HEAD: same}, files=files, tie_word_embeddings=True)
    assert weight_files.places(folder).keys() == {EMBEDDING, NORM, HEAD}
    other = same.clone()
    other[13, 2] *= 1.0 + 2.0**-7
    folder = written(tmp_path / "other", tensors | {HEAD: other}, files=files, tie_word_embeddings=True)
    with pytest.raises(InputError, match="tie_word_embeddings = true, but lm_head.weight in model.*safetensors is not"):
        weight_files.places(folder)
    folder = written(tmp_path / "short", tensors | {HEAD: same[:-1].clone()}, files=files, tie_word_embeddings=True)
    with pytest.raises(InputError, match="tie_word_embeddings = true, but lm_head.weight"):
        weight_files.places(folder)
    for silent in ({"tie_word_embeddings": False}, {}, {"tie_word_embeddings": None}):
        assert HEAD in weight_files.places(written(tmp_path / "other", tensors | {HEAD: other}, files=files, **silent))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_is_silent_means_a_head_of_its_own_to_transformers_too(family):
    assert AutoConfig.for_model(family).tie_word_embeddings is False


def test_transformers_uses_the_head_that_is_refused_here(tmp_path):
    """Why it is refused: neither of both readings would be the other's."""
    network = tiny_network("qwen2", tie_word_embeddings=True)
    network.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / weight_files.SINGLE)
    save_file(tensors | {HEAD: tensors[EMBEDDING] + 1}, tmp_path / weight_files.SINGLE, metadata={"format": "pt"})
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(found.lm_head.weight, tensors[EMBEDDING] + 1)
    with pytest.raises(InputError, match="tie_word_embeddings"):
        weight_files.places(tmp_path)


def test_a_tensor_in_two_files(tmp_path):
    folder = written(tmp_path, some(), files=2)
    first, second = sorted(folder.glob("model-*"))
    save_file(load_file(first) | {NORM: torch.ones(4)}, first)
    assert weight_files.places(folder) == {EMBEDDING: first, NORM: second}
    save_file(load_file(first) | {NORM: torch.full((4,), 2.0)}, first)
    with pytest.raises(InputError, match=f"tensor {NORM} is in {first.name} and in {second.name} with other values"):
        weight_files.places(folder)


def test_an_index_and_its_files(tmp_path):
    folder = written(tmp_path, some(), files=2)
    first, second = sorted(folder.glob("model-*"))
    # What a file holds beyond the index is of the model too, as for Transformers.
    save_file(load_file(first) | {"model.extra": torch.ones(1)}, first)
    assert weight_files.places(folder) == {EMBEDDING: first, NORM: second, "model.extra": first}
    save_file({"model.other": torch.ones(1)}, second)
    with pytest.raises(InputError, match=f"{second}: tensor {NORM} is missing, though the index names it"):
        weight_files.places(folder)
    second.unlink()
    with pytest.raises(InputError, match=f"{second}: no such file, though the index names it"):
        weight_files.places(folder)


def test_one_file_beside_an_index_of_others_is_refused(tmp_path):
    """Transformers would read the one, and this project read the others."""
    written(tmp_path, some(), files=2)
    written(tmp_path, some())
    with pytest.raises(InputError, match=r"model.safetensors and model.safetensors.index.json are two models"):
        weight_files.places(tmp_path)


def test_a_run_refuses_such_a_model_before_anything_is_made(tmp_path):
    folder = written(tmp_path, some() | {HEAD: torch.ones(20, 4)}, tie_word_embeddings=True)
    config = validate({"name": "run", "grpo": {"steps": 1}, "model": {"path": str(folder)}})
    with pytest.raises(InputError, match="tie_word_embeddings = true, but"):
        check_policy(config)


@pytest.mark.parametrize("spelling", ["torch_dtype", "dtype"])
@pytest.mark.parametrize(("stored", "name"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
def test_what_is_written_beside_weights_states_their_dtype(tmp_path, spelling, stored, name):
    parts = {"text_config": {spelling: "bfloat16", "head_dim": 8}, "quantised": {"dtype": "int8"}}
    source = written(tmp_path / "source", some(torch.float16), vocab_size=20, **{spelling: "float16"}, **parts)
    target = tmp_path / "target"
    target.mkdir()
    save_file(some(stored), target / weight_files.SINGLE)
    (source / "tokenizer.json").write_text("{}")
    weight_files.copy_config_and_tokenizer(source, target)
    assert json.loads((target / "config.json").read_text()) == {
        "vocab_size": 20,
        "torch_dtype": name,
        "dtype": name,
        "text_config": {spelling: name, "head_dim": 8},
        "quantised": {"dtype": "int8"},
    }
    assert (target / "tokenizer.json").read_text() == "{}"


def test_of_several_dtypes_the_widest_is_stated(tmp_path):
    source = written(tmp_path / "source", some(), dtype="bfloat16")
    target = written(tmp_path / "target", some(torch.bfloat16) | {NORM: torch.ones(4)}, files=2)
    weight_files.copy_config_and_tokenizer(source, target)
    assert json.loads((target / "config.json").read_text()) == {"dtype": "float32", "torch_dtype": "float32"}
