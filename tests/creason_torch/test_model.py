"""Loading and writing weights: what is stored arrives, and what is not a whole model of this kind is one clear line."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from creason_torch.model.decoder import build_network, load_weights, read_config, save_params, stored_weights
from shared.errors import InputError
from shared.policy import weight_files
from shared.policy.families import FAMILIES

NORM, HEAD = "model.norm.weight", "lm_head.weight"


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Store other tensors, `__` for a dot in their names; None takes one away."""
    path = folder / weight_files.SINGLE
    stored = load_file(path) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in stored.items() if value is not None}, path)


def load(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a network after loading."""
    network = build_network(folder, torch.float32, longest=16)
    weights = dict(network.named_parameters())
    with torch.no_grad():
        load_weights(folder, weights, lambda param, value: param.copy_(value))
    return {name: param.detach() for name, param in weights.items()}


def test_what_is_stored_arrives(folder):
    stored, found = load_file(folder / weight_files.SINGLE), load(folder)
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], value) for name, value in stored.items())


def test_several_files_and_their_index(folder, tmp_path, monkeypatch):
    stored = load_file(folder / weight_files.SINGLE)
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 100_000)
    parts = tmp_path / "parts"
    parts.mkdir()
    shutil.copy2(folder / "config.json", parts)
    save_params(parts, stored.items())
    assert len(list(parts.glob("*.safetensors"))) > 2
    # What the index does not name is not of the model, e.g. the same weights in another form.
    save_file({NORM: torch.zeros(1)}, parts / "consolidated.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in load(parts).items())
    assert {name for name, _ in stored_weights(parts)} == stored.keys()
    next(parts.glob("model-00002-of-*")).unlink()
    with pytest.raises(InputError, match=r"model-00002-of-\d+\.safetensors: no such file, though the index names it"):
        load(parts)


def tie(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


def test_a_tied_head_may_be_stored_too(folder):
    tie(folder)
    change(folder, lm_head__weight=load_file(folder / weight_files.SINGLE)["model.embed_tokens.weight"].clone())
    assert HEAD not in load(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (partial(change, model__norm__weight=None), f"tensor {NORM} is missing"),
        (
            partial(change, model__norm__weight=torch.ones(3)),
            rf"tensor {NORM} has shape \(3,\), config.json asks for \(64,\)",
        ),
        (partial(change, model__extra__weight=torch.ones(3)), "tensor model.extra.weight is not of the model"),
        (lambda folder: (folder / weight_files.SINGLE).unlink(), "no model.safetensors and no"),
        (tie, "tie_word_embeddings = true, but lm_head.weight in model.safetensors is not model.embed_tokens.weight"),
        (partial(change, model__norm__weight=torch.ones(64, dtype=torch.int8)), f"tensor {NORM} is stored as I8; only"),
        (partial(change, model__norm__weight=torch.ones(64).double()), f"tensor {NORM} is stored as F64; only"),
        (partial(change, model__norm__weight=torch.full((64,), torch.nan)), f"tensor {NORM} holds values that are not"),
        (partial(change, model__norm__weight=torch.full((64,), torch.inf)), f"tensor {NORM} holds values that are not"),
        (
            partial(change, lm_head__weight=None),
            "tensor lm_head.weight is missing; if the embedding is the head, set tie",
        ),
        (
            lambda folder: (folder / weight_files.SINGLE).write_bytes((folder / weight_files.SINGLE).read_bytes()[:-9]),
            "truncated or not safetensors",
        ),
    ],
    ids=[
        "missing",
        "shape",
        "foreign",
        "no file",
        "tied, and a head of its own",
        "integers",
        "float64",
        "not a number",
        "infinite",
        "no head",
        "truncated",
    ],
)
def test_what_is_not_a_whole_model_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        load(folder)


def test_another_family_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputError, match=f"model_type is 'gpt2'; this backend computes {', '.join(FAMILIES)}"):
        read_config(folder)


def test_no_dropout_of_any_name_is_left(folder):
    path, names = folder / "config.json", ("attention_dropout", "resid_pdrop", "embd_pdrop", "residual_dropout")
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(names, 0.1)))
    assert [getattr(AutoConfig.from_pretrained(folder), name) for name in names] == [0.1] * 4
    assert [getattr(read_config(folder), name) for name in names] == [0.0] * 4


@pytest.mark.parametrize("content", ["[1]", "null", "3", '"phi3"'])
def test_a_config_that_is_no_object_is_one_clear_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="config.json: must hold a JSON object"):
        read_config(tmp_path)
