"""A run that moves between the backends in its middle, optimizer state included, is the run that stayed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from creason_jax.model import weights as jax_weights
from creason_torch import zero
from creason_torch.checkpoint.checkpoint import Checkpoints
from shared.errors import InputError
from tests.support.families import tiny_variant
from tests.support.groups import MODEL, random_batch
from tests.support.small import flat, make_learner, on_host
from tests.support.tiny import tiny_phi3
from tests.support.workers import run_workers

pytestmark = pytest.mark.slow

ROWS, STEPS, HALF = 8, 20, 10
SYNCED = (4, 9, 15)  # the reference moves after these updates, before and after the move
LEARNER = {"remat": "none", "micro_batch_rows": 2}  # four micro-batches
LOSS, WEIGHTS = 1e-5, 1e-4  # relative; of weights and moments the L2 norm of each tensor


@dataclasses.dataclass(frozen=True)
class Ended:
    """A run of one learner: its metrics by update, and its last state by `kind/Hugging Face name`."""

    metrics: list[dict[str, float]]
    arrays: dict[str, np.ndarray]


def actions(begin: int, end: int) -> list[list]:
    found: list[list] = []
    for step in range(begin, end):
        found.append(["update", step])
        if step + 1 in SYNCED:
            found.append(["sync", None])
    return found


def update(learner, begin: int, end: int) -> list[dict[str, float]]:
    metrics = []
    for name, argument in actions(begin, end):
        if name == "update":
            metrics.append(learner.update(random_batch(ROWS, seed=argument)))
        else:
            learner.sync_reference()
    return metrics


def hugging_face(learner) -> dict[str, np.ndarray]:
    """The state as the PyTorch backend names it."""
    state = on_host(learner.state)
    kinds = {
        "params": state.params,
        "exp_avg": state.moments.mu,
        "exp_avg_sq": state.moments.nu,
        "reference": state.reference,
    }
    return {
        f"{kind}/{name}": value
        for kind, tree in kinds.items()
        for name, value in jax_weights._hugging_face_tensors(tree, learner.model)
    }


@pytest.fixture(scope="module")
def stayed_jax(model, tmp_path_factory):
    """Twenty updates of the JAX backend, and its checkpoint after ten of them."""
    learner = make_learner(model, steps=STEPS, learner=LEARNER)
    folder = tmp_path_factory.mktemp("jax") / "checkpoints"
    metrics = update(learner, 0, HALF)
    learner.save(folder, HALF, {"position": 70})
    half = on_host(learner.state)
    metrics += update(learner, HALF, STEPS)
    learner.finish_saves()
    return Ended(metrics, hugging_face(learner)), folder, half


@pytest.fixture(scope="module")
def by_torch(model, stayed_jax, tmp_path_factory):
    """Of the PyTorch backend under ZeRO-3 with two processes: the run that stayed and its checkpoints, the one that came from
    JAX, and the checkpoints of one that only passed through."""
    folder = tmp_path_factory.mktemp("torch")
    for name in ("moved", "passed"):
        shutil.copytree(stayed_jax[1], folder / name)
    shared = {
        "model": str(model), "rows": ROWS, "steps": STEPS, "torch": {"zero_stage": 3}, "learner": {"micro_batch_rows": 2},
    }  # fmt: skip

    def spec(name: str, actions: list[list]) -> dict:
        return shared | {"out": str(folder / f"{name}.out"), "checkpoints": str(folder / name), "actions": actions}

    specs = [
        spec("stayed", [*actions(0, HALF), ["save", HALF], *actions(HALF, STEPS)]),
        spec("moved", [["restore", None], *actions(HALF, STEPS)]),
        spec("passed", [["restore", None], ["save", HALF + 1]]),
    ]
    stayed, moved, _ = run_workers(specs, folder, processes=2)
    return Ended(stayed.metrics, stayed.arrays), moved, folder


def assert_the_same(metrics, arrays, expected: Ended) -> None:
    """Within the stated bounds: the updates from the middle to the end, and the last state."""
    for ours, theirs in zip(metrics, expected.metrics[HALF:], strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"]
        for name in ("loss", "grad_norm", "kl", "entropy", "tokens", "completions"):
            assert ours[name] == pytest.approx(theirs[name], rel=LOSS, abs=1e-7), name
    apart = {}
    assert arrays.keys() == expected.arrays.keys()
    for name, value in expected.arrays.items():
        kind = name.split("/")[0]
        gap = float(np.linalg.norm(arrays[name] - value) / np.linalg.norm(value))
        apart[kind] = max(apart.get(kind, 0.0), gap)
    assert max(apart.values()) < WEIGHTS, apart


def test_from_jax_to_torch(by_torch, stayed_jax):
    stayed, moved, _ = by_torch
    assert moved.metrics[0] == [HALF, 70]
    for expected in (stayed_jax[0], stayed):
        assert_the_same(moved.metrics[1:], moved.arrays, expected)


def test_from_torch_to_jax(by_torch, stayed_jax, model, tmp_path, caplog):
    stayed, _, folder = by_torch
    shutil.copytree(folder / "stayed", tmp_path / "checkpoints")
    learner = make_learner(model, steps=STEPS, learner=LEARNER)
    assert learner.restore(tmp_path / "checkpoints") == (HALF, {"position": 7 * HALF})
    small = make_learner(model, learner=LEARNER, jax_options={"moments_dtype": "bfloat16", "reference_memory": "host"})
    assert small.restore(tmp_path / "checkpoints") == (HALF, {"position": 7 * HALF})
    for found, whole in zip(jax.tree.leaves(small.state), jax.tree.leaves(learner.state), strict=True):
        np.testing.assert_array_equal(found, whole.astype(found.dtype))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(small.state.moments.nu)} == {"bfloat16"}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(small.state.reference)} == {"pinned_host"}
    assert learner.step == HALF and int(learner.state.moments.count) == HALF
    assert caplog.records == []
    metrics = update(learner, HALF, STEPS)
    for expected in (stayed_jax[0], stayed):
        assert_the_same(metrics, hugging_face(learner), expected)
    # The checkpoints that it makes go on in the same folder, and the oldest makes room.
    for step in (STEPS, STEPS + 1):
        learner.save(tmp_path / "checkpoints", step, {"position": step})
    learner.finish_saves()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [str(STEPS), str(STEPS + 1)]
    assert learner.restore(tmp_path / "checkpoints") == (STEPS + 1, {"position": STEPS + 1})


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_there_and_back_is_equal_bit_for_bit(by_torch, stayed_jax, model, mesh):
    learner = make_learner(model, steps=STEPS, mesh=mesh, learner=LEARNER)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, learner.state)
    assert learner.restore(by_torch[2] / "passed") == (HALF + 1, {"position": 7 * (HALF + 1)})
    found, expected = flat(learner.state), flat(stayed_jax[2])
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype and found[path].tobytes() == leaf.tobytes(), path
    assert jax.tree.all(jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted, learner.state, shardings))


@pytest.fixture(scope="module")
def fresh(model):
    return make_learner(model, steps=STEPS, learner=LEARNER)


@pytest.fixture
def damaged(by_torch, tmp_path):
    """A checkpoint of the PyTorch backend to be damaged."""
    shutil.copytree(by_torch[2] / "stayed", tmp_path / "checkpoints")
    return tmp_path / "checkpoints" / str(HALF)


def chunk(folder: Path, kind: str, name: str) -> Path:
    [found] = [path for path in (folder / kind / name / "c").rglob("*") if path.is_file()]
    return found


NORM = "model.norm.weight"


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[50] ^= 4
    path.write_bytes(content)


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


DAMAGE = {
    "truncated": (lambda at: chunk(at, "params", NORM).write_bytes(b"\0" * 100), "params of model.norm.weight: "),
    "one bit": (lambda at: one_bit(chunk(at, "exp_avg", NORM)), "exp_avg of model.norm.weight: "),
    "no chunk": (lambda at: chunk(at, "exp_avg_sq", NORM).unlink(), "exp_avg_sq of model.norm.weight: "),
    "no array": (lambda at: shutil.rmtree(at / "reference" / NORM), "reference of model.norm.weight: "),
    "no kind": (lambda at: shutil.rmtree(at / "reference"), "reference of model.embed_tokens.weight: "),
    "no meta": (lambda at: (at / "meta.json").unlink(), "meta.json: no such file"),
    "meta cut": (lambda at: (at / "meta.json").write_text('{"form'), "meta.json: not JSON"),
    "meta of no use": (lambda at: (at / "meta.json").write_text('{"format": 1}'), "does not say how many updates"),
    "another position": (lambda at: edit(at / "meta.json", '"position": 70', '"position": 77'), "meta.json: damaged"),
    "another count": (lambda at: edit(at / "meta.json", '"updates": 10', '"updates": 11'), "meta.json: damaged"),
    "another version": (lambda at: (at / "meta.json").write_text('{"format": 9}'), "another version (format 9)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_clear_line(damaged, fresh, damage):
    before = flat(fresh.state)
    change, wanted = DAMAGE[damage]
    change(damaged)
    with pytest.raises(InputError) as refusal:
        fresh.restore(damaged.parent)
    message = str(refusal.value)
    assert str(damaged) in message and wanted in message and "\n" not in message and len(message) < 600
    assert all(leaf.tobytes() == before[path].tobytes() for path, leaf in flat(fresh.state).items())


def test_a_checkpoint_of_another_model_is_refused(damaged, tmp_path):
    tiny_phi3(tmp_path / "other", **(MODEL | {"intermediate_size": 128}))
    learner = make_learner(tmp_path / "other", steps=STEPS, learner=LEARNER)
    with pytest.raises(InputError, match="elements where the model has"):
        learner.restore(damaged.parent)


def test_leftovers_of_a_killed_save_are_ignored(damaged, fresh):
    damaged.rename(damaged.parent / f".{HALF}.partial")
    assert fresh.restore(damaged.parent) is None


def test_moments_count_for_the_updates_after_a_move(by_torch, stayed_jax, model, tmp_path):
    """The control: with the count of updates, or a moment, of another run the bounds above are passed."""
    shutil.copytree(by_torch[2] / "stayed", tmp_path / "checkpoints")
    at = tmp_path / "checkpoints" / str(HALF)
    meta = json.loads((at / "meta.json").read_text())
    changed = {name: value for name, value in meta.items() if name != "json_crc32"}
    (at / "meta.json").write_text(json.dumps(changed | {"extra": meta["extra"] | {"updates": 0}}))
    shutil.rmtree(at / "exp_avg_sq")
    shutil.copytree(at / "exp_avg", at / "exp_avg_sq")
    learner = make_learner(model, steps=STEPS, learner=LEARNER)
    learner.restore(tmp_path / "checkpoints")
    metrics = update(learner, HALF, STEPS)
    with pytest.raises(AssertionError):
        assert_the_same(metrics, hugging_face(learner), stayed_jax[0])
    assert metrics[-1]["loss"] != pytest.approx(stayed_jax[0].metrics[-1]["loss"], rel=1e-3)


@pytest.mark.parametrize("variant", ["qwen2 tied", "llama biased", "qwen3", "olmo2 biased"])
def test_every_form_of_a_family_is_read(variant, tmp_path):
    """Separate and fused matrices, biases, norms of heads, a tied head: each array comes back under its name."""
    network = tiny_variant(variant)
    network.save_pretrained(tmp_path / "model")
    names = dict(network.named_parameters())
    kinds = {"params": 1.0, "exp_avg": 0.5, "exp_avg_sq": 0.25, "reference": 2.0}
    zero.start_processes()
    Checkpoints(tmp_path / "checkpoints", keep=1).save(
        3,
        ((kind, name, value.detach() * factor) for kind, factor in kinds.items() for name, value in names.items()),
        {"position": 5, "updates": 3},
    )
    learner = make_learner(tmp_path / "model", mesh=(1, 2, 2), learner=LEARNER)
    assert learner.restore(tmp_path / "checkpoints") == (3, {"position": 5})
    found = hugging_face(learner)
    assert found.keys() == {f"{kind}/{name}" for kind in kinds for name in names}
    for key, value in found.items():
        kind, name = key.split("/")
        assert np.array_equal(value, names[name].detach().numpy() * np.float32(kinds[kind])), key
