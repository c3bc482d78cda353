"""A config as values, read into its dataclasses: an error names the field and the reason."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from shared.errors import InputError
from shared.options.checks import check

KINDS_IN_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list",
    type(None): "None",
}


def build(kind: type, values: Mapping[str, Any], prefix: str = "", default: Any = None) -> Any:
    """The dataclass `kind` with these values; what they leave out is as in `default`, an instance of it, where there is one.

    Raises InputError for a field that is not there, is needed and not given, or refuses its value. `prefix`, such as `grpo.`,
    begins the names of fields in messages.
    """
    hints = typing.get_type_hints(kind)
    sections = {field.name: field.default for field in dataclasses.fields(kind)}
    arguments = {} if default is None else {name: getattr(default, name) for name in hints}
    for name, value in dict(values).items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(hints)}"
            raise InputError(f"unknown field {prefix}{name}{hint}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise InputError(f"{prefix}{name} = {value!r}: must be a section with fields")
            arguments[name] = build(typing.cast(type, hints[name]), value, f"{prefix}{name}.", sections[name])
        else:
            arguments[name] = _typed(value, hints[name], prefix + name)
    required = [
        f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.name not in arguments
    ]
    if required:
        raise InputError(f"{prefix}{required[0]}: is needed and not given")
    try:
        return kind(**arguments)
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def kinds_in_words(kinds: Iterable[type]) -> str:
    """What a field of one of these types takes, for a message: `a whole number or None`."""
    return " or ".join(KINDS_IN_WORDS.get(kind, kind.__name__) for kind in kinds)


def _typed(value: Any, hint: Any, field: str) -> Any:
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        check(value in options, field, value, f"must be one of {', '.join(map(str, options))}")
        return value
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if float in kinds and isinstance(value, float):
        check(value == value and abs(value) != float("inf"), field, value, "must be a finite number")
    right = any(type(value) is kind for kind in kinds)
    check(right, field, value, f"must be {kinds_in_words(kinds)}")
    return value
