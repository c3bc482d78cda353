"""Another file in the place of one that a run was begun with is refused, and named, before anything is done with it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from shared.cohorts import synthetic
from shared.config import CheckpointConfig, ModelConfig, RunConfig, validate
from shared.errors import InputError
from shared.policy.initial import write_model
from shared.policy.tokenizer import special_tokens
from shared.preparation import inputs
from shared.preparation.inputs import Inputs
from shared.questions.record import write_questions
from shared.runs import run
from shared.runs.forecast import Memory, Need
from shared.runs.policy import check_policy_unchanged
from shared.storage import files
from tests.support.exam import exam, exam_tokenizer

pytestmark = pytest.mark.slow

SMALL = ModelConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
NOTED = inputs.INPUTS_FILE


class Stop(Exception):
    """A run is stopped where its learner would be made."""


class Backend:
    """One process, without a learner."""

    name = "fake"
    process, processes, checkpoints_in_buckets = 0, 1, True

    def need(self, *_, **__):
        return Need(memory=Memory(weights=0.0), parameters=0, checkpoint_bytes=0.0)

    def learner(self, *_, **__):
        raise Stop

    def resolved(self, config: RunConfig) -> RunConfig:
        return config

    def barrier(self) -> None:
        pass

    def any_process(self, flag: bool) -> bool:
        return flag


def start(config: RunConfig, workdir: Path) -> None:
    """A run up to the making of its learner."""
    with pytest.raises(Stop):
        run.run(config, Backend(), workdir, progress=False)


def refused(config: RunConfig, workdir: Path) -> str:
    before = (workdir / NOTED).read_bytes() if (workdir / NOTED).is_file() else None
    with pytest.raises(InputError) as caught:
        run.run(config, Backend(), workdir, progress=False)
    message = str(caught.value)
    assert "not what this run was begun with" in message and "\n" not in message, message
    assert before is None or (workdir / NOTED).read_bytes() == before
    return message


def config_of(**sections: Any) -> RunConfig:
    rollout = {"max_prompt_tokens": 200, "max_new_tokens": 4}
    return validate({"name": "run", "grpo": {"steps": 2}, "rollout": rollout, **sections})


@pytest.fixture
def given(tmp_path) -> dict[str, Path]:
    """Question files and a model directory."""
    model = tmp_path / "given" / "model"
    tokens = special_tokens(exam_tokenizer(model), model)
    write_model(SMALL, model, vocab_size=tokens.vocab_size, bos=tokens.bos, eos=tokens.eos, pad=tokens.pad, seed=1)
    found = {"model": model}
    for name, first in (("train", 0), ("valid", 10)):
        found[name] = tmp_path / "given" / f"{name}.parquet"
        write_questions(found[name], exam(4, start=first))
    return found


@pytest.fixture
def config(given) -> RunConfig:
    data = {name: str(given[name]) for name in ("train", "valid")}
    return config_of(data=data, model={"path": str(given["model"])})


def replaced(path: Path, content: bytes) -> None:
    """Other content under the same name, of the same age."""
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    replaced(path, bytes(content))


def test_digests_are_those_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"a" * 1_000_000)  # both are examples of FIPS 180-2
    assert inputs.of_files({"x": tmp_path / "abc", "y": tmp_path / "a"}) == {
        "x": {"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "bytes": 3},
        "y": {"sha256": "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", "bytes": 1_000_000},
    }


def test_a_run_goes_on_with_the_files_that_it_was_begun_with(config, given, tmp_path):
    start(config, tmp_path / "run")
    noted = files.read_json(tmp_path / "run" / NOTED)["inputs"]
    assert noted["data.train"].keys() == {"train.parquet"} and noted["data.valid"].keys() == {"valid.parquet"}
    assert noted["model.path"].keys() == {path.name for path in given["model"].iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= noted["model.path"].keys()
    before = (tmp_path / "run" / NOTED).read_bytes()
    start(config, tmp_path / "run")
    assert (tmp_path / "run" / NOTED).read_bytes() == before
    for path in given["model"].iterdir():  # the same files, copied anew
        path.write_bytes(path.read_bytes())
    start(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["train", "valid"])
def test_other_questions_under_the_same_name_are_refused(config, given, tmp_path, name):
    start(config, tmp_path / "run")
    write_questions(given[name], exam(4, start=20))
    assert refused(config, tmp_path / "run").startswith(f"{given[name]}: ")


CHANGES = {
    "model.safetensors": one_bit,
    "config.json": lambda path: replaced(path, path.read_bytes().replace(b"10000.0", b"10001.0")),
    "tokenizer.json": lambda path: replaced(path, path.read_bytes() + b" "),
    "chat_template.jinja": lambda path: path.write_text("{{ messages }}"),
    "tokenizer_config.json": lambda path: replaced(path, path.read_bytes().replace(b"<|pad|>", b"<|end|>")),
    "generation_config.json": lambda path: path.write_text('{"eos_token_id": [3, 4]}'),
    "special_tokens_map.json": lambda path: path.write_text("{}"),
}


@pytest.mark.parametrize("file", CHANGES)
def test_another_policy_under_the_same_name_is_refused(config, given, tmp_path, file):
    start(config, tmp_path / "run")
    path = given["model"] / file
    before = path.read_bytes() if path.exists() else None
    CHANGES[file](path)
    assert path.read_bytes() != before
    found = refused(config, tmp_path / "run")
    assert found.startswith(f"{path}: ") and ("it was not there" if before is None else "its content differs") in found
    # And what is exported would have that file beside the weights.
    with pytest.raises(InputError, match=f"^{path}: not what this run was begun with"):
        check_policy_unchanged(config, tmp_path / "run", given["model"])
    path.unlink() if before is None else path.write_bytes(before)
    check_policy_unchanged(config, tmp_path / "run", given["model"])
    start(config, tmp_path / "run")


def test_a_file_that_is_gone_is_named(config, given, tmp_path):
    (given["model"] / "generation_config.json").write_text("{}")
    start(config, tmp_path / "run")
    (given["model"] / "generation_config.json").unlink()
    assert "generation_config.json: not what this run was begun with (it is gone" in refused(config, tmp_path / "run")


def test_weights_in_several_files_are_all_held(config, given, tmp_path):
    model = given["model"]
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    weight_map = {name: f"part-{place % 2}.safetensors" for place, name in enumerate(tensors)}
    for part in sorted(set(weight_map.values())):
        save_file({name: tensors[name] for name, place in weight_map.items() if place == part}, model / part)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (model / "consolidated.safetensors").write_bytes(b"another form, which is not read")
    start(config, tmp_path / "run")
    (model / "consolidated.safetensors").unlink()
    start(config, tmp_path / "run")
    one_bit(model / "part-1.safetensors")
    assert refused(config, tmp_path / "run").startswith(f"{model / 'part-1.safetensors'}: ")


@pytest.fixture
def own(tmp_path, monkeypatch) -> RunConfig:
    """A run that makes questions and policy itself, from raw files."""
    monkeypatch.setattr("shared.runs.policy.train_tokenizer", lambda texts, size, folder: exam_tokenizer(folder))
    (tmp_path / "raw").mkdir()
    synthetic.write_raw(tmp_path / "raw", patients=40, seed=1)
    data = {"source": str(tmp_path / "raw"), "valid_patients": 15, "train_questions": 40, "valid_questions": 20}
    model = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    # Its records are longer than what the exam's tokenizer, which knows no words of theirs, makes fit.
    return config_of(data=data, model=model, rollout={"max_prompt_tokens": 400, "max_new_tokens": 4})


def test_what_a_run_made_itself_is_held_too(own, tmp_path):
    start(own, tmp_path / "run")
    noted = files.read_json(tmp_path / "run" / NOTED)["inputs"]
    assert noted.keys() == {"data.source", "questions", "policy"}
    start(own, tmp_path / "run")
    for name in ("data/questions/train.parquet", "data/questions/valid.parquet", "initial/config.json"):
        path = tmp_path / "run" / name
        before = path.read_bytes()
        if name.endswith(".parquet"):
            write_questions(path, exam(4))
        else:
            replaced(path, before.replace(b"10000.0", b"10001.0"))
        assert refused(own, tmp_path / "run").startswith(f"{path}: ")
        path.write_bytes(before)
    start(own, tmp_path / "run")


def test_other_raw_files_are_refused_and_the_questions_stay(own, tmp_path):
    """Without this they were made again, and the run went on with others."""
    start(own, tmp_path / "run")
    questions = tmp_path / "run" / "data" / "questions" / "train.parquet"
    before = questions.read_bytes()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()}
    for path in (tmp_path / "raw").iterdir():
        path.unlink()
    synthetic.write_raw(tmp_path / "raw", patients=40, seed=2)
    assert refused(own, tmp_path / "run").startswith(f"{tmp_path / 'raw'}/")
    assert questions.read_bytes() == before
    for name, content in kept.items():
        (tmp_path / "raw" / name).write_bytes(content)
    start(own, tmp_path / "run")


def test_a_run_of_an_earlier_version_notes_what_it_finds_and_says_so(config, given, tmp_path, capsys):
    start(config, tmp_path / "run")
    assert "noted no digests" not in capsys.readouterr().out
    (tmp_path / "run" / NOTED).unlink()
    start(config, tmp_path / "run")
    assert f"{tmp_path / 'run'}: this run was begun by a version that noted no digests" in capsys.readouterr().out
    one_bit(given["model"] / "model.safetensors")
    refused(config, tmp_path / "run")


def test_a_file_of_digests_that_is_none_is_refused(config, tmp_path):
    start(config, tmp_path / "run")
    (tmp_path / "run" / NOTED).write_text('{"format": 9}')
    with pytest.raises(InputError, match="inputs.json: not the digests of a run's inputs; remove it"):
        run.run(config, Backend(), tmp_path / "run", progress=False)


def test_a_lost_work_directory_does_not_lose_what_was_noted(given, tmp_path):
    data = {name: str(given[name]) for name in ("train", "valid")}
    kept = {"checkpoint": {"folder": str(tmp_path / "kept")}}
    config = config_of(data=data, model={"path": str(given["model"])}, **kept)
    start(config, tmp_path / "first")
    start(config, tmp_path / "second")
    write_questions(given["train"], exam(4, start=20))
    found = refused(config, tmp_path / "third")
    assert found.startswith(f"{given['train']}: ") and str(tmp_path / "kept" / NOTED) in found


class TestInABucket:
    """What holds of files holds of objects."""

    @pytest.fixture(params=["gs", "memory"])
    def there(self, request, tmp_path, given):
        """Questions and model there: in Google's form, which says what an object's checksum is, and in one that says nothing."""
        base = f"memory://{tmp_path.name}" if request.param == "memory" else request.getfixturevalue("bucket")
        filesystem = fsspec.core.url_to_fs(base)[0]
        for name in ("train.parquet", "valid.parquet", *(f"model/{path.name}" for path in given["model"].iterdir())):
            filesystem.pipe_file(f"{base}/{name}", (tmp_path / "given" / name).read_bytes())
        return base, filesystem

    @pytest.fixture
    def config(self, there):
        data = {name: f"{there[0]}/{name}.parquet" for name in ("train", "valid")}
        return config_of(data=data, model={"path": f"{there[0]}/model"})

    def test_the_same_objects(self, config, there, tmp_path, given):
        start(config, tmp_path / "run")
        start(config, tmp_path / "run")
        noted = files.read_json(tmp_path / "run" / NOTED)["inputs"]
        for name, digest in noted["model.path"].items():
            assert digest["sha256"] == inputs.of_files({"": given["model"] / name})[""]["sha256"]
        # Written anew: other marks, perhaps, but the same content.
        there[1].pipe_file(f"{there[0]}/model/config.json", (given["model"] / "config.json").read_bytes())
        start(config, tmp_path / "run")

    def test_other_questions(self, config, there, tmp_path, given):
        start(config, tmp_path / "run")
        there[1].pipe_file(f"{there[0]}/train.parquet", given["valid"].read_bytes())
        assert refused(config, tmp_path / "run").startswith(f"{there[0]}/train.parquet: ")

    @pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
    def test_another_model_though_the_copy_is_as_it_was(self, config, there, tmp_path, given, file):
        start(config, tmp_path / "run")
        one_bit(given["model"] / file)
        there[1].pipe_file(f"{there[0]}/model/{file}", (given["model"] / file).read_bytes())
        assert refused(config, tmp_path / "run").startswith(f"{there[0]}/model/{file}: ")

    def test_an_object_more_or_less(self, config, there, tmp_path):
        start(config, tmp_path / "run")
        there[1].pipe_file(f"{there[0]}/model/generation_config.json", b"{}")
        assert "/model/generation_config.json: not what this run was begun with (it was not there" in refused(
            config, tmp_path / "run"
        )
        there[1].rm_file(f"{there[0]}/model/generation_config.json")
        there[1].rm_file(f"{there[0]}/model/tokenizer_config.json")
        assert "/model/tokenizer_config.json: not what this run was begun with (it is gone" in refused(
            config, tmp_path / "run"
        )

    def test_a_damaged_copy(self, config, tmp_path):
        start(config, tmp_path / "run")
        one_bit(tmp_path / "run" / "model" / "model.safetensors")
        assert refused(config, tmp_path / "run").startswith(f"{tmp_path / 'run' / 'model' / 'model.safetensors'}: ")

    def test_another_model_is_not_left_in_a_new_work_directory(self, config, there, tmp_path, given):
        config = dataclasses.replace(config, checkpoint=CheckpointConfig(folder=str(tmp_path / "kept")))
        start(config, tmp_path / "first")
        before = (given["model"] / "tokenizer.json").read_bytes()
        there[1].pipe_file(f"{there[0]}/model/tokenizer.json", before + b" ")
        assert refused(config, tmp_path / "second").startswith(f"{there[0]}/model/tokenizer.json: ")
        there[1].pipe_file(f"{there[0]}/model/tokenizer.json", before)
        start(config, tmp_path / "second")

    def test_a_copy_that_was_there_before_anything_was_noted(self, config, there, tmp_path, given):
        """Nobody knows of which objects it is: they are read once."""
        start(config, tmp_path / "run")
        (tmp_path / "run" / NOTED).unlink()
        one_bit(given["model"] / "model.safetensors")
        there[1].pipe_file(f"{there[0]}/model/model.safetensors", (given["model"] / "model.safetensors").read_bytes())
        assert refused(config, tmp_path / "run").startswith(f"{there[0]}/model/model.safetensors: ")


class Two(Backend):
    """One of two processes; `other` is what the second one has."""

    processes = 2

    def __init__(self, other: list[bytes] | None = None):
        self.asked: list[bytes] = []
        self.other = other

    def same(self, value: bytes) -> bool:
        self.asked.append(value)
        return self.other is None or self.other[len(self.asked) - 1] == value


def test_processes_on_hosts_with_different_files_are_told(given, tmp_path, monkeypatch):
    def asked(backend: Two) -> list[bytes]:
        inputs.check_alike(backend, given["model"], (given["train"], given["valid"]))
        return backend.asked

    found = asked(Two())
    assert len(found) == 2 and asked(Two(found)) == found
    one_bit(given["model"] / "model.safetensors")
    with pytest.raises(InputError, match=f"^{given['model']}: not the same for all processes"):
        asked(Two(found))
    one_bit(given["model"] / "model.safetensors")
    assert asked(Two(found)) == found
    write_questions(given["valid"], exam(5))
    with pytest.raises(InputError, match=f"^{given['train']}, {given['valid']}: not the same for all processes"):
        asked(Two(found))


def test_an_outline_of_large_weights_sees_another_model_though_it_reads_a_part(given, monkeypatch):
    monkeypatch.setattr(inputs, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 64)
    weights = given["model"] / "model.safetensors"
    found = inputs.outline(given["model"])
    content = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    assert len(content) > 256 * 64  # not all of it is read
    header = 8 + int.from_bytes(content[:8].tobytes(), "little")
    content[header:] += 1  # other values everywhere
    weights.write_bytes(content.tobytes())
    assert inputs.outline(given["model"]) != found


def test_what_is_noted_is_whole_or_absent(tmp_path):
    noted = Inputs(tmp_path)
    (tmp_path / "a").write_text("a")
    noted.hold("a", tmp_path, inputs.of_files({"a": tmp_path / "a"}))
    assert [path.name for path in tmp_path.iterdir() if path.name != "a"] == [NOTED]
    again = Inputs(tmp_path)
    assert again.noted("a") == noted.noted("a") and again.noted("b") == {}
