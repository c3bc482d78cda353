from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from transformers import AutoModelForCausalLM

from creason_jax.checkpoint.checkpoint import Checkpoints
from shared.errors import InputError
from tests.support.small import MODEL, flat, make_learner, on_host, put_back, random_batch
from tests.support.tiny import tiny_phi3

pytestmark = pytest.mark.slow

OPTIONS = {"learner": {"micro_batch_rows": 4, "remat": "none"}}


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A run saved after its second update, and gone on to its fourth: its folder, and the states then."""
    learner = make_learner(model, **OPTIONS)
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    learner.update(random_batch(8, seed=0))
    learner.sync_reference()
    learner.update(random_batch(8, seed=1))
    saved = on_host(learner.state)
    learner.save(folder, 2, {"position": 16})
    metrics = [learner.update(random_batch(8, seed=2))]  # while the save may still be going on
    learner.sync_reference()
    metrics.append(learner.update(random_batch(8, seed=3)))
    learner.finish_saves()
    return folder, saved, on_host(learner.state), metrics


@pytest.fixture
def copied(run, tmp_path):
    """The run's checkpoints in a folder of the test's own."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(run[0], folder)
    return folder


@pytest.fixture(scope="module")
def fresh(model):
    """A learner that many tests restore into; each sets it back first."""
    learner = make_learner(model, **OPTIONS)
    return learner, on_host(learner.state)


@pytest.fixture
def learner(fresh):
    found, state = fresh
    put_back(found, state)
    return found


def assert_bitwise(found, expected):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        assert found[path].tobytes() == leaf.tobytes(), path


def test_updates_after_a_restore_are_bit_for_bit_those_without_it(run, learner):
    folder, saved, final, metrics = run
    assert learner.restore(folder) == (2, {"position": 16})
    assert_bitwise(learner.state, saved)
    assert learner.step == 2
    again = [learner.update(random_batch(8, seed=2))]
    learner.sync_reference()
    again.append(learner.update(random_batch(8, seed=3)))
    assert again == metrics
    assert_bitwise(learner.state, final)
    assert learner.compiled_updates() == 1
    assert not any(np.array_equal(leaf, flat(saved)[path]) for path, leaf in flat(final).items())


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 8, 1)], ids=str)
def test_restore_on_another_mesh(run, model, mesh):
    learner = make_learner(model, mesh=mesh, **OPTIONS)
    before = jax.tree.map(lambda leaf: leaf.sharding, learner.state)
    assert learner.restore(run[0]) == (2, {"position": 16})
    assert_bitwise(learner.state, run[1])
    assert jax.tree.all(jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted, learner.state, before))
    assert len(learner.state.params["embed"]["kernel"].sharding.device_set) == 8


def test_export_after_a_restore_loads_in_transformers(run, learner, tmp_path):
    learner.restore(run[0])
    learner.export(tmp_path / "exported")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    params = flat(learner.state.params)
    np.testing.assert_array_equal(found.lm_head.weight.detach().numpy(), params["['head']['kernel']"].T)
    batch = random_batch(8, seed=2)
    row, prompt = 0, batch.layout.prompt
    there = batch.segments[row] <= 1
    there &= batch.groups[row] >= 0
    tokens = torch.tensor(batch.tokens[row][there], dtype=torch.long)
    read = int(there[:prompt].sum())
    with torch.no_grad():
        logprobs = torch.log_softmax(found(tokens[None]).logits[0], -1)[read - 1 : -1].gather(1, tokens[read:, None])
    own = learner.logprobs(batch, "policy")[row][prompt : prompt + len(tokens) - read]
    np.testing.assert_allclose(own, logprobs[:, 0].numpy(), rtol=0, atol=1e-5)


def test_nothing_to_restore_is_no_error(learner, run, tmp_path):
    before = on_host(learner.state)
    assert learner.restore(tmp_path / "none") is None
    assert_bitwise(learner.state, before)


def small_state(value: float) -> dict[str, jax.Array]:
    return {"weights": jax.numpy.full((16, 4), value)}


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def test_the_newest_are_kept_and_any_of_them_can_be_asked_for(tmp_path):
    checkpoints = Checkpoints(tmp_path / "kept", keep=2)
    for step in (1, 2, 5, 9):
        checkpoints.save(step, small_state(step), {"position": 10 * step})
    checkpoints.wait()
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["5", "9"]
    opened = Checkpoints(tmp_path / "kept", keep=2)
    target = abstract(small_state(0))
    for wanted, step in ((None, 9), (5, 5)):
        state, found, extra = opened.restore(target, wanted)
        assert (found, extra) == (step, {"position": 10 * step})
        assert (np.asarray(state["weights"]) == step).all()


def test_a_step_that_is_not_there_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path / "kept", keep=2)
    checkpoints.save(3, small_state(3), {})
    checkpoints.wait()
    with pytest.raises(InputError, match=r"no checkpoint of step 4; there are 3$"):
        checkpoints.restore(abstract(small_state(0)), 4)


@pytest.mark.parametrize("name", ["9.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-1700000000000000"])
def test_leftovers_of_a_killed_save_are_ignored(copied, learner, run, name):
    half = copied / name
    shutil.copytree(copied / "2" / "state", half / "state.orbax-checkpoint-tmp")
    for file in (half / "state.orbax-checkpoint-tmp").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert learner.restore(copied) == (2, {"position": 16})
    assert_bitwise(learner.state, run[1])
    learner.save(copied, 9, {"position": 72})  # the very step whose save was killed
    learner.finish_saves()
    assert learner.restore(copied) == (9, {"position": 72})


def data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def largest(folder: Path) -> Path:
    return max(data_files(folder / "state"), key=lambda path: path.stat().st_size)


def named(folder: Path, name: str) -> Path:
    return next(path for path in data_files(folder) if path.name == name)


DAMAGE = {
    "values cut in half": lambda folder: largest(folder).write_bytes(
        largest(folder).read_bytes()[: largest(folder).stat().st_size // 2]
    ),
    "values empty": lambda folder: largest(folder).write_bytes(b""),
    "values gone": lambda folder: largest(folder).unlink(),
    "manifest cut": lambda folder: named(folder / "state", "manifest.ocdbt").write_bytes(b"\x00\x01"),
    "manifest gone": lambda folder: named(folder / "state", "manifest.ocdbt").unlink(),
    "tree cut": lambda folder: named(folder / "state", "_METADATA").write_text('{"tree_'),
    "tree gone": lambda folder: named(folder / "state", "_METADATA").unlink(),
    "state gone": lambda folder: shutil.rmtree(folder / "state"),
    "position cut": lambda folder: named(folder / "extra", "metadata").write_text('{"posi'),
    "position gone": lambda folder: shutil.rmtree(folder / "extra"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_in_one_line(copied, learner, damage):
    before = on_host(learner.state)
    DAMAGE[damage](copied / "2")
    with pytest.raises(InputError) as refusal:
        learner.restore(copied)
    message = str(refusal.value)
    assert str(copied / "2") in message and "remove" in message
    assert "\n" not in message and len(message) < 500
    assert_bitwise(learner.state, before)


def overwrite(path: Path, at: int, changed: int = 0x15) -> None:
    """Four bytes of a file become others, as on a failing disk."""
    content = bytearray(path.read_bytes())
    content[at : at + 4] = bytes(byte ^ changed for byte in content[at : at + 4])
    path.write_bytes(content)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_four_bytes_of_the_values_overwritten_are_found(copied, learner, part):
    before = on_host(learner.state)
    values = largest(copied / "2")
    overwrite(values, int(part * values.stat().st_size))
    with pytest.raises(InputError) as refusal:
        learner.restore(copied)
    message = str(refusal.value)
    assert message.startswith(f"{copied / '2'}: ") and "remove that folder" in message and "\n" not in message
    assert "damaged" in message or "not a whole checkpoint" in message
    assert_bitwise(learner.state, before)


def test_another_position_than_was_saved_is_found(copied, learner):
    noted = copied / "2" / "extra" / "metadata"
    noted.write_text(noted.read_text().replace('"position": 16', '"position": 61'))
    with pytest.raises(InputError, match=f"^{copied / '2'}: damaged: .* remove that folder"):
        learner.restore(copied)


def test_whatever_is_overwritten_what_is_restored_is_what_was_saved(tmp_path):
    """Four bytes at a time in every file of a checkpoint: refused in one line, or of no effect."""
    state = {"layers": {"a": jax.random.normal(jax.random.key(0), (2, 40, 30))}, "step": jax.numpy.int32(7)}
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state, {"position": 16})
    checkpoints.wait()
    refused = 0
    for path in data_files(tmp_path / "1"):
        whole = path.read_bytes()
        for at in np.linspace(0, max(0, len(whole) - 4), 4).astype(int):
            overwrite(path, at)
            try:
                found, step, extra = Checkpoints(tmp_path, keep=2).restore(abstract(state), None)
            except InputError as error:
                assert "\n" not in str(error)
                refused += 1
            else:
                assert (step, extra) == (1, {"position": 16}), path
                assert_bitwise(found, state)
            path.write_bytes(whole)
    assert refused > 15


def test_a_checkpoint_of_an_earlier_version_is_restored_and_said_to_have_no_checksums(tmp_path, capsys):
    state = small_state(3)
    with ocp.CheckpointManager(tmp_path) as earlier:
        earlier.save(3, args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave({"position": 30})
        ))  # fmt: skip
    found, step, extra = Checkpoints(tmp_path, keep=2).restore(abstract(state), None)
    assert (step, extra) == (3, {"position": 30})
    assert_bitwise(found, state)
    assert f"{tmp_path / '3'}: an earlier version saved it without checksums" in capsys.readouterr().out


PROGRAM = """
import sys
from pathlib import Path
import fsspec
import jax
from creason_jax.checkpoint.checkpoint import Checkpoints
from launch.app import run

target = {f"weights {i}": jax.ShapeDtypeStruct((64, 64), "float32") for i in range(6)}
folder = Path(sys.argv.pop())
run(lambda: Checkpoints(folder, keep=2).restore(target, None))
"""


def test_a_program_that_meets_a_damaged_checkpoint_prints_one_line(tmp_path):
    """Several reads fail at once there, each with an exception of its own that somebody must have silenced."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {f"weights {i}": jax.random.normal(jax.random.key(i), (64, 64)) for i in range(6)}, {})
    checkpoints.wait()
    largest(tmp_path / "1").write_bytes(b"")
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {tmp_path / '1'}: not a whole checkpoint"), ended.stderr


FULL = """
import resource
import sys
import time
from pathlib import Path
import jax
from creason_jax.checkpoint.checkpoint import Checkpoints
from launch.app import run

def save():
    checkpoints = Checkpoints(folder, keep=2)
    state = {f"weights {i}": jax.random.normal(jax.random.key(i), (64, 64)) for i in range(6)}
    SPOIL
    checkpoints.save(1, state, {})
    while True:
        time.sleep(0.05)
        checkpoints.check()

folder = Path(sys.argv.pop())
run(save)
"""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))",
            "File too large",
        ),  # in the background, several threads
        ("folder.rmdir(), folder.write_text('')", "Not a directory"),
    ],
    ids=["full", "no folder"],
)
def test_a_program_that_cannot_write_a_checkpoint_prints_one_line_and_ends(spoil, reason, tmp_path):
    folder = tmp_path / "kept"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", FULL.replace("SPOIL", spoil), folder]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {folder}: a checkpoint cannot be written ("), ended.stderr
    assert reason in lines[0]
    assert not folder.is_dir() or Checkpoints(folder, keep=2).restore(abstract(small_state(0)), None) is None


def test_checkpoints_where_no_folder_can_be_made_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"^{tmp_path}/file/run: a checkpoint cannot be written .*Not a directory"):
        Checkpoints(tmp_path / "file" / "run", keep=2)


def test_a_save_that_cannot_begin_is_refused_and_so_is_what_follows(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, small_state(1), {})
    checkpoints.wait()

    async def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "async_save", fail)
    for attempt in (lambda: checkpoints.save(2, small_state(2), {}), checkpoints.wait, checkpoints.check):
        with pytest.raises(
            InputError, match="a checkpoint cannot be written .*No space left .*; see that there is room"
        ):
            attempt()
    assert Checkpoints(tmp_path, keep=2).restore(abstract(small_state(0)), None)[1] == 1


@pytest.mark.parametrize(
    "other",
    [{"num_hidden_layers": 3}, {"hidden_size": 128}, {"vocab_size": 384}, {"tie_word_embeddings": True}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_checkpoint_of_another_model_is_refused(run, tmp_path, other):
    tiny_phi3(tmp_path / "other", **(MODEL | other))
    learner = make_learner(tmp_path / "other", **OPTIONS)
    before = on_host(learner.state)
    with pytest.raises(InputError, match="not a whole checkpoint of this model") as refusal:
        learner.restore(run[0])
    assert str(run[0] / "2") in str(refusal.value) and "\n" not in str(refusal.value)
    assert_bitwise(learner.state, before)


def test_a_checkpoint_with_a_reference_is_refused_without_one(run, model):
    learner = make_learner(model, reference=False, **OPTIONS)
    with pytest.raises(InputError, match="not a whole checkpoint of this model"):
        learner.restore(run[0])


class TestInABucket:
    """What holds of a folder holds of a gs:// address."""

    @pytest.fixture(scope="class")
    def saved(self, model, cloud):
        """A learner's checkpoint after its second update, and its state then."""
        learner = make_learner(model, **OPTIONS)
        for seed in (0, 1):
            learner.update(random_batch(8, seed=seed))
        learner.save(f"{cloud}/saved", 2, {"position": 16})
        learner.finish_saves()
        return f"{cloud}/saved", on_host(learner.state)

    def test_it_restores_bit_for_bit_on_another_mesh(self, saved, model):
        learner = make_learner(model, mesh=(2, 2, 2), **OPTIONS)
        assert learner.restore(saved[0]) == (2, {"position": 16})
        assert_bitwise(learner.state, saved[1])

    def test_a_checkpoint_of_another_model_is_refused(self, saved, tmp_path):
        tiny_phi3(tmp_path / "other", **(MODEL | {"num_hidden_layers": 3}))
        learner = make_learner(tmp_path / "other", **OPTIONS)
        with pytest.raises(InputError, match=f"^{saved[0]}/2: not a whole checkpoint of this model"):
            learner.restore(saved[0])

    def test_the_newest_are_kept_and_one_that_is_not_whole_is_passed_over(self, bucket):
        checkpoints = Checkpoints(bucket, keep=2)
        for step in (1, 2, 5):
            checkpoints.save(step, small_state(step), {"position": 10 * step})
        checkpoints.wait()
        files = fsspec.filesystem("gs", use_listings_cache=False)
        assert sorted(path.rsplit("/", 1)[-1] for path in files.ls(bucket)) == ["2", "5"]
        with pytest.raises(InputError, match=rf"^{bucket}: no checkpoint of step 4; there are 2, 5$"):
            checkpoints.restore(abstract(small_state(0)), 4)
        files.rm(f"{bucket}/5/commit_success.txt")  # written last
        state, step, extra = self.fresh(bucket).restore(abstract(small_state(0)), None)
        assert (step, extra) == (2, {"position": 20})
        assert (np.asarray(state["weights"]) == 2).all()

    def test_a_damaged_checkpoint_is_named_in_one_line(self, bucket):
        checkpoints = Checkpoints(bucket, keep=2)
        checkpoints.save(3, small_state(3), {})
        checkpoints.wait()
        files = fsspec.filesystem("gs", use_listings_cache=False)
        for path in files.find(f"{bucket}/3/state"):
            if "/d/" in path:
                files.pipe_file(path, files.cat_file(path)[:20])
        with pytest.raises(InputError) as refusal:
            self.fresh(bucket).restore(abstract(small_state(0)), None)
        message = str(refusal.value)
        assert message.startswith(f"{bucket}/3: not a whole checkpoint") and "see that the bucket answers" in message
        assert "\n" not in message and len(message) < 500

    def test_four_bytes_of_the_values_overwritten_are_found(self, bucket):
        state = {"weights": jax.random.normal(jax.random.key(0), (64, 64))}
        checkpoints = Checkpoints(bucket, keep=2)
        checkpoints.save(3, state, {"position": 30})
        checkpoints.wait()
        files = fsspec.filesystem("gs", use_listings_cache=False)
        path = max((found for found in files.find(f"{bucket}/3/state")), key=lambda found: files.info(found)["size"])
        content = files.cat_file(path)
        files.pipe_file(path, content[:5_000] + b"\x15\x15\x15\x15" + content[5_004:])
        with pytest.raises(InputError, match=f"^{bucket}/3: damaged: weights does not hold the values that were saved"):
            self.fresh(bucket).restore(abstract(state), None)
        files.pipe_file(path, content)
        found, *rest = self.fresh(bucket).restore(abstract(state), None)
        assert rest == [3, {"position": 30}]
        assert_bitwise(found, state)

    def test_a_bucket_that_is_not_there_is_named(self, cloud):
        with pytest.raises(InputError, match="^gs://none-such/run: "):
            Checkpoints("gs://none-such/run", keep=2)

    def fresh(self, folder: str) -> Checkpoints:
        """As another process opens them."""
        fsspec.filesystem("gcs", finalize_on_close=True).invalidate_cache()
        return Checkpoints(folder, keep=2)
