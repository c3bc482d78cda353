"""Preparing a folder, storing a registry, and the command line."""

import dataclasses
import json
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from shared.cohorts import tables
from shared.config import DataConfig
from shared.errors import InputError
from shared.preparation import prepare, summary
from shared.preparation.verification import check_sources, verify
from shared.questions.record import read_questions, write_questions
from shared.registry import store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = DataConfig(patients=160, valid_patients=60, train_questions=120, valid_questions=40, context_features=8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare.prepare(SMALL, out, seed=3, progress=False)
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
    screen = summary.summary(prepared)
    assert "100 train, 60 valid" in screen and len(screen.splitlines()) < 30


def test_files_are_their_owners_alone(prepared):
    for folder in ("raw", "registry", "questions"):
        for path in (prepared / folder, *(prepared / folder).iterdir()):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert not list(prepared.rglob("*.partial")) and not list(prepared.rglob("*.pkl"))


def test_nothing_is_done_twice_unless_something_changed(tmp_path):
    quick = DataConfig(patients=90, valid_patients=30, train_questions=30, valid_questions=10)
    questions = tmp_path / "questions" / "train.parquet"
    prepare.prepare(quick, tmp_path, seed=1, progress=False)
    before = (questions.stat().st_mtime_ns, read_questions(questions))
    prepare.prepare(quick, tmp_path, seed=1, progress=False)
    assert questions.stat().st_mtime_ns == before[0]
    with pytest.raises(
        InputError, match="made otherwise \\(seed was 1, now 2\\); give another folder, or replace them"
    ):
        prepare.prepare(quick, tmp_path, seed=2, progress=False)
    assert read_questions(questions) == before[1]
    prepare.prepare(quick, tmp_path, seed=2, progress=False, overwrite=True)
    assert read_questions(questions) != before[1]
    same = questions.read_bytes()
    questions.unlink()  # what was lost comes out again
    prepare.prepare(quick, tmp_path, seed=2, progress=False)
    assert questions.read_bytes() == same
    # From the raw files of the first run: another source, so another salt, which is then kept.
    data = DataConfig(cohort="sepsis", source=str(tmp_path / "raw"), valid_patients=30, train_questions=30,
                      valid_questions=10)  # fmt: skip
    real = tmp_path / "real"
    prepare.prepare(data, real, seed=2, progress=False)
    salt = json.loads((real / "registry" / "provenance.json").read_text())["salt"]
    assert len(salt) == 32 and salt != "synthetic"
    stamp = (real / "questions" / "train.parquet").stat().st_mtime_ns
    prepare.prepare(data, real, seed=2, progress=False)
    assert (real / "questions" / "train.parquet").stat().st_mtime_ns == stamp
    (tmp_path / "raw" / "kor_to_eng.json").write_text(json.dumps({"남": "Man", "여": "Woman"}))
    with pytest.raises(InputError, match="kor_to_eng.json differs"):
        prepare.prepare(data, real, seed=2, progress=False)
    assert (real / "questions" / "train.parquet").stat().st_mtime_ns == stamp
    prepare.prepare(data, real, seed=2, progress=False, overwrite=True)
    assert (real / "questions" / "train.parquet").stat().st_mtime_ns > stamp
    assert json.loads((real / "registry" / "provenance.json").read_text())["salt"] != salt


def test_a_preparation_that_is_stopped_leaves_nothing_half(tmp_path, monkeypatch):
    quick = DataConfig(patients=90, valid_patients=30, train_questions=30, valid_questions=10)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(prepare.shortcuts, "audit", stop)
        prepare.prepare(quick, tmp_path, seed=1, progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="nothing was prepared there; prepare again"):
        verify(tmp_path)
    (tmp_path / "registry").mkdir()  # of an earlier version
    with pytest.raises(InputError, match="a preparation that did not end: there are no questions"):
        verify(tmp_path)


def test_stages_are_named_after_the_reading(tmp_path):
    said = []
    quick = DataConfig(patients=60, valid_patients=20, train_questions=20, valid_questions=10)
    prepare.prepare(quick, tmp_path, seed=1, progress=False, say=said.append)
    assert said[0] == "fitting distributions" and said[-1] == "making and auditing valid questions"


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
    with pytest.raises(InputError, match="creason prepare"):
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


def test_what_is_verified(prepared, tmp_path):
    found = verify(prepared)
    assert any("160 questions come out again" in line for line in found) and found[-1].startswith("shortcuts: ")
    copy = Path(shutil.copytree(prepared, tmp_path / "copy"))
    path = copy / "questions" / "valid.parquet"
    write_questions(path, read_questions(path)[:-1])
    with pytest.raises(InputError, match=r"valid\.parquet: is not as it was written"):
        verify(copy)
    path.unlink()
    with pytest.raises(InputError, match=r"valid\.parquet: is missing"):
        verify(copy)
    (copy / "questions" / "provenance.json").write_text("{}")
    with pytest.raises(InputError, match="not the record of prepared questions"):
        verify(copy)


def test_forged_questions_are_found_though_their_digests_fit(prepared, tmp_path):
    copy = Path(shutil.copytree(prepared, tmp_path / "copy"))
    path, record = copy / "questions" / "valid.parquet", copy / "questions" / "provenance.json"

    def forge(questions):
        write_questions(path, questions)
        known = json.loads(record.read_text())
        known["files"]["questions/valid.parquet"] = tables.digest(path)
        record.write_text(json.dumps(known))

    honest = read_questions(path)
    strangers = read_questions(copy / "questions" / "train.parquet")
    forge([*honest[:-1], strangers[0]])
    with pytest.raises(InputError, match="asks about 1 patients of another split"):
        verify(copy)
    forge([*honest[:-1], honest[0]])
    with pytest.raises(InputError, match="id comes twice"):
        verify(copy)
    turned = dataclasses.replace(honest[0], choices=honest[0].choices[::-1], answer=honest[0].answer)
    forge([turned, *honest[1:]])
    with pytest.raises(InputError, match="the registry does not give the same questions again"):
        verify(copy)


def test_provenance_holds_the_audit_and_the_leaks(prepared):
    record = json.loads((prepared / "questions" / "provenance.json").read_text())
    assert set(record["shortcuts"]) == {"train", "valid"} and record["shortcuts"]["train"]["questions"] == 120
    assert "boosted trees on the options" in record["shortcuts"]["train"]["guessers"]
    leaks = pd.read_csv(prepared / "registry" / "leaks.csv")
    assert list(leaks.columns) == ["asked", "hidden", "nats", "cutoff", "reason"]
    assert (leaks["nats"] > leaks["cutoff"]).all() and set(leaks["reason"]) <= {"nats", "half of its entropy"}
    patients = pd.read_parquet(prepared / "questions" / "patients.parquet")
    assert len(patients) == 160 and not patients["patient"].duplicated().any()
    assert set(patients["sex"]) == {"Male", "Female", "unknown"} and patients["site"].nunique() > 5


@pytest.mark.parametrize(("split", "held_out"), [("site", ""), ("time", "2023-01-01"), ("time", "")])
def test_held_out_sites_and_times(prepared, tmp_path, split, held_out):
    sizes = {} if held_out else {"valid_patients": 30}
    data = DataConfig(cohort="sepsis", source=str(prepared / "raw"), split=split, held_out=held_out, train_questions=120,
                      valid_questions=40, context_features=8, **sizes)  # fmt: skip
    prepare.prepare(data, tmp_path, seed=3, progress=False)
    registry = store.load(tmp_path / "registry")
    role = registry.provenance["roles"][split]
    if split == "site":
        assert not set(registry.train[role]) & set(registry.valid[role])
    else:
        assert registry.valid[role].min() >= registry.train[role].max()
    assert len(registry.valid) >= (30 if not held_out else 1) and len(registry.train)


def test_paper_compat_from_raw_files(prepared, tmp_path):
    data = DataConfig(cohort="sepsis", source=str(prepared / "raw"), compat="paper", balance="none", valid_patients=60,
                      train_questions=600, valid_questions=40)  # fmt: skip
    prepare.prepare(data, tmp_path, seed=3, progress=False)
    train, valid = (read_questions(tmp_path / "questions" / f"{split}.parquet") for split in ("train", "valid"))
    assert 500 < len(train) <= 600 and 0 < len(valid) <= 40 and len({q.id for q in train}) == len(train)
    record = json.loads((tmp_path / "questions" / "provenance.json").read_text())
    assert not record["shortcuts"]["train"]["passed"]  # the original's options give answers away
    assert store.load(tmp_path / "registry").provenance["options"]["fit"] == "all"
    assert any("compat = paper" in line for line in verify(tmp_path))
    with pytest.raises(InputError, match="files differ: kor_to_eng.json"):
        raw = Path(shutil.copytree(prepared / "raw", tmp_path / "raw"))
        (raw / "kor_to_eng.json").write_text("{}")
        check_sources(tmp_path, raw)
