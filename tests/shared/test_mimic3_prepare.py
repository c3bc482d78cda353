"""MIMIC-III from files to questions: what is written, what is kept between runs, and what a killed run leaves."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import mimic3_tables
from shared.cohorts.mimic3 import final, fixes
from shared.cohorts.mimic3.options import Mimic3Config
from shared.cohorts.mimic3.registry import CSV, DIED
from shared.cohorts.mimic3.stages import Stages
from shared.config import DataConfig
from shared.errors import InputError
from shared.preparation import prepare as preparation
from shared.preparation.prepare import prepare
from shared.preparation.summary import summary
from shared.preparation.verification import check_sources, verify
from shared.questions.record import read_questions
from shared.runs.showing import Selection
from tests.support.commands import apart, here

pytestmark = pytest.mark.slow

STAYS = 30
SPLITS = ("train", "valid")
HELD_OUT = 5


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    mimic3_tables.write(folder, STAYS, seed=2)
    return folder


def run(source, out, task="mortality", *, salt="s", overwrite=False, **own):
    data = DataConfig(cohort="mimic3", task=task, source=str(source), valid_patients=HELD_OUT, valid_questions=10_000,
                      mimic3=Mimic3Config(**{"threads": 1} | own))  # fmt: skip
    prepare(data, out, seed=1, progress=False, salt=salt, overwrite=overwrite)


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    """Questions about mortality, with the cache beside them."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    run(source, out)
    return out


@pytest.fixture(scope="module")
def measured(source, prepared, tmp_path_factory):
    """Questions about measurements, from a copy of that cache."""
    out = tmp_path_factory.mktemp("measured") / "out"
    run(source, out, "measurement", cache=str(shutil.copytree(prepared / "cache", out.parent / "cache")))
    return out


def cache_copy(prepared, tmp_path):
    return str(shutil.copytree(prepared / "cache", tmp_path / "cache"))


def results(out):
    timeline = pd.read_parquet(out / "registry" / "timeline.parquet")
    return timeline, *(read_questions(out / "questions" / f"{split}.parquet") for split in SPLITS)


def record(out, folder):
    return json.loads((out / folder / "provenance.json").read_text())


def assert_same(one, other):
    for left, right in zip(results(one), results(other), strict=True):
        if isinstance(left, pd.DataFrame):
            pd.testing.assert_frame_equal(left, right, check_exact=True)
        else:
            assert left == right


@pytest.mark.parametrize("task", ["measurement", "mortality"])
def test_what_is_written(prepared, measured, task):
    out = prepared if task == "mortality" else measured
    timeline, train, valid = results(out)
    assert list(timeline.columns) == [*final.COLUMNS, DIED]
    assert timeline["m:icustayid"].nunique() > STAYS / 2
    assert {q.task for q in train + valid} == {task} and all(q.cohort == "mimic3" for q in train + valid)
    assert len({q.id for q in train + valid}) == len(train + valid)
    assert not {q.patient for q in train} & {q.patient for q in valid} and train and valid
    made, read = record(out, "questions"), record(out, "registry")
    assert made["options"]["mimic3.ties"] == "stable" and made["options"]["mimic3.stays"] == 1_000
    assert set(made["shortcuts"]) == set(SPLITS) and "duckdb" in read["reading"]["versions"]
    assert read["reading"]["stages"]["ce"]["rows"] > 10_000 and read["reading"]["counts"]["rows"] == len(timeline)
    patients = pd.read_parquet(out / "questions" / "patients.parquet")
    assert not patients["patient"].duplicated().any() and (patients["split"] == "valid").sum() == HELD_OUT
    assert set(patients["sex"]) <= {"Male", "Female"} and "unknown" not in set(patients["age_band"])
    screen = summary(out)
    for name in ("ce", "first_windows", "timeline"):
        assert name in screen
    assert f"{STAYS} patients only" in screen  # as small as the public demo


def test_what_is_verified(source, prepared, measured):
    for out in (prepared, measured):
        found = verify(out)
        assert any("questions come out again" in line for line in found)
        assert check_sources(out, source) == "12 raw files are those that it was made from"
    assert not {"rules", "versions"} & {line.split()[-1] for line in found}


def test_files_are_their_owners_alone(prepared):
    for path in prepared.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert not list(prepared.rglob("*.partial")) and not (prepared / "cache" / "charted.parquet").exists()


def test_no_identifier_is_in_a_question(prepared, measured):
    for out in (prepared, measured):
        timeline, *questions = results(out)
        stays = {str(int(stay)) for stay in timeline["m:icustayid"].unique()}
        for question in (q for part in questions for q in part):
            assert question.patient not in {*stays, *timeline.index}
            assert not any(stay in question.id for stay in stays)


def test_the_cohort_must_suit_the_task():
    with pytest.raises(InputError, match="task = 'denoising': needs cohort .* of 'mimic3' are measurement, mortality"):
        DataConfig(cohort="mimic3", source="x")
    with pytest.raises(InputError, match="task = 'mortality': needs cohort = 'mimic3'; the tasks of 'stroke' are"):
        DataConfig(cohort="stroke", task="mortality", source="x")
    with pytest.raises(InputError, match="compat = 'paper': the questions of mimic3 are the original's"):
        DataConfig(cohort="mimic3", task="mortality", source="x", compat="paper")
    with pytest.raises(InputError, match=r"mimic3\.fix = 'all': goes with cohort = 'mimic3' only"):
        DataConfig(mimic3=Mimic3Config(fix="all"))


def test_tables_in_the_shape_of_the_public_demo(source, prepared, tmp_path):
    """Not packed, lower-case names, a number for each row, columns that nobody reads, a table that nobody reads."""
    demo = tmp_path / "demo"
    demo.mkdir()
    for path in source.glob("*.csv.gz"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table.rename(columns=str.lower).drop(columns="row_id", errors="ignore")
        table.insert(0, "row_id", [str(number) for number in range(1, len(table) + 1)])
        table["error"] = "not read, so it may hold anything"
        table.to_csv(demo / path.name.removesuffix(".gz"), index=False, lineterminator="\r\n")
    (demo / "NOTEEVENTS.csv").write_text("row_id\n")
    run(demo, tmp_path / "out")
    assert "as in the public demo: too few for results" in summary(tmp_path / "out")
    assert_same(prepared, tmp_path / "out")


def test_the_order_of_work_does_not_matter(source, prepared, tmp_path, monkeypatch):
    """Other batches of stays, more threads, other blocks of rows: the same cohort."""
    monkeypatch.setattr("shared.cohorts.mimic3.reading.Extracts.batches", _by_sevens)
    run(source, tmp_path / "out", threads=2)
    assert_same(prepared, tmp_path / "out")


def _by_sevens(self, stays):
    for start in range(0, len(stays), 7):
        yield stays.iloc[start : start + 7].reset_index(drop=True)


def changed_since(times):
    return {path.name for path, stamp in times.items() if not path.is_file() or path.stat().st_mtime_ns != stamp}


def test_nothing_is_done_twice_and_only_what_changed_again(source, prepared, tmp_path):
    out = shutil.copytree(prepared, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert times
    run(source, out)
    assert not changed_since(times)
    with pytest.raises(InputError, match=r"made otherwise \(mimic3\.stays was 1000, now 3\)"):
        run(source, out, stays=3)
    assert not changed_since(times)
    (out / "registry" / CSV).write_text("of another cohort")
    run(source, out, stays=3, overwrite=True)
    _, train, valid = results(out)
    assert len(train + valid) == 3 and not (out / "registry" / CSV).exists()
    kept = {path: stamp for path, stamp in times.items() if path.parent.name == "cache"}
    assert len(kept) > 15 and not changed_since(kept)
    run(source, out, ties="introsort", stays=3, overwrite=True)
    changed = changed_since(times)
    assert not changed & {"ce.parquet", "demog.parquet", "first_windows.parquet", "candidates.parquet"}
    assert {"stays.parquet", "cohort.parquet", "timeline.parquet"} <= changed


def test_a_changed_file_is_read_again(source, prepared, tmp_path):
    out, changed = shutil.copytree(prepared, tmp_path / "out"), shutil.copytree(source, tmp_path / "source")
    mimic3_tables.write(changed, STAYS - 4, seed=5)
    with pytest.raises(InputError, match=r"these files differ: .*ICUSTAYS\.csv\.gz"):
        check_sources(out, changed)
    with pytest.raises(InputError, match=r"made otherwise \(ADMISSIONS\.csv\.gz differs; .*ICUSTAYS\.csv\.gz differs"):
        run(changed, out)
    run(changed, out, overwrite=True)
    assert record(out, "registry")["reading"]["counts"]["before"]["ICU stays"] == STAYS - 4


def test_what_an_earlier_version_left_is_not_touched(source, tmp_path):
    for name in ("cohort.parquet", "questions/mortality.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of an earlier version")
    for call in (lambda: run(source, tmp_path, overwrite=True), lambda: verify(tmp_path)):
        with pytest.raises(InputError, match="holds what an earlier version prepared of MIMIC-III"):
            call()
    assert (tmp_path / "questions" / "mortality.parquet").is_file()


STAGES = ("charted", "demog", "ce", "mechvent", "candidates", "first_windows", "stays", "second_windows", "cohort")


class Stopped(BaseException):
    """What stands for a signal."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_stopped_at_any_stage_goes_on(source, prepared, tmp_path, monkeypatch, stage, moment):
    whole = Stages.run

    def stopped(self, name, key, write, **options):
        def stopping(path, bar):
            if moment == "after":
                write(path, bar)  # its file is there, its note is not
            raise Stopped

        return whole(self, name, key, stopping if name == stage else write, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Stages, "run", stopped)
        run(source, out)
    assert os.listdir(out) == ["cache"]
    run(source, out)
    assert_same(prepared, out)


@pytest.mark.parametrize("part", ["build", "write_questions", "write_patients"])
def test_a_run_stopped_after_the_reading_leaves_the_cache_alone(source, prepared, tmp_path, monkeypatch, part):
    def stop(*_, **__):
        raise Stopped

    out, cache = tmp_path / "out", cache_copy(prepared, tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(preparation, part, stop)
        run(source, out, cache=cache)
    assert not out.exists()
    with pytest.raises(InputError, match="nothing was prepared there"):
        verify(out)
    run(source, out, cache=cache)
    assert_same(prepared, out)


@pytest.mark.parametrize("when", ["cache/ce.parquet", "cache/stays.parquet", "cache/cohort.parquet"])
def test_a_killed_process_leaves_nothing_that_harms(source, prepared, tmp_path, when):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.prepare", "--cohort=mimic3", "--task=mortality", f"--source={source}", f"--out={out}",
         "--salt=s", f"--valid_patients={HELD_OUT}", "--seed=1"],
        cwd=Path(__file__).resolve().parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while not (out / when).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(source, out)
    assert_same(prepared, out)
    assert not list(out.rglob("*.partial")) and not (out / "cache" / "spill").exists()


def test_without_a_salt_pseudonyms_are_random_and_kept(source, prepared, tmp_path):
    cache = cache_copy(prepared, tmp_path)

    def patients(out, **options):
        run(source, tmp_path / out, salt=None, cache=cache, **options)
        return {q.patient for questions in results(tmp_path / out)[1:] for q in questions}

    first = patients("a")
    assert patients("a") == first
    assert not patients("a", stays=10, overwrite=True) & first and not patients("b") & first


def test_no_stay_left_is_said(source, tmp_path):
    empty = shutil.copytree(source, tmp_path / "source")
    for name in ("PRESCRIPTIONS", "CHARTEVENTS", "OUTPUTEVENTS"):
        path = empty / f"{name}.csv.gz"
        frame = pd.read_csv(path)
        frame.head(0).to_csv(path, index=False)
    with pytest.raises(
        InputError, match=r"source: of its 30 ICU stays none is left \(30 without suspected infection\)$"
    ):
        run(empty, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["cache"]


@pytest.mark.parametrize("name", fixes.FIXES)
def test_each_correction_can_be_switched_on_alone(source, prepared, tmp_path, name):
    out = tmp_path / "out"
    run(source, out, cache=cache_copy(prepared, tmp_path), fix=name)
    assert record(out, "questions")["options"]["mimic3.fix"] == name
    ours, plain = (results(folder)[0] for folder in (out, prepared))
    if name == "temperature":  # all temperatures of these tables are in Fahrenheit: lost without the correction
        assert plain["o:Temp_C"].eq(0).all() and ours["o:Temp_C"].between(30, 45).all()
    np.testing.assert_array_equal(ours["m:icustayid"].isin(plain["m:icustayid"]), True)


def test_the_program(source, measured, tmp_path):
    out = tmp_path / "out"
    ended = apart("prepare", "--cohort=mimic3", "--task=measurement", f"--source={source}", f"--out={out}", "--salt=s",
                  f"--valid_patients={HELD_OUT}", "--valid_questions=10000", "--seed=1", "--progress", "--memory_limit=1GB",
                  "--threads=1", "--csv", "--show")  # fmt: skip
    assert ended.code == 0, ended.err
    timeline, train, valid = results(out)
    assert re.search(rf"^24 hours ahead +{len(train):,} +{len(valid):,}$", ended.out, re.M)
    (shown,) = Selection(count=1).of(train)
    assert (
        "".join(shown.context.split()) in "".join(ended.out.split()) and f"right answer: {shown.answer}. " in ended.out
    )
    assert ended.out.endswith(f"creason show --questions={out}/questions/train.parquet shows questions in full\n")
    assert "ICU stays" in ended.out and "100%" in ended.err
    assert_same(measured, out)
    written = pd.read_csv(out / "registry" / CSV)
    pd.testing.assert_frame_equal(written, timeline[list(final.COLUMNS)].reset_index(drop=True), check_dtype=False)
    assert stat.S_IMODE((out / "registry" / CSV).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "source = '': the folder with the raw files of 'mimic3' is needed"),
        (["--source=nowhere"], "nowhere"),
        (["--source=.", "--patients=5"], "patients = 5: only a synthetic registry"),
        (["--source=.", "--fix=everything"], "everything"),
        (["--source=.", "--ties=coin"], "coin"),
        (["--source=.", "--memory_limit=lots"], "lots"),
        (["--source=.", "--memory_limit=10MB"], "too little"),
        (["--source=.", "--stays=0"], "stays = 0"),
        (["--source=.", "--task=denoising"], "the tasks of 'mimic3' are measurement, mortality"),
        (["--verify", "--fix=all"], "--fix: --verify does not read it"),
        (["--cohort=sepsis", "--task=denoising", "--source=.", "--fix=all"], "mimic3.fix = 'all': goes with"),
        (["--cohort=sepsis", "--task=denoising", "--source=.", "--fix="], "--fix: goes with cohort = 'mimic3' only"),
        (["--cohort=sepsis", "--task=denoising", "--source=.", "--csv"], "--csv: goes with --cohort=mimic3 only"),
    ],
)
def test_a_wrong_call_ends_with_one_line(tmp_path, monkeypatch, capfd, arguments, words):
    given = ["--cohort=mimic3", "--task=mortality"] if "--verify" not in arguments else []
    given += [f"--out={tmp_path / 'out'}", *arguments]
    assert words in here("prepare", *given, monkeypatch=monkeypatch, capfd=capfd).refusal
    assert not (tmp_path / "out" / "questions").exists() and os.listdir(tmp_path) in ([], ["out"])


def test_names_of_corrections():
    assert fixes.parse("") == frozenset()
    assert fixes.parse("all") == frozenset(fixes.FIXES)
    assert fixes.parse("temperature, no_device") == {"temperature", "no_device"}
