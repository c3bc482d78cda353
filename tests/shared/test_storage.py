"""Files in buckets: in memory, by file:// addresses, and in a Google bucket that this machine emulates."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shared.config import CONFIG_FILE, RunConfig, validate
from shared.errors import InputError
from shared.questions.record import read_questions, write_questions
from shared.runs import run
from shared.runs.policy import check_policy
from shared.runs.workdir import Job, checkpoint_folder, claim, read_config
from shared.storage import buckets, files
from shared.training.metrics_log import plain
from tests.support.commands import here
from tests.support.exam import numbered


@pytest.fixture
def written(tmp_path):
    """A question file, and what it holds."""
    write_questions(tmp_path / "train.parquet", numbered(3))
    return tmp_path / "train.parquet", numbered(3)


def put(path: Path, address: str) -> str:
    with fsspec.open(address, "wb") as stream:
        stream.write(path.read_bytes())
    return address


def refused(address: str) -> str:
    with pytest.raises(InputError) as caught:
        read_questions(address)
    message = str(caught.value)
    assert message.startswith(f"{address}: ") and "\n" not in message
    return message


def test_questions_are_read_from_any_address(written, bucket):
    path, questions = written
    for address in (f"file://{path}", put(path, "memory://there/train.parquet"), put(path, f"{bucket}/train.parquet")):
        assert read_questions(address) == questions


def test_what_is_no_question_file_is_named_by_its_address(bucket, tmp_path):
    (tmp_path / "other").write_bytes(b"id,context\n")
    assert "not a readable Parquet file" in refused(put(tmp_path / "other", f"{bucket}/other.parquet"))
    for address in (f"{bucket}/none.parquet", "memory://none.parquet", f"file://{tmp_path}/none.parquet"):
        assert "no such" in refused(address)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert refused("s3://bucket/train.parquet").endswith("pip install s3fs")
    assert "nosuch" in refused("nosuch://bucket/train.parquet")


def test_a_bucket_that_refuses_is_one_line(monkeypatch, cloud):
    import gcsfs

    def refuse(error: Exception):
        async def asked(*_, **__):
            raise error

        return asked

    def denied(*_):
        raise PermissionError("no\nright")

    monkeypatch.setattr(MemoryFileSystem, "info", denied)
    assert "not accessible (no right); check" in refused("memory://train.parquet")
    unauthorised = gcsfs.retry.HttpError({"code": 401, "message": "Anonymous caller"})
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_call", refuse(unauthorised))
    assert "gcloud auth" in refused(f"{cloud}/train.parquet")
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_call", refuse(OSError("Forbidden: b/pod/o/train.parquet")))
    assert "not accessible (Forbidden" in refused(f"{cloud}/train.parquet")
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_call", refuse(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):  # what is a fault of the program stays one
        read_questions(f"{cloud}/train.parquet")


def test_programs_take_addresses_and_refuse_them_with_one_line(written, tmp_path, bucket, monkeypatch, capfd):
    def evaluate(address: str):
        flags = (f"--questions={address}", f"--lm_eval={tmp_path / 'task'}")
        return here("evaluate", *flags, monkeypatch=monkeypatch, capfd=capfd)

    assert evaluate(put(written[0], f"{bucket}/train.parquet")).code == 0
    assert (tmp_path / "task").is_dir()
    assert f"{bucket}/none.parquet: no such question file" in evaluate(f"{bucket}/none.parquet").refusal


def test_the_work_directory_is_a_folder(bucket, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = (f"--config={Path(run.__file__).parents[2] / 'configs/smoke.py'}", f"--workdir={bucket}/run")
    assert "must be a folder" in here("train", *flags, monkeypatch=monkeypatch, capfd=capfd).refusal
    assert not any(tmp_path.iterdir())


def test_questions_that_are_not_there_are_named_before_anything_is_made(bucket, monkeypatch, capfd, tmp_path):
    flags = (f"--config={Path(run.__file__).parents[2] / 'configs/smoke.py'}", f"--workdir={tmp_path / 'run'}")
    flags += (f"--config.data.train={bucket}/none", f"--config.data.valid={bucket}/none")
    ended = here("train", *flags, monkeypatch=monkeypatch, capfd=capfd)
    assert f"{bucket}/none: no such question file" in ended.refusal
    assert not (tmp_path / "run").exists()


class TestModels:
    """A model directory is copied once, and whole or not at all."""

    @pytest.fixture
    def there(self, bucket, tmp_path):
        for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
            (tmp_path / name).write_text(name)
            put(tmp_path / name, f"{bucket}/model/{name}")
        return f"{bucket}/model"

    def test_it_is_copied_once(self, there, tmp_path):
        folder = tmp_path / "work" / "model"
        buckets.fetch_model(there, folder, progress=False)
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            name: name for name in ("config.json", "model.safetensors")
        }
        fsspec.filesystem("gs").rm(there, recursive=True)
        buckets.fetch_model(there, folder, progress=False)
        assert len(list(folder.iterdir())) == 2

    def test_its_bytes_move_the_bar(self, there, tmp_path, capfd):
        buckets.fetch_model(there, tmp_path / "work" / "model", progress=True)
        size = len("config.json") + len("model.safetensors")
        assert f"{size:.1f}/{size:.1f}" in capfd.readouterr().err

    def test_a_copy_that_fails_leaves_nothing(self, there, tmp_path, monkeypatch):
        filesystem = buckets._opened(there)[0]

        def half(names, targets, callback):
            Path(targets[0]).write_text("{")
            raise OSError("connection lost")

        monkeypatch.setattr(filesystem, "get", half)
        with pytest.raises(InputError, match="connection lost"):
            buckets.fetch_model(there, tmp_path / "work" / "model", progress=False)
        assert [path.name for path in (tmp_path / "work").iterdir()] == [".model.lock"]

    def test_one_that_is_not_there_is_named(self, bucket):
        config = validate({"name": "run", "model": {"path": f"{bucket}/none"}})
        with pytest.raises(InputError, match="no config.json there"):
            check_policy(config)


def test_a_process_that_does_not_see_the_work_directory_says_so_where_it_must(tmp_path):
    fields = {"name": "run", "data": {"train": "gs://b/t", "valid": "gs://b/v"}, "model": {"path": "gs://b/m"}}
    second = SimpleNamespace(process=1, checkpoints_in_buckets=True, resolved=lambda config: config)

    def check(**more):
        run._check_shared(Job.of(validate(fields | more), second, tmp_path, progress=False))

    with pytest.raises(InputError, match="process 1 does not see what process 0 wrote there; put the work directory"):
        check()
    check(checkpoint={"folder": "gs://b/c"})
    claim(validate(fields), tmp_path)
    check()


def test_a_run_may_go_on_with_its_devices_split_otherwise(tmp_path):
    claim(validate({"name": "run"}), tmp_path)
    split = {"jax": {"mesh_tensor": 4, "sequence_parallel": True, "rollout_mesh_tensor": 8}}
    claim(validate({"name": "run", **split}), tmp_path)
    assert read_config(tmp_path / CONFIG_FILE).jax.rollout_mesh_tensor == 8


def test_a_run_with_old_names_of_fields_goes_on_under_the_new_ones(tmp_path, capsys):
    config = validate({"name": "run", "jax": {"mesh_tensor": 4, "rollout_mesh_tensor": 8, "moments_dtype": "bfloat16"}})
    before = dataclasses.asdict(config)
    options = before.pop("jax")
    before["rollout"]["mesh_tensor"] = options.pop("rollout_mesh_tensor")
    before["learner"] |= options
    place = tmp_path / CONFIG_FILE
    files.write_json(place, before)
    assert read_config(place) == config
    with pytest.raises(InputError, match=r"differs in .*jax\.moments_dtype"):
        claim(validate({"name": "run"}), tmp_path)
    assert files.read_json(place) == before and capsys.readouterr().out == ""
    claim(config, tmp_path)
    told = f"{place}: learner.mesh_data is now jax.mesh_data; the file gets the new names of such fields\n"
    assert told in capsys.readouterr().out
    assert files.read_json(place) == plain(dataclasses.asdict(config))
    claim(config, tmp_path)
    assert "is now" not in capsys.readouterr().out


class TestCheckpointFolder:
    """A folder of checkpoints belongs to one config."""

    def config(self, folder: str, **fields) -> RunConfig:
        return validate({"name": "run", "checkpoint": {"folder": folder}, **fields})

    def test_a_run_of_another_config_is_refused(self, bucket, tmp_path):
        config = self.config(bucket)
        claim(config, tmp_path / "first", bucket)
        assert read_config(f"{bucket}/config.json") == config
        claim(config, tmp_path / "second", bucket)  # the first work directory may be lost
        other = dataclasses.replace(config, seed=1)
        with pytest.raises(InputError, match=rf"^{bucket}: .*differs in seed.*another checkpoint\.folder"):
            claim(other, tmp_path / "third", bucket)
        assert not (tmp_path / "third").exists()

    def test_no_right_to_write_is_said_before_anything_is_made(self, tmp_path, cloud):
        with pytest.raises(InputError, match="gs://none-such/run/config.json: no such object or bucket"):
            claim(self.config("gs://none-such/run"), tmp_path / "run", "gs://none-such/run")
        assert not (tmp_path / "run").exists()

    def test_where_a_killed_save_may_look_whole_it_is_refused(self):
        with pytest.raises(InputError, match=r"checkpoint\.folder = 's3://b/run': must be a folder or a gs://"):
            self.config("s3://b/run")

    def test_only_a_backend_that_can_write_there_is_given_a_bucket(self, tmp_path):
        from creason_jax.backend import Backend as Jax
        from creason_torch.backend import Backend as Torch

        config = self.config("gs://b/run")
        assert checkpoint_folder(config, Jax, tmp_path) == "gs://b/run"
        with pytest.raises(InputError, match="the torch backend writes no checkpoints to a bucket"):
            checkpoint_folder(config, Torch, tmp_path)
        assert checkpoint_folder(self.config("/mnt/run"), Torch, tmp_path) == Path("/mnt/run")
        assert checkpoint_folder(self.config(""), Torch, tmp_path) == tmp_path / "checkpoints"
