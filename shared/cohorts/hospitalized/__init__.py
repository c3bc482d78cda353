"""The hospitalised cohort: days 1 to 7 of an intensive care stay, in slots of eight hours (spec: registry, a.4).

The file `layout.json` beside this one says which column belongs to which section; a `layout.json` among the raw files replaces
it. Day 8 is used only for the labels of the AKI task. A value is missing if the mask file has 0 for it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.cohorts import tables
from shared.cohorts.tables import find
from shared.errors import InputError
from shared.registry.build import RawColumn, RawRegistry
from shared.registry.features import as_number
from shared.storage import files

FILES = {
    "data": ("data_processed.csv.gz", "data_processed.csv", "data_processed.parquet"),
    "mask": ("data_missing_processed.csv.gz", "data_missing_processed.csv", "data_missing_processed.parquet"),
    "metadata": ("metadata.xlsx", "metadata.csv"),
    "names": ("feature.csv.gz", "feature.csv"),
}
LAYOUT = "layout.json"
COLUMN_NAMES, SHOWN, NAME = "컬럼명", "Human-readable Name", "Name"
DAYS, SLOTS = range(1, 8), (1, 2, 3)
HOURS = {1: "00:00 - 08:00", 2: "08:00 - 16:00", 3: "16:00 - 24:00"}
FLAGS = [f"d{day}_{slot}_aki" for day in (*DAYS, 8) for slot in SLOTS]  # AKI in each slot of days 1 to 8

_DATED = re.compile(r"d[1-8]_")
_FIRST = re.compile(r"d1_(?![23]_)")


def layout(source: Path) -> dict[str, Any]:
    """Which column belongs to which section: `layout.json` in `source`, or else the one of this module.

    Raises InputError if a key is missing.
    """
    default = Path(__file__).parent / LAYOUT
    path = source / LAYOUT if (source / LAYOUT).is_file() else default
    plan = files.read_json(path)
    missing = [key for key in files.read_json(default) if not isinstance(plan, dict) or key not in plan]
    if missing:
        raise InputError(f"{path}: these keys are missing: {', '.join(missing)}")
    return plan


def digests(source: Path) -> dict[str, str]:
    """The checksum of each raw file in `source`, by file name. Raises InputError that lists every missing file."""
    paths = [*find(source, FILES).values(), *([source / LAYOUT] if (source / LAYOUT).is_file() else [])]
    return {path.name: tables.digest(path) for path in paths}


def placed(plan: Mapping[str, Any]) -> dict[str, str]:
    """The section header of each column that is shown, by column name, in the order of the record."""
    header_of = {name: part["header"] for part in plan["sections"] for name in part["columns"]}
    for day in DAYS:
        for slot in SLOTS:
            header_of |= {f"d{day}_{slot}_{name}": f"[Day {day} {HOURS[slot]}]" for name in plan["eight_hourly"]}
        header_of |= {f"d{day}_{name}": f"[Day {day}]" for name in plan["daily"]}
    return header_of | dict.fromkeys(plan["outcomes"]["columns"], plan["outcomes"]["header"])


def read_frames(
    source: Path, *, in_parts: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str], list[str]]:
    """Read the data and the mask of the patients in the cohort, the display name of each column, and notes.

    Both tables are `[patients, columns]`, with the row in the file as index. With `in_parts`, pandas reads the file in parts
    and finds the types of each part separately, as in the original: if a column of numbers has a text, the numbers in the same
    part become texts too. Raises InputError that names the columns if data, mask, metadata and layout do not agree.
    """
    paths, plan = find(source, FILES), layout(source)
    (data, left_out), (mask, also_left_out) = _frame(paths["data"], in_parts=in_parts), _frame(paths["mask"])
    metadata = tables.read_table(paths["metadata"], merged=True)
    if COLUMN_NAMES not in metadata.columns:
        raise InputError(f"{metadata.path}: these columns are missing: {COLUMN_NAMES}")
    names = [tables.plain_name(name) for name in metadata.columns[COLUMN_NAMES]]
    _same(paths["data"], set(data.columns), metadata.path, set(names))
    _same(paths["mask"], set(mask.columns), paths["data"], set(data.columns))
    if len(mask) != len(data):
        raise InputError(f"{paths['mask']}: {len(mask)} rows, but {paths['data'].name} has {len(data)}")
    shown = _display_names(paths["names"], [name for name in names if _FIRST.match(name) or not _DATED.match(name)])
    needed_columns = [*placed(plan), plan["identifier"], plan["excluded"], plan["icu"], plan["year"], *FLAGS]
    absent = [name for name in needed_columns if name not in data.columns]
    if absent:
        raise InputError(f"{paths['data']}: columns of the layout are missing: {', '.join(absent[:10])}; "
                         f"describe this export in a {LAYOUT} beside it")  # fmt: skip
    unplaced = [name for name in shown if name not in {*needed_columns, *plan["not_shown"], *_first_slot(plan)}]
    if unplaced:
        raise InputError(f"{paths['data']}: the layout does not place these columns: {', '.join(unplaced[:10])}; "
                         f"describe this export in a {LAYOUT} beside it")  # fmt: skip
    icu, excluded = (_flag(paths["data"], data[plan[name]]) for name in ("icu", "excluded"))
    rows = (icu == 1) & (excluded == 0)
    if not rows.any():
        raise InputError(f"{paths['data']}: no row has {plan['icu']} = 1 and {plan['excluded']} = 0")
    notes = [*left_out, *also_left_out, *metadata.notes]
    unknown = int((icu.isna() | excluded.isna()).sum())
    if unknown:
        notes.append(f"{paths['data'].name}: {unknown} rows without {plan['icu']} or {plan['excluded']} are left out")
    return data[rows], mask[rows], {name: _display(name, shown) for name in placed(plan)}, notes


def _flag(path: Path, column: pd.Series) -> pd.Series:
    """A column of 1 and 0 (NaN where missing) that decides which patients belong to the cohort.

    Raises InputError for any other value, since the patient would be left out silently.
    """
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    wrong_rows = column.index[column.notna() & ~numbers.isin([0, 1])]
    if len(wrong_rows):
        row = wrong_rows[0]
        raise InputError(
            f"{path}: column {column.name}, row {int(row) + 2}: {tables.shown_code(column[row])} is neither 1 nor 0"
        )
    return numbers


def _as_numbers(column: pd.Series) -> pd.Series:
    """The column as numbers, if all its cells that are not missing are numbers or texts that spell numbers."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if (numbers.notna() | column.isna()).all() else column


def _first_slot(plan: Mapping[str, Any]) -> list[str]:
    return [f"d1_1_{name}" for name in plan["not_shown_eight_hourly"]]


def _frame(path: Path, *, in_parts: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Read a table with pandas: plain column names, no first column of row numbers; and notes on what is left out."""
    if path.suffix == ".parquet":
        frame = tables.read_parquet(path).reset_index(drop=True)
    else:
        try:
            with path.open("rb"), warnings.catch_warnings():
                warnings.simplefilter("ignore", pd.errors.DtypeWarning)
                frame = pd.read_csv(path, low_memory=in_parts)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable CSV file in UTF-8 ({str(error).splitlines()[0]})") from None
        if not isinstance(frame.index, pd.RangeIndex):
            raise InputError(f"{path}: every row has one cell more than the first row has names, as where R writes row names; "
                             f"write it with row.names = FALSE")  # fmt: skip
    frame.columns = pd.Index(tables.named(path, list(frame.columns)))
    first = str(frame.columns[0])
    if not tables.is_index(first, frame[first].tolist()):
        return frame, []
    return frame.iloc[:, 1:], tables.left_out(path, [first])


def _same(path: Path, columns: set[str], other_path: Path, other_columns: set[str]) -> None:
    only_here, only_there = sorted(columns - other_columns), sorted(other_columns - columns)
    if only_here or only_there:
        raise InputError(
            f"{path} and {other_path} name different columns; only in the first: {', '.join(only_here[:10]) or 'none'}; "
            f"only in the second: {', '.join(only_there[:10]) or 'none'}"
        )


def _display_names(path: Path, names: list[str]) -> dict[str, str]:
    """The display name of each of `names`, from the file of names at `path`."""
    table = tables.read_table(path, merged=True)
    if SHOWN not in table.columns:
        raise InputError(f"{path}: these columns are missing: {SHOWN}")
    shown = [str(text) for text in table.columns[SHOWN]]
    if NAME in table.columns:
        by_name = dict(zip(map(tables.plain_name, table.columns[NAME]), shown, strict=True))
        absent = [name for name in names if name not in by_name]
        if absent:
            raise InputError(f"{path}: these columns have no line: {', '.join(absent[:10])}")
        return {name: by_name[name] for name in names}
    if len(shown) != len(names):
        raise InputError(f"{path}: {len(shown)} lines for {len(names)} columns; there must be one for each column that is not "
                         f"of a later day or slot, or a column {NAME} that says whose each is")  # fmt: skip
    return dict(zip(names, shown, strict=True))


def _display(name: str, shown: Mapping[str, str]) -> str:
    """The display name of a column. A column of a later day or slot has the name of the first."""
    first = re.sub(r"^d\d_(\d_)?", lambda match: "d1_1_" if match[1] else "d1_", name)
    return shown[name] if name in shown else shown[first]


def words(plan: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """The labels of 1 and 0 for each column whose values are shown as words, by column name."""
    numbers = set(plan["numbers"])
    vitals = {name for name in plan["eight_hourly"] if "aki" not in name}
    coded = {}
    for name in placed(plan):
        plain = re.sub(r"^d\d_(\d_)?", "", name)
        is_vital = re.match(r"d\d_\d_", name) is not None and plain in vitals
        if name not in numbers and not (name != plain and plain in numbers) and not is_vital:
            coded[name] = {1: "Yes", 0: "No"}
    return coded | {plan["sex"]: {1: "Male", 0: "Female"}}


def read(source: Path, *, cohort: str = "hospitalized") -> RawRegistry:
    """Read the raw files in `source`. Raises InputError that names the wrong file or column."""
    data, mask, shown, notes = read_frames(source)
    plan = layout(source)
    coded = words(plan)
    columns = []
    for name, section in placed(plan).items():
        values = _as_numbers(data[name].where(mask[name] != 0))
        if name in coded:
            texts = _texts(name, values, coded[name])
            columns.append(RawColumn(name, shown[name], section, "", texts, tuple(coded[name].values())))
        else:
            columns.append(RawColumn(name, shown[name], section, "", _numbers(name, values)))
    for name in (*FLAGS[-len(SLOTS) :], plan["year"]):
        columns.append(
            RawColumn(
                name, name, "", "", _numbers(name, data[name].where(mask[name] != 0)), kind="number", visible=False
            )
        )
    ids = tables.identifiers(_identifying(source, data[plan["identifier"]]), plan["identifier"])
    if len(set(ids)) < len(ids) or "" in ids:
        raise InputError(f"{source}: column {plan['identifier']} must have a value in every row, each different")
    return RawRegistry(
        cohort=cohort,
        ids=ids,
        columns=columns,
        roles={"time": plan["year"], "sex": plan["sex"], "age": plan["age"]},
        digests=digests(source),
        notes=notes,
    )


def _identifying(source: Path, ids: pd.Series) -> tables.RawTable:
    path = find(source, FILES)["data"]
    return tables.RawTable(path, {str(ids.name): ids.tolist()}, numbers=[row + 2 for row in ids.index.tolist()])


def paper_frame(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of the original (ids in `Unique ID`, `N/A` where missing), and its AKI flags by slot (NaN where unknown)."""
    data, mask, shown, _ = read_frames(source, in_parts=True)
    plan = layout(source)
    coded = words(plan)
    columns = {"Unique ID": data[plan["identifier"]]}
    for name in shown:
        values = _as_numbers(data[name]).map(coded[name]) if name in coded else data[name]
        columns[name] = values.where(mask[name] != 0, "N/A") if (mask[name] == 0).any() else values
    return pd.DataFrame(columns), data[FLAGS].where(mask[FLAGS] != 0).apply(_as_numbers)


def _texts(name: str, values: pd.Series, coded: Mapping[int, str]) -> list[str | None]:
    unknown = [tables.shown_code(value) for value in values.dropna().unique() if value not in coded]
    if unknown:
        raise InputError(f"data column {name}: {', '.join(unknown[:5])} is neither 1 nor 0")
    return [None if value != value else coded[int(value)] for value in values.tolist()]


def _numbers(name: str, values: pd.Series) -> np.ndarray:
    """Cells as float64 `[patients]`, NaN where missing. Raises InputError for other cells.

    `inf` and `12_3` are refused, which pandas and NumPy accept as numbers.
    """
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        is_wrong = np.isinf(numbers)
    else:
        is_present = values.notna().to_numpy()
        numbers = np.array(
            [as_number(value) if known else np.nan for value, known in zip(values, is_present, strict=True)]
        )
        is_wrong = is_present & np.isnan(numbers)
    if is_wrong.any():
        raise InputError(
            f"data column {name}, row {int(values.index[int(np.argmax(is_wrong))]) + 2}: the cell is no number"
        )
    return numbers
