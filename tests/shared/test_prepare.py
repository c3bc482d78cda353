"""Preparing a folder, storing a registry, and the command line."""

import json
import stat
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from shared import preparation
from shared.config import DataConfig
from shared.errors import InputError
from shared.questions import read_questions
from shared.registry import store

ROOT = Path(__file__).resolve().parents[2]
SMALL = DataConfig(patients=160, valid_patients=60, train_questions=120, valid_questions=40, context_features=8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    preparation.prepare(SMALL, out, seed=3, progress=False)
    return out


def launch(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.prepare", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_what_is_written(prepared):
    train, valid = (read_questions(prepared / "questions" / f"{split}.parquet") for split in ("train", "valid"))
    assert len(train) == 120 and len(valid) == 40
    assert not {q.patient for q in train} & {q.patient for q in valid}
    assert all(q.cohort == "synthetic" and 0.2 <= q.bayes_accuracy <= 1 for q in train + valid)
    registry = store.load(prepared / "registry")
    assert len(registry.train) == 100 and len(registry.valid) == 60
    provenance = json.loads((prepared / "registry" / "provenance.json").read_text())
    assert provenance["salt"] == "synthetic" and set(provenance["source"]) == {
        "data.xlsx", "metadata.xlsx", "kor_to_eng.json",
    }  # fmt: skip
    assert "scikit-learn" in provenance["versions"]
    summary = preparation.summary(prepared)
    assert "100 train, 60 valid" in summary and len(summary.splitlines()) < 30


def test_files_are_their_owners_alone(prepared):
    for folder in ("raw", "registry", "questions"):
        for path in (prepared / folder, *(prepared / folder).iterdir()):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert not list(prepared.rglob("*.partial")) and not list(prepared.rglob("*.pkl"))


def test_nothing_is_done_twice_unless_something_changed(tmp_path):
    quick = DataConfig(patients=90, valid_patients=30, train_questions=30, valid_questions=10)
    questions = tmp_path / "questions" / "train.parquet"
    preparation.prepare(quick, tmp_path, seed=1, progress=False)
    before = (questions.stat().st_mtime_ns, read_questions(questions))
    preparation.prepare(quick, tmp_path, seed=1, progress=False)
    assert questions.stat().st_mtime_ns == before[0]
    preparation.prepare(quick, tmp_path, seed=2, progress=False)
    assert read_questions(questions) != before[1]
    # From the raw files of the first run: another source, so another salt, which is then kept.
    data = DataConfig(cohort="sepsis", source=str(tmp_path / "raw"), valid_patients=30, train_questions=30,
                      valid_questions=10)  # fmt: skip
    real = tmp_path / "real"
    preparation.prepare(data, real, seed=2, progress=False)
    salt = json.loads((real / "registry" / "provenance.json").read_text())["salt"]
    assert len(salt) == 32 and salt != "synthetic"
    stamp = (real / "questions" / "train.parquet").stat().st_mtime_ns
    preparation.prepare(data, real, seed=2, progress=False)
    assert (real / "questions" / "train.parquet").stat().st_mtime_ns == stamp
    (tmp_path / "raw" / "kor_to_eng.json").write_text(json.dumps({"남": "Man", "여": "Woman"}))
    preparation.prepare(data, real, seed=2, progress=False)
    assert (real / "questions" / "train.parquet").stat().st_mtime_ns > stamp
    assert json.loads((real / "registry" / "provenance.json").read_text())["salt"] == salt


def test_a_stored_registry_comes_back(prepared, tmp_path):
    registry = store.load(prepared / "registry")
    store.save(registry, tmp_path / "copy")
    again = store.load(tmp_path / "copy")
    pd.testing.assert_frame_equal(registry.train, again.train)
    pd.testing.assert_frame_equal(registry.leakage, again.leakage)
    assert registry.features == again.features and registry.cohort == again.cohort
    kinds = {feature.kind: again.train[feature.name] for feature in again.features}
    assert kinds["number"].dtype == "float64" and str(kinds["datetime"].dtype).startswith("datetime64")
    assert {type(value) for value in kinds["category"]} <= {str, type(None)}
    assert all(isinstance(patient, str) for patient in again.train.index)


@pytest.mark.parametrize(
    "name",
    ["train.parquet", "valid.parquet", "features.json", "statistics.parquet", "leakage.parquet", "provenance.json"],
)
@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_a_damaged_registry_is_named(prepared, tmp_path, name, harm):
    folder = tmp_path / "registry"
    store.save(store.load(prepared / "registry"), folder)
    path = folder / name
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=name):
        store.load(folder)


def test_no_registry(tmp_path):
    with pytest.raises(InputError, match=r"launch\.prepare"):
        store.load(tmp_path / "nowhere")


def test_the_program(tmp_path):
    out = tmp_path / "out"
    result = launch("--cohort=synthetic", f"--out={out}", "--patients=60", "--valid_patients=20", "--seed=7",
                    "--train_questions=20", "--valid_questions=10", "--num_choices=3", "--noprogress")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "40 train, 20 valid" in result.stdout and len(result.stdout.splitlines()) < 40
    assert max(len(q.choices) for q in read_questions(out / "questions" / "train.parquet")) == 3
    assert "SYN-" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--out=X", "--nope=1"], "nope"),
        (["--out=X", "--cohort=moon"], "moon"),
        (["--out=X", "surplus"], "surplus"),
        ([], "out"),
        (["--out=X", "--cohort=sepsis", "--source=nowhere"], "nowhere"),
        (["--out=X", "--patients=10", "--valid_patients=10"], "valid_patients"),
    ],
)
def test_a_wrong_call_ends_with_one_line_and_code_2(tmp_path, arguments, words):
    result = launch(*(argument.replace("X", str(tmp_path / "x")) for argument in arguments))
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and words in result.stderr and not result.stdout
    assert not (tmp_path / "x" / "questions").exists()


def test_help():
    result = launch("--help")
    assert result.returncode == 0 and "--mi_cutoff" in result.stdout and "--context_features" in result.stdout


def test_questions_are_made_fast(prepared):
    from shared.tasks.denoising import questions

    registry = store.load(prepared / "registry")
    start = time.process_time()
    made = questions(registry, "train", 2000, seed=1)
    assert len(made) / (time.process_time() - start) > 500
