"""Draws a synthetic registry, and writes it in the raw format of the sepsis registry."""

from __future__ import annotations

import datetime
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
from openpyxl.writer.excel import ExcelWriter

from shared.cohorts.synthetic.features import Feature
from shared.cohorts.synthetic.latents import LATENTS, SHAPE, Nominal, prior
from shared.cohorts.synthetic.oracle import table
from shared.cohorts.synthetic.variables import FEATURES, PATIENT
from shared.errors import InputError
from shared.randomness import generator
from shared.storage import files

METADATA_COLUMNS = ("Domain", "Section", "eCRF Variable name ", "Row Name", "Unit", "Range", "Decision")
KOREAN = {
    "남": "Male", "여": "Female", "예": "Yes", "아니오": "No",
    "응급실": "Emergency Room", "외래": "Outpatient Clinic", "전원": "Transfer",
    "지역사회": "Community-acquired", "요양기관": "Nursing-home-acquired", "병원": "Hospital-acquired",
    "폐": "Lung", "복강": "Abdomen", "요로": "Urinary Tract", "피부 및 연조직": "Skin and Soft Tissue",
    "혈류": "Bloodstream",
    "상급종합병원": "Tertiary Hospital", "종합병원": "General Hospital", "요양병원": "Long-term Care Hospital",
}  # fmt: skip
ENGLISH = {english: korean for korean, english in KOREAN.items()}
FIRST_DAY = np.datetime64("2020-01-01T00:00")
LAST_DAY = np.datetime64("2024-01-01T00:00")
STAMP = datetime.datetime(2025, 1, 1)
CENTERS = 15
TICK_BOX = "septicshock"  # this feature is written as a tick box, with a codebook entry of one line and 1 for ticked
BATCH_SECTION = "자료 차수 구분자"


def draw(patients: int, seed: int) -> pd.DataFrame:
    """Draw a registry with `patients` rows (index 0, 1, ...), with the values that the reader will show.

    Columns: `subjectno`, `center`, `hspt_cd` (texts), then all features: numbers as float64, categories as English labels with
    yes and no in lower case, moments as datetime64; missing values are NaN or NaT. The same `seed` and `patients` give the same
    registry. Raises InputError if `patients` is not positive.
    """
    _, columns = draw_complete(patients, seed)
    for name, feature in FEATURES.items():
        absent = generator(seed, "synthetic", name, "missing").random(patients) < feature.missing
        columns[name] = columns[name].mask(absent)
    return columns


def draw_complete(patients: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw the latent levels (one integer column for each latent), and the registry of `draw` without missing values.

    Raises InputError if `patients` is not positive.
    """
    if patients < 1:
        raise InputError(f"patients={patients}: a registry needs at least one; pass a positive number")
    random = generator(seed, "synthetic")
    states = np.unravel_index(random.choice(prior().size, size=patients, p=prior().ravel()), SHAPE)
    center = random.integers(1, CENTERS + 1, patients)
    columns: dict[str, Any] = {
        "subjectno": [f"SYN-{row:06d}" for row in range(patients)],
        "center": [f"C{number:02d}" for number in center],
        "hspt_cd": [f"H{number:02d}" for number in center],
    }
    zero = FIRST_DAY + random.integers(0, int((LAST_DAY - FIRST_DAY).astype(int)), patients)
    drawn = {
        name: _draw_outcomes(table(name), states, generator(seed, "synthetic", name).random(patients))
        for name, feature in FEATURES.items()
        if feature.law
    }
    for name, feature in FEATURES.items():
        if feature.kind == "moment":
            delays = generator(seed, "synthetic", name).integers(feature.delay[0], feature.delay[1] + 1, patients)
            columns[name] = (zero + delays).astype("datetime64[s]")
        elif feature.kind == "number":
            columns[name] = np.array(feature.outcomes)[feature.of_base[drawn[feature.base]]]
        else:
            labels = np.array([as_read(str(label)) for label in feature.outcomes], dtype=object)
            columns[name] = pd.Series(labels[feature.of_base[drawn[feature.base]]], dtype=object)
    return pd.DataFrame(dict(zip(LATENTS, states, strict=True))), pd.DataFrame(columns)


def as_read(label: str) -> str:
    """A label as the reader of the sepsis registry shows it: Yes and No become lower case."""
    return label.lower() if label in ("Yes", "No") else label


def _draw_outcomes(law: np.ndarray, states: tuple[np.ndarray, ...], uniforms: np.ndarray) -> np.ndarray:
    """Draw an outcome for each patient from the law given their state: `[patients]` index, by inverse transform sampling."""
    sizes = law.shape[:-1]
    levels_of_law = tuple(
        levels if size > 1 else np.zeros_like(levels) for levels, size in zip(states, sizes, strict=True)
    )
    rows = np.ravel_multi_index(levels_of_law, sizes)
    cumulative = np.cumsum(law.reshape(-1, law.shape[-1]), axis=-1)
    drawn = np.empty(len(uniforms), dtype=np.int64)
    for row in np.unique(rows):
        chosen = rows == row
        # Scaled by the last sum: rounding errors must not select an outcome of probability 0 at the end.
        drawn[chosen] = np.searchsorted(cumulative[row], uniforms[chosen] * cumulative[row, -1], side="right")
    return drawn


def write_raw(folder: Path, *, patients: int, seed: int) -> None:
    """Write `data.xlsx`, `metadata.xlsx` and `kor_to_eng.json` to `folder`, in the sepsis registry's raw format.

    Each file is written atomically and is readable by its owner only. Raises InputError if `patients` is not positive.
    """
    registry = draw(patients, seed)
    folder.mkdir(mode=files.OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
    columns = _data_columns(registry)
    _write_sheet(folder / "data.xlsx", "data", [tuple(columns), *zip(*columns.values(), strict=True)])
    _write_sheet(folder / "metadata.xlsx", "metadata", [METADATA_COLUMNS, *_metadata_rows()])
    files.write_json(folder / "kor_to_eng.json", KOREAN)


def _write_sheet(path: Path, title: str, rows: list[tuple]) -> None:
    """Write a workbook with one sheet. The same rows give the same bytes, because all time stamps in it are `STAMP`."""
    plain = io.BytesIO()
    with files.writing(path), zipfile.ZipFile(plain, "w") as archive:  # openpyxl keeps each sheet in a temporary file
        book = openpyxl.Workbook(write_only=True)
        book.properties.created = book.properties.modified = STAMP
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
        ExcelWriter(book, archive).save()
    whole = io.BytesIO()
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as stamped:
        for name in archive.namelist():
            entry = zipfile.ZipInfo(name, STAMP.timetuple()[:6])
            stamped.writestr(entry, archive.read(name), zipfile.ZIP_DEFLATED)
    files.write_bytes(path, whole.getvalue())


def time_column(name: str) -> str:
    """The name of the column with the time of day that belongs to the date column `name`."""
    return name.removesuffix("date").removesuffix("dt") + "tm"


def _data_columns(registry: pd.DataFrame) -> dict[str, list]:
    """The cells of each column, by its name in upper case, in the order of the metadata; blank cells are None."""
    columns: dict[str, list] = {name.upper(): registry[name].tolist() for name in ("subjectno", "center", "hspt_cd")}
    columns["HOSADMNA"] = [None] * len(registry)
    for name, feature in FEATURES.items():
        values = registry[name]
        if feature.kind == "moment":
            stamps = [None if pd.isna(stamp) else stamp.to_pydatetime() for stamp in values]
            columns[name.upper()] = [stamp and datetime.datetime(*stamp.timetuple()[:3]) for stamp in stamps]
            columns[time_column(name).upper()] = [stamp and stamp.time() for stamp in stamps]
            if name == "tzdt":
                columns["TZTMTIME"] = [stamp and f"{stamp:%Y-%m-%d %H:%M}" for stamp in stamps]
        elif feature.kind == "number":
            kind = int if feature.decimals == 0 else float
            columns[name.upper()] = [None if np.isnan(value) else kind(value) for value in values.tolist()]
        else:
            codes = {as_read(str(label)): code for code, label in coding(feature).items()}
            columns[name.upper()] = [None if pd.isna(label) else codes[label] for label in values]
        if name == "lactate":
            columns["NA_LACTATE"] = ["NA" if pd.isna(value) else None for value in values]
    columns["DATANO"] = [1] * len(registry)
    return columns


def coding(feature: Feature) -> dict[int, str]:
    """The English label of each code of a category. Codes count from 0 for No and Yes, and from 1 for others."""
    labels = [str(label) for label in feature.outcomes]
    if set(labels) == {"No", "Yes"}:
        return {0: "No", 1: "Yes"}
    return dict(enumerate(labels, start=1))


def codebook_text(feature: Feature) -> str | None:
    """The `Range` text of a feature in the codebook: `[1] Korean label` for unordered labels, else `1 = label`; None if none."""
    if feature.kind != "category":
        return None
    if feature.name == TICK_BOX:
        return f"[1] {ENGLISH['Yes']}"
    if isinstance(feature.law, Nominal):
        return "\n".join(f"[{code}] {ENGLISH.get(label, label)}" for code, label in coding(feature).items())
    return "\n".join(f"{code} = {label}" for code, label in coding(feature).items())


def _metadata_rows() -> list[tuple]:
    """One row for each data column, in the same order. Domain and section are blank where they are those of the row above."""
    section = next(iter(FEATURES.values())).section
    rows: list[tuple] = [
        (PATIENT, section, "SUBJECTNO", "Subject number", None, None, None),
        (None, None, "CENTER", "Center", None, None, None),
        (None, None, "HSPT_CD", "Hospital code", None, None, None),
        (None, None, "HOSADMNA", "Hospital admission not applicable", None, None, None),
    ]
    last = (PATIENT, section)
    for name, feature in FEATURES.items():
        domain = feature.domain if feature.domain != last[0] else None
        heading = feature.section if (feature.domain, feature.section) != last else None
        last = (feature.domain, feature.section)
        if feature.kind == "moment":
            rows.append((domain, heading, name.upper(), f"{feature.title} date", None, None, None))
            rows.append((None, None, time_column(name).upper(), f"{feature.title} time", None, None, None))
            if name == "tzdt":
                rows.append((None, None, "TZTMTIME", "Time zero stamp", None, None, None))
            continue
        unit = feature.unit or None
        rows.append((domain, heading, name.upper(), feature.title, unit, codebook_text(feature), None))
        if name == "lactate":
            rows.append((None, None, "NA_LACTATE", "Lactate not measured", None, None, None))
    rows.append((BATCH_SECTION, BATCH_SECTION, "DATANO", "Data batch", None, None, None))
    return rows
