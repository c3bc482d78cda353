"""Patients who withdrew: nothing prepared knows them, and nothing says who they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from shared.cohorts import custom
from shared.config import DataConfig
from shared.errors import InputError
from shared.preparation.inputs import Inputs, hold_data
from shared.preparation.prepare import prepare
from shared.preparation.summary import summary
from shared.preparation.verification import verify
from shared.storage import files
from tests.support.custom_tables import EXAMPLE, edit

GONE = ["X003", "X007", "X011"]


@pytest.fixture
def source(tmp_path):
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "source"))
    for row, name in ((5, "gone-three"), (9, "gone-seven")):
        edit(folder / "data.csv", row, "note", name)
        edit(folder / "data.csv", row, "hospital", "Gone")
    edit(folder / "data.csv", 13, "age", "withdrawn")  # a cell that would not fit
    return folder


def listed(folder, ids, name="withdrawn.csv", column="patient_id"):
    (folder.parent / name).write_text("\n".join([column, *ids]) + "\n")
    return str(folder.parent / name)


def prepared(source, out, exclude="", **how):
    data = DataConfig(
        cohort="custom", source=str(source), exclude=exclude, valid_patients=20, train_questions=60, valid_questions=20
    )
    prepare(data, out, seed=1, progress=False, salt="s", **how)
    return out


def test_the_withdrawn_vanish_from_everything_prepared(source, tmp_path):
    without = Path(shutil.copytree(source, tmp_path / "without"))
    rows = (source / "data.csv").read_text().splitlines()
    (without / "data.csv").write_text("\n".join(row for row in rows if row.split(",")[0] not in GONE) + "\n")
    out = prepared(source, tmp_path / "out", listed(source, [*GONE, "Z1", ""]))
    other = prepared(without, tmp_path / "other")
    registry = [f"registry/{name}" for name in ("train", "valid", "statistics", "leakage", "relations")]
    for name in (*registry, "questions/train", "questions/valid", "questions/patients"):
        found, expected = pd.read_parquet(out / f"{name}.parquet"), pd.read_parquet(other / f"{name}.parquet")
        pd.testing.assert_frame_equal(found, expected)  # as if they had never been in the table
    for path in (path for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not any(text.encode() in content for text in (*GONE, "gone-three", "gone-seven", "Gone", "Z1")), path
    assert verify(out)


def test_what_is_left_out_is_counted_said_and_recorded(source, tmp_path):
    exclude = listed(source, [*GONE, "Z1"])
    out = prepared(source, tmp_path / "out", exclude)
    said = summary(out)
    assert "3 of 60 patients are left out, as withdrawn.csv asks" in said
    assert "1 of 4 ids in withdrawn.csv are not in the table (its rows 5)" in said
    record = files.read_json(out / "questions" / "provenance.json")
    assert record["left_out"] == 3 and len(record["exclude"]) == 32 and "exclude" not in record["options"]
    before = (out / "questions" / "train.parquet").stat().st_mtime_ns
    prepared(source, out, exclude)
    assert (out / "questions" / "train.parquet").stat().st_mtime_ns == before  # done already
    prepared(source, out, listed(source, [*GONE, "X015"]), overwrite=True)
    assert files.read_json(out / "questions" / "provenance.json")["left_out"] == 4


def test_ids_match_whatever_their_cells_hold(tmp_path):
    (tmp_path / "data.csv").write_text("id,x\n" + "".join(f"{100 + row},{row}\n" for row in range(6)))
    (tmp_path / "codebook.csv").write_text("column,display_name,section,kind\nid,,,id\nx,,,number\n")
    pd.DataFrame({"id": [101.0, 103.0]}).to_excel(tmp_path / "gone.xlsx", index=False)
    raw = custom.read(tmp_path, exclude=str(tmp_path / "gone.xlsx"))
    assert list(raw.ids) == ["100", "102", "104", "105"] and raw.left_out == 2


@pytest.mark.parametrize(
    ("ids", "column", "words"),
    [
        (["Z1", "Z2"], "patient_id", "none of its 2 ids is in column patient_id of .*data.csv; is it the right list"),
        (
            ["X003", "x007"],
            "patient_id",
            "row 3: this id is not in the table, but one is that differs only in upper and lower case",
        ),
        (["X003"], "id", "its first row must name the column of ids as the table does, patient_id; it has id"),
        ([], "patient_id", "lists no id; leave --exclude out"),
        ([f"X{row:03}" for row in range(60)], "patient_id", "every patient is left out"),
        ([f"X{row:03}" for row in range(59)], "patient_id", "holds one patient only who is not left out"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(source, ids, column, words):
    with pytest.raises(InputError, match=words) as caught:
        custom.read(source, exclude=listed(source, ids, column=column))
    assert not any(identifier in str(caught.value) for identifier in ids) and "\n" not in str(caught.value)


def test_a_run_goes_on_with_the_list_that_it_was_begun_with(source, tmp_path):
    data = DataConfig(cohort="custom", source=str(source), exclude=listed(source, GONE))
    (tmp_path / "run").mkdir()
    hold_data(data, Inputs(tmp_path / "run"))
    hold_data(data, Inputs(tmp_path / "run"))
    listed(source, GONE[:2])
    with pytest.raises(InputError, match=r"withdrawn\.csv"):
        hold_data(data, Inputs(tmp_path / "run"))
    with pytest.raises(InputError, match="nobody can be left out of questions that are made already"):
        DataConfig(cohort="custom", source=str(source), exclude="a.csv", train="t.parquet", valid="v.parquet")


def test_no_list(source, tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file; it should hold the ids of patients to leave out"):
        prepared(source, tmp_path / "out", str(tmp_path / "none.csv"))
    assert not (tmp_path / "out" / "questions").exists()
