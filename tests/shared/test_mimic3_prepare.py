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
from shared.cohorts.mimic3.cohort import Options
from shared.cohorts.mimic3.stages import Stages
from shared.preparation import mimic3
from shared.preparation.mimic3 import Settings
from shared.questions.record import read_questions
from shared.runs.showing import Selection
from tests.support.commands import apart, here

pytestmark = pytest.mark.slow

STAYS = 30
QUESTIONS = ("measurement", "mortality")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    mimic3_tables.write(folder, STAYS, seed=2)
    return folder


def run(source, out, **settings):
    given = {"salt": "s", "threads": 1} | settings
    return mimic3.prepare(source, out, Settings(**given), progress=False)


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    summary = run(source, out, csv=True)
    return out, summary


def results(out):
    cohort = pd.read_parquet(out / "cohort.parquet")
    return cohort, *(read_questions(out / "questions" / f"{task}.parquet") for task in QUESTIONS)


def assert_same(one, other):
    for left, right in zip(results(one), results(other), strict=True):
        if isinstance(left, pd.DataFrame):
            pd.testing.assert_frame_equal(left, right, check_exact=True)
        else:
            assert left == right


def test_what_is_written(prepared):
    out, summary = prepared
    cohort, measurement, mortality = results(out)
    assert list(cohort.columns) == list(final.COLUMNS)
    assert cohort["m:icustayid"].nunique() > STAYS / 2
    pd.testing.assert_frame_equal(pd.read_csv(out / mimic3.CSV), cohort, check_dtype=False)
    assert {q.task for q in measurement} == {"measurement"} and {q.task for q in mortality} == {"mortality"}
    assert all(q.cohort == "mimic3" for q in measurement + mortality)
    assert len({q.id for q in measurement + mortality}) == len(measurement + mortality)
    record = json.loads((out / "provenance.json").read_text())
    assert record["options"]["ties"] == "stable" and "duckdb" in record["versions"]
    assert record["stages"]["ce"]["rows"] > 10_000 and record["counts"]["rows"] == len(cohort)
    for name in ("ce", "first_windows", "measurement"):
        assert name in summary
    assert f"{STAYS} patients only" in summary  # as small as the public demo


def test_files_are_their_owners_alone(prepared):
    out, _ = prepared
    for path in out.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert not list(out.rglob("*.partial")) and not (out / "cache" / "charted.parquet").exists()


def test_no_identifier_is_in_a_question(prepared):
    cohort, *questions = results(prepared[0])
    stays = {str(int(stay)) for stay in cohort["m:icustayid"].unique()}
    for question in (q for part in questions for q in part):
        assert question.patient not in stays and not any(stay in question.id for stay in stays)


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
    summary = run(demo, tmp_path / "out")
    assert "as in the public demo: too few for results" in summary
    assert_same(prepared[0], tmp_path / "out")


def test_the_order_of_work_does_not_matter(source, prepared, tmp_path, monkeypatch):
    """Other batches of stays, more threads, other blocks of rows: the same cohort."""
    monkeypatch.setattr("shared.cohorts.mimic3.reading.Extracts.batches", _by_sevens)
    run(source, tmp_path / "out", threads=2)
    assert_same(prepared[0], tmp_path / "out")


def _by_sevens(self, stays):
    for start in range(0, len(stays), 7):
        yield stays.iloc[start : start + 7].reset_index(drop=True)


def test_nothing_is_done_twice_and_only_what_changed_again(source, prepared, tmp_path):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert times
    run(source, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == times
    run(source, out, mortality_stays=3)
    changed = {path.name for path, stamp in times.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"mortality.parquet"} and len(results(out)[2]) == 3
    run(source, out, options=Options(ties="introsort"), mortality_stays=3)
    changed = {path.name for path, stamp in times.items() if path.stat().st_mtime_ns != stamp}
    assert not changed & {"ce.parquet", "demog.parquet", "first_windows.parquet", "candidates.parquet"}
    assert {"stays.parquet", "cohort.parquet", "measurement.parquet"} <= changed
    assert not (out / mimic3.CSV).exists()  # the CSV file of another cohort


def test_a_changed_file_is_read_again(source, prepared, tmp_path):
    out, changed = shutil.copytree(prepared[0], tmp_path / "out"), shutil.copytree(source, tmp_path / "source")
    mimic3_tables.write(changed, STAYS - 4, seed=5)
    run(changed, out)
    assert json.loads((out / "provenance.json").read_text())["counts"]["before"]["ICU stays"] == STAYS - 4


STAGES = ("charted", "demog", "ce", "mechvent", "candidates", "first_windows", "stays", "second_windows", "cohort",
          "measurement", "mortality")  # fmt: skip


class Stopped(BaseException):
    """What stands for a signal."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_stopped_at_any_stage_goes_on(source, prepared, tmp_path, stage, moment):
    class Stopping(Stages):
        def run(self, name, key, write, **options):
            def stopping(path, bar):
                if moment == "after":
                    write(path, bar)  # its file is there, its note is not
                raise Stopped

            return super().run(name, key, stopping if name == stage else write, **options)

    out = tmp_path / "out"
    settings = Settings(salt="s", threads=1)
    with pytest.raises(Stopped):
        mimic3.prepare(source, out, settings, progress=False, make_stages=Stopping)
    assert not (out / "provenance.json").exists()
    run(source, out)
    assert_same(prepared[0], out)


@pytest.mark.parametrize("when", ["cache/ce.parquet", "cache/stays.parquet", "questions/measurement.parquet"])
def test_a_killed_process_leaves_nothing_that_harms(source, prepared, tmp_path, when):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.prepare", "--cohort=mimic3", f"--source={source}", f"--out={out}", "--salt=s"],
        cwd=Path(__file__).resolve().parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / when).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(source, out)
    assert_same(prepared[0], out)
    assert not list(out.rglob("*.partial")) and not (out / "cache" / "spill").exists()


def test_without_a_salt_pseudonyms_are_random_and_kept(source, tmp_path):
    run(source, tmp_path / "a", salt=None)
    first = {q.patient for q in results(tmp_path / "a")[2]}
    run(source, tmp_path / "a", salt=None, mortality_stays=10)
    assert {q.patient for q in results(tmp_path / "a")[2]} < first
    run(source, tmp_path / "b", salt=None)
    assert not {q.patient for q in results(tmp_path / "b")[2]} & first


def test_no_stay_left_gives_empty_files(source, tmp_path):
    empty = shutil.copytree(source, tmp_path / "source")
    for name in ("PRESCRIPTIONS", "CHARTEVENTS", "OUTPUTEVENTS"):
        path = empty / f"{name}.csv.gz"
        frame = pd.read_csv(path)
        frame.head(0).to_csv(path, index=False)
    summary = run(empty, tmp_path / "out", csv=True)
    cohort, *questions = results(tmp_path / "out")
    assert cohort.empty and list(cohort.columns) == list(final.COLUMNS) and questions == [[], []]
    assert (tmp_path / "out" / mimic3.CSV).read_text() == ",".join(final.COLUMNS) + "\n"
    assert "0 stays, 0 rows" in summary


@pytest.mark.parametrize("name", fixes.FIXES)
def test_each_correction_can_be_switched_on_alone(source, prepared, tmp_path, name):
    out = shutil.copytree(prepared[0], tmp_path / "out")
    run(source, out, options=Options(fixes=frozenset({name})))
    assert json.loads((out / "provenance.json").read_text())["options"]["fixes"] == [name]
    ours, plain = (results(folder)[0] for folder in (out, prepared[0]))
    if name == "temperature":  # all temperatures of these tables are in Fahrenheit: lost without the correction
        assert plain["o:Temp_C"].eq(0).all() and ours["o:Temp_C"].between(30, 45).all()
    np.testing.assert_array_equal(ours["m:icustayid"].isin(plain["m:icustayid"]), True)


def test_the_program(source, prepared, tmp_path):
    out = tmp_path / "out"
    ended = apart("prepare", "--cohort=mimic3", f"--source={source}", f"--out={out}", "--salt=s", "--progress",
                  "--memory_limit=1GB", "--threads=1", "--show")  # fmt: skip
    assert ended.code == 0, ended.err
    _, measurement, mortality = results(out)
    assert re.search(rf"^24 hours ahead +{len(measurement):,} +0$", ended.out, re.M)
    (shown,) = Selection(count=1).of(measurement)
    assert (
        "".join(shown.context.split()) in "".join(ended.out.split()) and f"right answer: {shown.answer}. " in ended.out
    )
    assert ended.out.endswith(f"creason show --questions={out}/questions/measurement.parquet shows questions in full\n")
    assert re.search(rf"^outcome +0 +{len(mortality):,}$", ended.out, re.M)
    assert "ICU stays" in ended.out and "100%" in ended.err
    assert_same(prepared[0], out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--source"),
        (["--source=nowhere"], "nowhere"),
        (["--source=.", "--patients=5"], "--patients"),
        (["--source=.", "--fix=everything"], "everything"),
        (["--source=.", "--ties=coin"], "coin"),
        (["--source=.", "--memory_limit=lots"], "lots"),
        (["--source=.", "--memory_limit=10MB"], "too little"),
        (["--source=.", "--mortality_stays=0"], "mortality_stays"),
        (["--cohort=sepsis", "--source=.", "--fix=all"], "--fix"),
    ],
)
def test_a_wrong_call_ends_with_one_line(tmp_path, monkeypatch, capfd, arguments, words):
    given = ["--cohort=mimic3", f"--out={tmp_path / 'out'}", *arguments]
    assert words in here("prepare", *given, monkeypatch=monkeypatch, capfd=capfd).refusal
    assert not (tmp_path / "out" / "cohort.parquet").exists() and os.listdir(tmp_path) in ([], ["out"])


def test_names_of_corrections():
    assert fixes.parse("") == frozenset()
    assert fixes.parse("all") == frozenset(fixes.FIXES)
    assert fixes.parse("temperature, no_device") == {"temperature", "no_device"}
