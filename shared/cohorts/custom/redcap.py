"""Turns a REDCap data dictionary into codebook lines for the columns of the project's data export."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.cohorts.custom import guesses
from shared.cohorts.custom.codebook import Line
from shared.cohorts.custom.table import read_data
from shared.cohorts.tables import RawTable, id_text
from shared.errors import InputError

# The columns of a dictionary that are read, each with its two possible names: from REDCap's web pages and from its API.
HEADERS = {
    "name": ("Variable / Field Name", "field_name"),
    "form": ("Form Name", "form_name"),
    "section": ("Section Header", "section_header"),
    "type": ("Field Type", "field_type"),
    "label": ("Field Label", "field_label"),
    "choices": ("Choices, Calculations, OR Slider Labels", "Choices OR Calculations", "select_choices_or_calculations"),
    "validation": ("Text Validation Type OR Show Slider Number", "text_validation_type_or_show_slider_number"),
    "identifier": ("Identifier?", "identifier"),
}
NEEDED = ("name", "type", "label", "choices")
CHOSEN = ("radio", "dropdown")
ANSWERS = {"yesno": {"1": "Yes", "0": "No"}, "truefalse": {"1": "True", "0": "False"}}
TICKED = {"0": "No", "1": "Yes"}
TICKED_LABELS = {"Unchecked": "No", "Checked": "Yes"}
NAMING = frozenset("email phone phone_australia zipcode postalcode_australia postalcode_canada postalcode_french "
                   "postalcode_germany ssn mrn_10d mrn_generic vmrn".split())  # fmt: skip
# Columns that REDCap itself adds to an export, and why they are not shown.
ADDED = {
    "redcap_event_name": "an event of the project: one row must be one patient",
    "redcap_repeat_instrument": "a repeated form: one row must be one patient",
    "redcap_repeat_instance": "a repeated form: one row must be one patient",
    "redcap_survey_identifier": "may name a patient",
}
IDENTIFIER = "an identifier, as the dictionary says"
FREE_TEXT = "free text, which may name a patient"

_TAG = re.compile(r"<[^<>]+>")


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the dictionary. `choices` maps its codes to their labels, in order."""

    name: str
    form: str
    section: str
    type: str
    label: str
    choices: Mapping[str, str]
    validation: str
    identifier: bool

    @property
    def columns(self) -> dict[str, str]:
        """The columns of an export that belong to the field, each with its label.

        Only check boxes have labels: one column for each box. All other labels are "".
        """
        if self.type == "descriptive":
            return {}
        if self.type != "checkbox":
            return {self.name: ""}
        return {
            f"{self.name}___{re.sub('[^a-z0-9]', '_', code.lower())}": label for code, label in self.choices.items()
        }


def is_dictionary(path: Path) -> bool:
    """Whether the beginning of a text file has the column names of a data dictionary."""
    with path.open("rb") as stream:
        start = stream.read(4096).decode("utf-8", "replace")
    return all(any(name in start for name in HEADERS[key]) for key in NEEDED)


def find_dictionary(source: Path, others: Sequence[Path]) -> Path | None:
    """The data dictionary in a folder, recognised by its header; None if there is none.

    Files in `others` are not examined. Raises InputError if there are several dictionaries.
    """
    dictionaries = [
        path
        for path in sorted(source.iterdir())
        if path.suffix.lower() in (".csv", ".tsv", ".txt") and path not in others and is_dictionary(path)
    ]
    if len(dictionaries) > 1:
        names = " and ".join(path.name for path in dictionaries)
        raise InputError(f"{source}: {names} are data dictionaries; name the one that is meant by --dictionary")
    return dictionaries[0] if dictionaries else None


def read_fields(path: Path) -> list[Field]:
    """Read the fields of a data dictionary. Raises InputError that names the file and the wrong row."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; it should hold a data dictionary of REDCap")
    table = read_data(path, decimal=".")
    columns = {key: next((name for name in names if name in table.columns), "") for key, names in HEADERS.items()}
    missing = [HEADERS[key][0] for key in NEEDED if not columns[key]]
    if missing:
        raise InputError(f"{path}: not a data dictionary of REDCap: these columns are missing: {', '.join(missing)}")
    fields, form, section = [], "", ""
    for row in range(table.rows):
        cells = {key: str(table.columns[name][row]).strip() if name else "" for key, name in columns.items()}
        section = _clear(cells["section"]) or (section if cells["form"] == form else "")
        form = cells["form"]
        kind = cells["type"].lower()
        coded = kind in (*CHOSEN, "checkbox")
        choices = _choices(path, table, row, cells["choices"]) if coded else {}
        title = section or form.replace("_", " ").capitalize()
        fields.append(Field(cells["name"], form, title, kind, _clear(cells["label"]) or cells["name"], choices,
                            cells["validation"].lower(), cells["identifier"].lower() in ("y", "yes", "1", "true")))  # fmt: skip
    if not fields:
        raise InputError(f"{path}: describes no field")
    return fields


def _clear(text: str) -> str:
    """A label without HTML and line breaks."""
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())


def _choices(path: Path, table: RawTable, row: int, text: str) -> dict[str, str]:
    """Choices such as `1, Male | 2, Female` as a dictionary from code to label. Raises InputError for another form."""
    choices: dict[str, str] = {}
    for part in (part.strip() for part in text.split("|")):
        code, comma, label = part.partition(",")
        if part and (not comma or not code.strip()):
            raise InputError(f"{path}: row {table.number(row)}: choices must be of the form `1, Male | 2, Female`")
        if part:
            choices[code.strip()] = _clear(label)
    return choices


def described(fields: Sequence[Field], table: RawTable) -> tuple[dict[str, Line], list[str]]:
    """A codebook line for each column of the table that the dictionary describes.

    The second result are notes on columns that only the dictionary or only the table has. The kind of a line is "" if only the
    values can tell it. If an export holds labels in place of codes, the coding has these labels as codes.
    """
    lines: dict[str, Line] = {}
    forms = {field.form for field in fields}
    absent = []
    for place, field in enumerate(fields):
        for column, box in field.columns.items():
            if column in table.columns:
                lines[column] = _line(field, column, box, table, is_first=place == 0)
            else:
                absent.append(column)
    for column in table.columns:
        if column in ADDED:
            lines[column] = Line(column=column, display_name=column, section="", kind="ignore", look_at=ADDED[column])
        elif column == "redcap_data_access_group":
            lines[column] = Line(
                column=column, display_name="Data access group", section="", kind="category", role="site"
            )
        elif column.removesuffix("_complete") in forms or column.removesuffix("_timestamp") in forms:
            about = "says whether or when a form was filled in"
            lines[column] = Line(column=column, display_name=column, section="", kind="ignore", look_at=about)
    unknown = [column for column in table.columns if column not in lines]
    notes = []
    if absent:
        notes.append(f"{len(absent)} columns of the dictionary are not in the table: {_some(absent)}")
    if unknown:
        notes.append(
            f"{len(unknown)} columns of the table are not in the dictionary, drafted from their values: {_some(unknown)}"
        )
    return lines, notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")


def _line(field: Field, column: str, box: str, table: RawTable, *, is_first: bool) -> Line:
    label = f"{field.label}: {box}" if box else field.label
    line = Line(column=column, display_name=label, section=field.section, kind="")
    if is_first:
        return dataclasses.replace(line, kind="id")
    if field.identifier or field.validation in NAMING:
        return dataclasses.replace(line, kind="ignore", look_at=IDENTIFIER)
    if reason := guesses.identifies(column, field.label if field.type == "text" else "", table.columns[column]):
        return dataclasses.replace(line, kind="ignore", look_at=reason)
    if field.type in ("notes", "file", "signature"):
        return dataclasses.replace(line, kind="ignore", look_at=FREE_TEXT)
    if field.type == "checkbox":
        return dataclasses.replace(
            line, kind="category", coding=_as_exported(TICKED, TICKED_LABELS, table.columns[column])
        )
    choices = ANSWERS.get(field.type, field.choices)
    if choices:
        label_of_itself = {text: text for text in choices.values()}
        unsure = any(text.lower() in guesses.UNSURE_LABELS for text in label_of_itself)
        coding = _as_exported(choices, label_of_itself, table.columns[column])
        about = "a label that may mean missing: then leave it empty, as in 9=" if unsure else ""
        return dataclasses.replace(line, kind="category", coding=coding, look_at=about)
    if field.type in ("calc", "slider") or field.validation.startswith(("integer", "number")):
        return dataclasses.replace(line, kind="number")
    return dataclasses.replace(line, kind="datetime") if field.validation.startswith("date") else line


def _as_exported(codes: Mapping[str, str], labels: Mapping[str, str], cells: Sequence[Any]) -> dict[str, str]:
    """The coding of a column: `codes`, or `labels` if the table was exported with labels in place of codes."""
    texts = {id_text(cell) for cell in cells if cell != ""}
    with_labels = bool(texts) and texts <= set(labels) and not texts <= set(codes)
    return dict(labels if with_labels else codes)
