"""The documented example of an own registry, and tables written as a statistics program writes them."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "custom"


def edit(path, row, column, value):
    rows = list(csv.reader(path.open(encoding="utf-8")))
    rows[row - 1][rows[0].index(column)] = value
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def sas_transport(path, columns):
    """Write a SAS transport file (version 5: 80-byte records, names of 8 letters, IBM's doubles); a number or a text each."""

    def record(text):
        return text.encode("ascii").ljust(80)

    def header(kind, end="0" * 30):
        return record(f"HEADER RECORD*******{kind:8}HEADER RECORD!!!!!!!{end}")

    def ibm(number):
        if not number:
            return bytes(8)
        exponent = 64
        fraction = abs(number)
        while fraction >= 1:
            fraction, exponent = fraction / 16, exponent + 1
        while fraction < 1 / 16:
            fraction, exponent = fraction * 16, exponent - 1
        return bytes([exponent + 128 * (number < 0)]) + int(fraction * 2**56).to_bytes(7, "big")

    def filled(content):
        return content + b" " * (-len(content) % 80)

    numbers = {name: all(isinstance(cell, float) for cell in cells) for name, cells in columns.items()}
    widths = {name: 8 if numbers[name] else max(map(len, cells)) for name, cells in columns.items()}
    fields, place = b"", 0
    for position, (name, width) in enumerate(widths.items(), start=1):
        fields += struct.pack(
            ">hhhh8s40s8shhh2s8shhl52s", 1 if numbers[name] else 2, 0, width, position, name.encode().ljust(8), b" " * 40,
            b" " * 8, 0, 0, 0, b"", b" " * 8, 0, 0, place, b"",
        )  # fmt: skip
        place += width
    rows = b"".join(
        ibm(cell) if numbers[name] else cell.encode().ljust(widths[name])
        for row in zip(*columns.values(), strict=True)
        for name, cell in zip(columns, row, strict=True)
    )
    when = "01JAN24:00:00:00"
    path.write_bytes(
        header("LIBRARY") + record(f"SAS     SAS     SASLIB  9.4     {'':32}{when}") + record(when)
        + header("MEMBER", "000000000000000001600000000140") + header("DSCRPTR")
        + record(f"SAS     DATA    SASDATA 9.4     {'':32}{when}") + record(when)
        + header("NAMESTR", f"000000{len(columns):04}" + "0" * 20) + filled(fields) + header("OBS") + filled(rows)
    )  # fmt: skip


def formatted(path, columns, formats=(), labels=(), length=8):
    """A SAS transport file whose variables have formats and labels, by name."""
    sas_transport(path, columns)
    content = bytearray(path.read_bytes())
    start = 640  # eight records before the variables
    for place, name in enumerate(columns):
        field = start + 140 * place
        label, form = dict(labels).get(name, "").encode("cp949"), dict(formats).get(name, "").encode()
        content[field + 16 : field + 56] = label.ljust(40)
        content[field + 56 : field + 64] = form.ljust(8)
    path.write_bytes(bytes(content))
    return path
