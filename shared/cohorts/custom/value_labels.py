"""Labels that a statistics package's file gives to the values of a column."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from shared.cohorts.tables import RawTable, plain_name


def with_labels(table: RawTable, labels: Mapping[str, Mapping[Any, str]], notes: Sequence[str]) -> RawTable:
    """A table with the labels of its values in place of these, by column; a value without a label stays as it is.

    The values before are kept as `codes`. `notes` are added to the table's.
    """
    meanings = {plain_name(name): _plain(given) for name, given in labels.items()}
    known = {name: given for name, given in meanings.items() if given and name in table.columns}
    shown = {name: [given.get(cell, cell) for cell in table.columns[name]] for name, given in known.items()}
    return dataclasses.replace(
        table,
        columns={**table.columns, **shown},
        codes={name: table.columns[name] for name in known},
        value_labels=known,
        notes=[*table.notes, *notes],
    )


def _plain(labels: Mapping[Any, str]) -> dict[Any, str]:
    """Labels without blanks around them; an empty label is none."""
    return {value: " ".join(label.split()) for value, label in labels.items() if label.strip() and value != ""}
