"""Puts the labels of values, which files of statistics packages contain, into a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from shared.cohorts.tables import RawTable, plain_name


def with_labels(table: RawTable, labels: Mapping[str, Mapping[Any, str]], notes: Sequence[str]) -> RawTable:
    """The table with labels in place of values. A value without a label is not changed.

    `labels` are, by column, the label of each value. The original values are kept as `codes`. `notes` are added to the table's.
    """
    plain_labels = {plain_name(name): _plain(label_of) for name, label_of in labels.items()}
    value_labels = {name: label_of for name, label_of in plain_labels.items() if label_of and name in table.columns}
    labelled = {
        name: [label_of.get(cell, cell) for cell in table.columns[name]] for name, label_of in value_labels.items()
    }
    return dataclasses.replace(
        table,
        columns={**table.columns, **labelled},
        codes={name: table.columns[name] for name in value_labels},
        value_labels=value_labels,
        notes=[*table.notes, *notes],
    )


def _plain(labels: Mapping[Any, str]) -> dict[Any, str]:
    """Labels with single blanks between words and none at the ends. Empty labels are left out."""
    return {value: " ".join(label.split()) for value, label in labels.items() if label.strip() and value != ""}
