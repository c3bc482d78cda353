"""First codebooks: what a draft guesses, what it hides, and what it asks a person to look at."""

from __future__ import annotations

import csv

import pandas as pd
import pytest

from launch.prepare import draft_codebook
from shared.cohorts import custom
from shared.cohorts.custom.codebook import read_codebook
from shared.cohorts.custom.drafting import draft, open_remarks, screen
from shared.cohorts.custom.guesses import is_later, missing_number, prefixes
from shared.cohorts.custom.table import read_data
from shared.errors import InputError
from shared.registry.build import build

ROWS = 60


def frame():
    """A table as a hospital has it: identifiers, a site, dates, sections by prefix, outcomes in between."""
    numbers = range(ROWS)
    return pd.DataFrame(
        {
            "patient_no": [f"A{n:03}" for n in numbers],
            "Name": [f"Kim {n}" for n in numbers],
            "national": [f"{800101 + n}-1{234567 + n}" for n in numbers],
            "reach": [f"p{n}@mail.org" for n in numbers],
            "call": [f"010-1234-{1000 + n}" for n in numbers],
            "who": ["ABCDEFGHIJKL"[n % 12] + "KL" for n in numbers],
            "dob": [f"19{40 + n % 50}-01-01" for n in numbers],
            "remarks": [f"seen by the doctor on day {n} and sent home" for n in numbers],
            "center": ["North"] * 20 + ["South"] * 20 + ["East"] * 20,
            "death_30d": [str(n % 2) for n in numbers],
            "admission_date": [f"2023-01-{1 + n % 28:02}" for n in numbers],
            "Age": [30 + n % 37 for n in numbers],
            "gender": ["1", "2"] * (ROWS // 2),
            "lab_na": [140 + n % 15 for n in numbers],
            "lab_k": [f"{3 + n % 17 / 10:.1f}" for n in numbers],
            "lab_crp": ["<0.3" if n % 9 == 0 else str(n / 4) for n in numbers],
            "smoker": ["Yes", "yes", "Y", "no"] * (ROWS // 4),
            "weight": [999 if n % 20 == 0 else 60 + n % 30 for n in numbers],
            "seen": [f"{1 + n % 28}.3.2021" for n in numbers],
            "icu_los": [n % 30 for n in numbers],
            "empty": [""] * ROWS,
        }
    )


@pytest.fixture
def source(tmp_path):
    frame().to_csv(tmp_path / "data.csv", index=False)
    return tmp_path


def test_a_draft_guesses_and_says_what_is_uncertain(source):
    lines = {line.column: line for line in draft(read_data(source / "data.csv"))}
    kinds = {name: line.kind for name, line in lines.items()}
    hidden = {name: lines[name].look_at for name, kind in kinds.items() if kind == "ignore"}
    assert hidden == {
        "Name": "may name a patient", "national": "looks like national ids", "reach": "looks like e-mail addresses",
        "call": "looks like phone numbers", "who": "looks like initials", "dob": "may name a patient",
        "remarks": "free text, which may name a patient", "empty": "holds nothing",
        "seen": "looks like dates: write them as 2024-01-31 and give the kind datetime",
    }  # fmt: skip
    assert kinds["patient_no"] == "id" and kinds["admission_date"] == "datetime"
    assert {line.role: name for name, line in lines.items() if line.role} == {
        "site": "center", "time": "admission_date", "age": "Age", "sex": "gender"
    }  # fmt: skip
    assert {name for name, line in lines.items() if line.section == "lab"} == {"lab_na", "lab_k", "lab_crp"}
    assert lines["lab_crp"].coding == {"<0.3": "<0.3"} and "texts among its numbers" in lines["lab_crp"].look_at
    assert lines["smoker"].coding == {"Y": "Yes", "Yes": "Yes", "yes": "Yes", "no": "No"}
    assert lines["weight"].look_at == "999 may mean missing: then give the coding 999="
    assert "codes without labels" in lines["gender"].look_at and "the role sex is a guess" in lines["gender"].look_at
    later = [name for name, line in lines.items() if line.section == "Outcome"]
    assert later == list(lines)[-2:] == ["death_30d", "icu_los"]
    assert all("looks like an outcome" in lines[name].look_at and lines[name].leak_group == "outcome" for name in later)
    assert lines["lab_na"].look_at == "" == lines["lab_k"].look_at


def test_the_screen_ends_with_what_to_look_at_and_type(source):
    said = draft_codebook(source).splitlines()
    assert said[0].endswith("codebook.csv: 21 columns (1 id, 9 ignore, 4 category, 1 datetime, 6 number)")
    assert said[1] == "not shown, drafted as ignore:" and "  may name a patient: Name, dob" in said
    outcome = (
        "looks like an outcome or comes after it: ignore it, or keep it in a last section and prepare with --causal"
    )
    assert said.index("to look at before you prepare:") < said.index(f"  {outcome}: death_30d, icu_los")
    assert (
        "  the role site is a guess: center" in said
        and "  999 may mean missing: then give the coding 999=: weight" in said
    )
    assert said[-1].startswith("edit it (docs/custom.md), then: creason prepare --cohort=custom --source=")
    assert said[-1].endswith("--valid_patients=12")
    lines = read_codebook(source / "codebook.csv")
    assert screen(lines) == said[1 : 1 + len(screen(lines))]  # the file says the same
    raw = custom.read(source)
    registry = build(raw, valid_patients=12, seed=1, split="site")
    assert registry.statistics and not {"Name", "national", "dob"} & {feature.name for feature in registry.features}


def test_visits_are_seen_by_a_draft(tmp_path):
    table = pd.DataFrame({"RANDID": [row // 3 for row in range(90)], "BP": [100 + row % 31 for row in range(90)]})
    table.to_csv(tmp_path / "data.csv", index=False)
    (line, _) = draft(read_data(tmp_path / "data.csv"))
    assert (line.kind, line.look_at) == (
        "id",
        "30 ids in 90 rows: rows look like visits, and one row must be one patient",
    )
    table.drop(columns="RANDID").to_csv(tmp_path / "data.csv", index=False)
    assert "no column looks like an id: give one the kind id, or add a column that numbers" in draft_codebook(tmp_path)


def test_a_code_that_a_coding_cannot_hold_is_not_drafted(tmp_path):
    rows = "".join(f"P{row},{row + 0.5}\n" for row in range(30))
    (tmp_path / "data.csv").write_text(f"id,x\n{rows}Q1,<=0.3\nQ2,NA\n")
    (_, line) = draft(read_data(tmp_path / "data.csv"))
    assert line.coding == {"NA": ""}  # <=0.3=<=0.3 would read as the code <
    draft_codebook(tmp_path)
    with pytest.raises(InputError, match="row 32, column x: not a number"):
        custom.read(tmp_path)


def test_names_beyond_ascii_open_in_excel(tmp_path):
    (tmp_path / "data.csv").write_text(
        "id,나이\n" + "".join(f"P{row},{row + 20.5}\n" for row in range(9)), encoding="utf-8"
    )
    draft_codebook(tmp_path)
    assert (tmp_path / "codebook.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert custom.read(tmp_path).roles == {"age": "나이"}


LATER = (
    "DEATH hospdead d.time TIMEDTH lenfol fstat slos d_time surv2m disch_date status2 follow-up readmission30 PFS "
    "totalCost years"
)
NOW = "glucose age smoking_status timepoint race osm sysbp year closure"


@pytest.mark.parametrize(
    ("name", "later"), [*((name, True) for name in LATER.split()), *((name, False) for name in NOW.split())]
)
def test_what_looks_like_an_outcome(name, later):
    assert is_later(name, "", "number") == later


def test_a_label_tells_an_outcome_too():
    assert is_later("x6", "Days of follow up", "number") and not is_later("x7", "Days of fever", "number")
    assert not is_later("time", "", "datetime")


def test_prefixes_and_missing_numbers():
    assert prefixes(["lab_a", "lab.b", "LAB_c", "vs_a", "vs_b", "x", "a_b"]) == {
        "lab_a": "lab",
        "lab.b": "lab",
        "LAB_c": "LAB",
    }
    assert missing_number([1, 2, 3, 999, 999.0]) == "999" and missing_number([1, 2, -9, -9]) == "-9"
    assert (
        missing_number([900, 950, 999, 999]) == ""
        and missing_number([1, 2, 3, 999]) == ""
        and missing_number([-5, -9, -9, 3]) == ""
    )


HEADER = [
    "Variable / Field Name", "Form Name", "Section Header", "Field Type", "Field Label",
    "Choices, Calculations, OR Slider Labels", "Field Note",
    "Text Validation Type OR Show Slider Number", "Text Validation Min", "Text Validation Max", "Identifier?",
    "Branching Logic (Show field only if...)", "Required Field?", "Custom Alignment", "Question Number (surveys only)",
    "Matrix Group Name", "Matrix Ranking?", "Field Annotation",
]  # fmt: skip
FIELDS = [
    # name, form, section header, type, label, choices, validation, identifier
    ("record_id", "baseline", "", "text", "Record ID", "", "", ""),
    ("mrn", "baseline", "", "text", "Chart", "", "", "y"),
    ("tel", "baseline", "", "text", "How to reach", "", "phone", ""),
    ("adm", "baseline", "", "text", "Admitted", "", "date_dmy", ""),
    (
        "sex",
        "baseline",
        "<b>About&nbsp;you</b>",
        "radio",
        "<div>Sex at\nbirth</div>",
        "1, Male | 2, Female, so far | 9, Unknown",
        "",
        "",
    ),
    ("smoke", "baseline", "", "yesno", "Smokes", "", "", ""),
    ("como", "baseline", "", "checkbox", "Comorbidity", "1, Diabetes | -1, None | AF, Atrial fibrillation", "", ""),
    ("bmi", "labs", "", "calc", "BMI", "[w]/[h]^2", "", ""),
    ("na", "labs", "", "text", "Sodium", "", "number_1dp", ""),
    ("story", "labs", "", "notes", "Story", "", "", ""),
    ("hello", "labs", "", "descriptive", "Welcome", "", "", ""),
    ("ward", "labs", "", "text", "Ward", "", "", ""),
    ("dead", "outcome_form", "", "truefalse", "Died in hospital", "", "", ""),
    ("later", "outcome_form", "", "text", "Not exported", "", "", ""),
]


def dictionary(path, header=HEADER):
    places = (0, 1, 2, 3, 4, 5, 7, 10)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for field in FIELDS:
            row = [""] * len(header)
            for place, cell in zip(places, field, strict=True):
                row[place] = cell
            writer.writerow(row)
    return path


def redcap_export(path, *, labels=False):
    """An export by codes, or by labels; REDCap's own columns with it."""

    def answers(codes, texts):
        return [(texts if labels else codes)[n % len(codes)] for n in range(ROWS)]

    ticked = answers(["1", "0"], ["Checked", "Unchecked"])
    columns = {
        "record_id": list(range(1, ROWS + 1)),
        "redcap_data_access_group": ["north", "south"] * (ROWS // 2),
        "redcap_survey_identifier": [""] * ROWS,
        "mrn": [f"M{n}" for n in range(ROWS)],
        "tel": ["1"] * ROWS,
        "adm": [f"2023-02-{1 + n % 28:02}" for n in range(ROWS)],
        "sex": answers(["1", "2", "9"], ["Male", "Female, so far", "Unknown"]),
        "smoke": answers(["1", "0", ""], ["Yes", "No", ""]),
        "como___1": ticked, "como____1": ticked[::-1], "como___af": ticked,
        "baseline_complete": ["2"] * ROWS,
        "bmi": [20 + n % 23 / 2 for n in range(ROWS)],
        "na": [130 + n % 3 for n in range(ROWS)],  # few whole numbers: the dictionary knows better
        "story": ["came in"] * ROWS,
        "ward": ["A", "B"] * (ROWS // 2),
        "dead": answers(["1", "0"], ["True", "False"]),
        "added": [n % 40 for n in range(ROWS)],
    }  # fmt: skip
    pd.DataFrame(columns).to_csv(path, index=False)


@pytest.mark.parametrize("labels", [False, True])
def test_a_redcap_dictionary_becomes_a_codebook(tmp_path, labels):
    redcap_export(tmp_path / "data.csv", labels=labels)
    dictionary(tmp_path / "MyProject_DataDictionary_2024-01-01.csv")
    said = draft_codebook(tmp_path)
    lines = {line.column: line for line in read_codebook(tmp_path / "codebook.csv")}
    assert {name: (line.kind, line.section) for name, line in lines.items()} == {
        "record_id": ("id", ""), "redcap_data_access_group": ("category", ""), "redcap_survey_identifier": ("ignore", ""),
        "mrn": ("ignore", "Baseline"), "tel": ("ignore", "Baseline"), "adm": ("datetime", "Baseline"),
        "sex": ("category", "About you"), "smoke": ("category", "About you"), "como___1": ("category", "About you"),
        "como____1": ("category", "About you"), "como___af": ("category", "About you"), "baseline_complete": ("ignore", ""),
        "bmi": ("number", "Labs"), "na": ("number", "Labs"), "story": ("ignore", "Labs"), "ward": ("category", "Labs"),
        "added": ("number", "Record"), "dead": ("category", "Outcome"),
    }  # fmt: skip
    assert list(lines["sex"].coding.values()) == ["Male", "Female, so far", "Unknown"]
    assert list(lines["sex"].coding) == (["Male", "Female, so far", "Unknown"] if labels else ["1", "2", "9"])
    assert lines["sex"].display_name == "Sex at birth" and lines["como____1"].display_name == "Comorbidity: None"
    assert {line.role: name for name, line in lines.items() if line.role} == {
        "site": "redcap_data_access_group", "sex": "sex", "time": "adm"
    }  # fmt: skip
    assert "note: MyProject_DataDictionary_2024-01-01.csv: describes 17 of 18 columns" in said
    assert "note: 1 columns of the dictionary are not in the table: later" in said
    assert "note: 1 columns of the table are not in the dictionary, drafted from their values: added" in said
    assert "  an identifier, as the dictionary says: mrn, tel" in said
    columns = {column.name: column.values for column in custom.read(tmp_path).columns}
    assert columns["sex"][:3] == ["Male", "Female, so far", "Unknown"] and columns["smoke"][:3] == ["Yes", "No", None]
    assert columns["como___1"][:2] == ["Yes", "No"] == columns["como____1"][:2][::-1] and columns["dead"][:2] == [
        "True",
        "False",
    ]


def test_a_dictionary_by_its_flag_and_in_the_other_style(tmp_path):
    redcap_export(tmp_path / "data.csv")
    (tmp_path / "elsewhere").mkdir()
    names = "field_name form_name section_header field_type field_label select_choices_or_calculations field_note "
    names += "text_validation_type_or_show_slider_number text_validation_min text_validation_max identifier"
    path = dictionary(tmp_path / "elsewhere" / "fields.csv", names.split())
    assert "fields.csv: describes 17 of 18 columns" in draft_codebook(tmp_path, dictionary=str(path))
    (tmp_path / "codebook.csv").unlink()
    with pytest.raises(
        InputError,
        match=r"data\.csv: not a data dictionary of REDCap: these columns are missing: Variable / Field Name",
    ):
        draft_codebook(tmp_path, dictionary=str(tmp_path / "data.csv"))
    with pytest.raises(InputError, match=r"none\.csv: no such file; it should hold a data dictionary"):
        draft_codebook(tmp_path, dictionary=str(tmp_path / "none.csv"))
    for name in ("a.csv", "b.CSV"):
        dictionary(tmp_path / name)
    with pytest.raises(
        InputError, match=r"a\.csv and b\.CSV are data dictionaries; name the one that is meant by --dictionary"
    ):
        draft_codebook(tmp_path)
    (tmp_path / "b.CSV").unlink()
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "a.csv").write_text(text.replace("1, Male |", "Male |"))
    with pytest.raises(InputError, match=r"a\.csv: row 6: choices must be of the form `1, Male \| 2, Female`"):
        draft_codebook(tmp_path)
    assert not (tmp_path / "codebook.csv").exists()


def test_costs_horizons_and_texts_of_follow_up_look_like_outcomes(tmp_path):
    """Columns of SUPPORT2 that were drafted as if they were known at admission."""
    for name in ("totcst", "totmcst", "prg2m", "sfdm2", "mrs_3m", "hospital_cost"):
        assert is_later(name, name, "number"), name
    for name in ("lab_na", "cst", "intercostal", "walk400", "sofa_d1", "age", "temp", "num.co"):
        assert not is_later(name, name, "number"), name
    rows = "".join(f"P{row},{row % 7}.5,{'<2 mo. follow-up' if row % 2 else 'no help'}\n" for row in range(30))
    (tmp_path / "data.csv").write_text(f"id,x,function\n{rows}")
    lines = {line.column: line for line in draft(read_data(tmp_path / "data.csv"))}
    assert lines["function"].section == "Outcome" and lines["x"].section == "Record"
    said = open_remarks(list(lines.values()))
    assert said.startswith(
        "1 lines of the codebook still hold a remark in look_at; 1 of them look like outcomes and are shown"
    )
    assert said.split(": ")[1].startswith("function; empty the cell")
    assert not open_remarks([lines["x"]])
