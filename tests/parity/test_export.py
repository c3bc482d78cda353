"""What either backend exports is what Transformers loads by default, bit for bit, whatever the first model was stored in."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from creason_torch import zero
from creason_torch.learner.learner import Learner
from shared.policy import weight_files
from tests.support.families import tiny_variant
from tests.support.small import make_learner
from tests.support.tiny import run_config

pytestmark = pytest.mark.slow

MOVED = 1 + 2.0**-12  # as after a few steps: float32 tells it from the stored value, bfloat16 does not


def by_jax(model: Path, out: Path) -> None:
    learner = make_learner(model, reference=False)
    moved = jax.tree.map(lambda leaf: leaf * MOVED, learner.state.params)
    learner.state = learner.state._replace(params=moved)
    learner.export(out)


def by_torch(model: Path, out: Path) -> None:
    zero.start_processes()
    config = run_config(learner={"remat": "none"})
    learner = Learner(config, model, zero.device(), optimizer=config.optimizer, steps=1, reference=False)
    for param in learner.weights.values():
        zero.set_master(param, zero.master(param) * MOVED)
    learner.export(out)


@pytest.mark.parametrize("spelling", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("export", [by_jax, by_torch])
@pytest.mark.parametrize(("variant", "limit"), [("qwen2 tied", 2**32), ("phi3", 2**15)])
def test_transformers_loads_the_stored_bits_of_an_export(tmp_path, monkeypatch, variant, limit, export, spelling):
    monkeypatch.setattr(weight_files, "SHARD_BYTES", limit)
    network = tiny_variant(variant).to(torch.bfloat16)
    network.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    described = {name: value for name, value in json.loads(path.read_text()).items() if name != "dtype"}
    path.write_text(json.dumps(described | {spelling: "bfloat16"}))
    export(tmp_path / "model", tmp_path / "out")
    stored = {
        name: value for file in (tmp_path / "out").glob("*.safetensors") for name, value in load_file(file).items()
    }
    found = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], value), name
        assert torch.equal(value, network.get_parameter(name).float() * MOVED), name
    # What older versions of Transformers read, and what newer ones do.
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["torch_dtype"], written["dtype"]) == ("float32", "float32")
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.float32
