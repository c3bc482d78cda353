from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

from creason_jax.checkpoint import checkpoint as jax_checkpoint
from creason_jax.model import weights as jax_weights
from creason_torch import zero
from creason_torch.checkpoint.checkpoint import META, Checkpoints
from creason_torch.model.decoder import read_config
from shared.errors import InputError
from tests.support.full_disk import full_disk
from tests.support.groups import MODEL, random_batch
from tests.support.pairs import variant_pair
from tests.support.small import make_learner
from tests.support.tiny import tiny_phi3
from tests.support.workers import run_workers

pytestmark = pytest.mark.slow

ROWS = 8
SHAPE = torch.Size((30, 7))


@pytest.fixture(scope="module", autouse=True)
def one_process():
    zero.start_processes()


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of two arrays, one of them all zeros, as (checkpoints, values)."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    values = {"a.weight": torch.randn(SHAPE), "b.weight": torch.zeros(SHAPE)}
    checkpoints.save(5, (("params", name, value) for name, value in values.items()), {"position": 7, "updates": 5})
    return checkpoints, values


def read(checkpoints: Checkpoints, name: str = "a.weight", shape: torch.Size = SHAPE) -> torch.Tensor:
    found = checkpoints.open(None, None)
    assert found is not None
    return found[2].read("params", name, shape)


def test_what_is_saved_comes_back_bit_for_bit(saved):
    checkpoints, values = saved
    step, extra, arrays = checkpoints.open(None, None)
    assert (step, extra) == (5, {"position": 7, "updates": 5})
    for name, value in values.items():
        assert torch.equal(arrays.read("params", name, SHAPE), value)


@pytest.mark.parametrize("folder", ["../runs/x", "here/../runs/x", "한글 run #1%41?/ü"])
def test_a_folder_may_be_named_in_any_way(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    values = torch.randn(SHAPE)
    for step in (1, 2):
        Checkpoints(Path(folder), keep=1).save(
            step, [("params", "a.weight", values)], {"position": step, "updates": step}
        )
    step, extra, arrays = Checkpoints(Path(folder), keep=1).open(None, None)
    assert (step, extra) == (2, {"position": 2, "updates": 2}) and torch.equal(
        arrays.read("params", "a.weight", SHAPE), values
    )


@pytest.mark.parametrize("size", [0, 300])
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(saved, size):
    checkpoints, values = saved
    with pytest.raises(InputError, match=r"checkpoints: cannot be written \(File too large\)"), full_disk(size):
        checkpoints.save(6, (("params", name, value) for name, value in values.items()), {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["5"]
    assert torch.equal(read(checkpoints), values["a.weight"])


def test_only_the_newest_are_kept(saved):
    checkpoints, values = saved
    for step in (6, 20, 100):
        checkpoints.save(step, (("params", name, value) for name, value in values.items()), {})
    assert checkpoints.steps() == [20, 100]
    with pytest.raises(InputError, match=r"no checkpoint of step 5; there are 20, 100"):
        checkpoints.open(5, None)


def test_nothing_is_found_where_nothing_was_saved(tmp_path):
    assert Checkpoints(tmp_path / "none", keep=2).open(None, None) is None
    with pytest.raises(InputError, match="there are none"):
        Checkpoints(tmp_path / "none", keep=2).open(3, None)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "missing", "no array"])
def test_damage_is_one_clear_line(saved, damage):
    checkpoints, _ = saved
    [chunk] = [path for path in (checkpoints.folder / "5" / "params" / "a.weight").rglob("c/*") if path.is_file()]
    content = bytearray(chunk.read_bytes())
    if damage == "truncated":
        chunk.write_bytes(content[:100])
    elif damage == "one bit":
        content[50] ^= 4
        chunk.write_bytes(content)
    else:
        chunk.unlink()
    if damage == "no array":
        (chunk.parents[1] / "zarr.json").unlink()
    with pytest.raises(
        InputError, match=r"5: not a whole checkpoint of this model \(params of a.weight: .*remove that"
    ) as e:
        read(checkpoints)
    assert "\n" not in str(e.value)
    assert torch.equal(read(checkpoints, "b.weight"), torch.zeros(SHAPE))


def test_another_model_and_another_version_are_refused(saved):
    checkpoints, _ = saved
    with pytest.raises(InputError, match="210 elements where the model has 12"):
        read(checkpoints, shape=torch.Size((3, 4)))
    meta = checkpoints.folder / "5" / META
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match=r"written by another version \(format 99\)"):
        read(checkpoints)


def test_a_run_of_the_jax_backend_goes_on_here(tmp_path):
    """Weights, moments, reference and schedule: two updates there and two here are four there."""
    model = tmp_path / "model"
    tiny_phi3(model, **MODEL)
    learner = make_learner(model, learner={"remat": "none"})
    for seed in (0, 1):
        learner.update(random_batch(ROWS, seed=seed))
    learner.sync_reference()
    learner.save(tmp_path / "checkpoints", 2, {"position": 16})
    learner.finish_saves()
    expected = [learner.update(random_batch(ROWS, seed=seed)) for seed in (2, 3)]
    jax_weights.save_params(tmp_path, learner.state.params, learner.model)
    actions = [["restore", None], ["update", 2], ["update", 3], ["export", str(tmp_path / "hf")]]
    for stage, processes in ((3, 2), (0, 1)):
        spec = {
            "model": str(model),
            "out": str(tmp_path / str(stage)),
            "rows": ROWS,
            "torch": {"zero_stage": stage},
            "checkpoints": str(tmp_path / "checkpoints"),
            "actions": actions,
        }
        [found] = run_workers([spec], tmp_path, processes=processes)
        assert found.metrics[0] == [2, 16]
        for ours, theirs in zip(found.metrics[1:], expected, strict=True):
            assert ours["learning_rate"] == theirs["learning_rate"]
            for name in ("loss", "grad_norm", "kl", "entropy", "tokens", "completions"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-7), name
        stored = jax_stored(tmp_path)
        for name, value in stored.items():
            gap = np.linalg.norm(found.arrays[f"params/{name}"] - value) / np.linalg.norm(value)
            assert gap < 1e-5, name


def jax_stored(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("variant", ["phi4 mini", "llama biased", "qwen2", "qwen3", "mistral", "olmo2"])
def test_tensors_of_every_family_come_out_of_a_checkpoint_of_the_jax_backend(tmp_path, variant):
    pair = variant_pair(tmp_path / "model", variant)
    writer = jax_checkpoint.Checkpoints(tmp_path / "checkpoints", keep=1)
    writer.save(1, {"params": pair.params, "step": jax.numpy.int32(4)}, {"position": 8})
    writer.wait()
    step, extra, arrays = Checkpoints(tmp_path / "checkpoints", keep=2).open(None, read_config(pair.folder))
    assert (step, extra) == (1, {"position": 8, "updates": 4})
    for name, weight in pair.torch.named_parameters():
        assert torch.equal(arrays.read("params", name, weight.shape), weight), name


@pytest.mark.parametrize("folder", ["../runs/x", "한글 run #1%41?/ü"])
def test_a_checkpoint_of_the_jax_backend_may_be_anywhere(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pair = variant_pair(tmp_path / "model", "qwen3")
    writer = jax_checkpoint.Checkpoints(Path(folder), keep=1)
    writer.save(1, {"params": pair.params, "step": jax.numpy.int32(4)}, {"position": 8})
    writer.wait()
    step, extra, arrays = Checkpoints(Path(folder), keep=2).open(None, read_config(pair.folder))
    assert (step, extra) == (1, {"position": 8, "updates": 4})
    weight = dict(pair.torch.named_parameters())["model.norm.weight"]
    assert torch.equal(arrays.read("params", "model.norm.weight", weight.shape), weight)


def test_bfloat16_moments_of_the_jax_backend_are_read_as_float32(tmp_path):
    pair = variant_pair(tmp_path / "model", "qwen3")
    writer = jax_checkpoint.Checkpoints(tmp_path / "checkpoints", keep=1)
    moments = {"mu": jax.tree.map(lambda leaf: leaf.astype("bfloat16"), pair.params)}
    writer.save(1, {"moments": moments, "step": jax.numpy.int32(4)}, {"position": 8})
    writer.wait()
    *_, arrays = Checkpoints(tmp_path / "checkpoints", keep=2).open(None, read_config(pair.folder))
    for name, weight in pair.torch.named_parameters():
        found = arrays.read("exp_avg", name, weight.shape)
        assert found.dtype == torch.float32
        assert torch.equal(found, weight.bfloat16().float()), name


@pytest.fixture(scope="module")
def by_jax(tmp_path_factory):
    """The tensors of a small model, and a checkpoint of the JAX backend with them, one of them in bfloat16 too."""
    folder = tmp_path_factory.mktemp("jax")
    pair = variant_pair(folder / "model", "qwen2 tied")
    writer = jax_checkpoint.Checkpoints(folder / "checkpoints", keep=1)
    moments = {"mu": jax.tree.map(lambda leaf: leaf.astype("bfloat16"), pair.params)}
    state = {"params": pair.params, "moments": moments, "step": jax.numpy.int32(4)}
    writer.save(1, state, {"position": 8})
    writer.wait()
    return pair, folder / "checkpoints", state


def read_all(folder: Path, pair) -> dict[str, torch.Tensor]:
    step, extra, arrays = Checkpoints(folder, keep=2).open(None, read_config(pair.folder))
    assert (step, extra) == (1, {"position": 8, "updates": 4})
    shapes = {name: weight.shape for name, weight in pair.torch.named_parameters()}
    return {
        f"{kind} {name}": arrays.read(kind, name, shape)
        for kind in ("params", "exp_avg")
        for name, shape in shapes.items()
    }


def test_four_bytes_of_a_checkpoint_of_the_jax_backend_overwritten_are_found(by_jax, tmp_path):
    pair, folder, _ = by_jax
    shutil.copytree(folder, tmp_path / "copy")
    expected = read_all(tmp_path / "copy", pair)
    path = max((tmp_path / "copy").rglob("d/*"), key=lambda found: found.stat().st_size)
    whole = path.read_bytes()
    for at in np.linspace(0.05, 0.9, 12):
        content = bytearray(whole)
        place = int(at * len(content))
        content[place : place + 4] = bytes(byte ^ 0x15 for byte in content[place : place + 4])
        path.write_bytes(content)
        with pytest.raises(InputError, match="1: (damaged|not a whole checkpoint)") as refusal:
            read_all(tmp_path / "copy", pair)
        assert "\n" not in str(refusal.value)
    path.write_bytes(whole)
    found = read_all(tmp_path / "copy", pair)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_another_position_in_a_checkpoint_of_the_jax_backend_is_found(by_jax, tmp_path):
    pair, folder, _ = by_jax
    shutil.copytree(folder, tmp_path / "copy")
    noted = tmp_path / "copy" / "1" / "extra" / "metadata"
    noted.write_text(noted.read_text().replace('"position": 8', '"position": 9'))
    with pytest.raises(InputError, match=f"^{tmp_path / 'copy' / '1'}: damaged: .* remove that folder"):
        read_all(tmp_path / "copy", pair)


def test_a_checkpoint_of_an_earlier_jax_backend_is_read_and_said_to_have_no_checksums(by_jax, tmp_path, capsys):
    pair, _, state = by_jax
    with ocp.CheckpointManager(tmp_path) as earlier:
        earlier.save(1, args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave({"position": 8})
        ))  # fmt: skip
    found = read_all(tmp_path, pair)
    for name, weight in pair.torch.named_parameters():
        assert torch.equal(found[f"params {name}"], weight), name
    assert f"{tmp_path / '1'}: an earlier version saved it without checksums" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "another version"),
        ('{"format": 1}', "does not say how many updates"),
        ('{"format": 1, "extra": {"position": 7}}', "does not say how many updates"),
    ],
)
def test_a_description_of_no_use_is_one_clear_line(saved, content, message):
    checkpoints, _ = saved
    (checkpoints.folder / "5" / META).write_text(content)
    with pytest.raises(InputError, match=message):
        checkpoints.open(None, None)


def test_another_position_than_was_saved_is_found(saved):
    checkpoints, values = saved
    path = checkpoints.folder / "5" / META
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"extra": {"position": 70, "updates": 5}}))
    with pytest.raises(InputError, match=r"meta.json: damaged: .* remove that folder"):
        checkpoints.open(None, None)
    # Earlier versions did not say what the file should hold.
    path.write_text(json.dumps({name: value for name, value in meta.items() if name != "json_crc32"}))
    assert checkpoints.open(None, None)[:2] == (5, {"position": 7, "updates": 5})
    assert torch.equal(read(checkpoints), values["a.weight"])


def test_a_damaged_checkpoint_of_the_jax_backend_is_one_clear_line(tmp_path):
    model = tmp_path / "model"
    tiny_phi3(model, **MODEL)
    learner = make_learner(model, learner={"remat": "none"})
    learner.save(tmp_path / "checkpoints", 1, {"position": 8})
    learner.finish_saves()
    step, extra, arrays = Checkpoints(tmp_path / "checkpoints", keep=2).open(None, read_config(model))
    assert (step, extra) == (1, {"position": 8, "updates": 0})
    with pytest.raises(InputError, match="of another family"):
        arrays.read("params", "model.layers.0.self_attn.q_norm.weight", torch.Size((4,)))
    for path in (tmp_path / "checkpoints" / "1" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="not a whole checkpoint of the JAX backend"):
        arrays = Checkpoints(tmp_path / "checkpoints", keep=2).open(None, read_config(model))[2]
        arrays.read("params", "model.norm.weight", torch.Size((64,)))
