"""A small folder of MIMIC-III's tables, changed in one place, and what preparation says of it."""

from __future__ import annotations

import gzip

import pandas as pd
import pytest

from shared.cohorts.mimic3 import extracts, tables
from shared.cohorts.mimic3.options import Mimic3Config
from shared.config import DataConfig
from shared.errors import InputError
from shared.preparation.prepare import prepare


def lines_of(path):
    with gzip.open(path, "rt") as stream:
        return stream.read().splitlines()


def write_lines(path, lines):
    with gzip.open(path, "wt") as stream:
        stream.write("\n".join(lines) + "\n")


def change(source, name, line, edit):
    """Edit one line (1: the header) of a table."""
    path = source / f"{name}.csv.gz"
    lines = lines_of(path)
    lines[line - 1] = edit(lines[line - 1])
    write_lines(path, lines)


def data_of(source):
    return DataConfig(
        cohort="mimic3", task="mortality", source=str(source), valid_patients=1, mimic3=Mimic3Config(threads=1)
    )


def refusal(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError) as error:
        prepare(data_of(source), out, seed=1, progress=False)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (out / "questions").exists() and not (out / "registry").exists()
    assert not list(tmp_path.rglob("*.partial"))
    return str(error.value)


def written(source, folder, name):
    """One extract as a table."""
    found = tables.find(source)
    with extracts.connected(found, folder, memory=10**9, threads=1) as connection:
        if name in extracts.FROM_CHARTED:
            extracts.write(connection, "charted", found, folder / "charted.parquet")
        extracts.write(connection, name, found, folder / f"{name}.parquet")
    return pd.read_parquet(folder / f"{name}.parquet")
