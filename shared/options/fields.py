"""The fields of a config as its dataclasses document them: type, default, and the comments that stand at each field.

What a field means is said once, in the comment above or behind it in its dataclass; help screens and docs/configuration.md
are made from that.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

SOURCE = re.compile(r"\s*\(spec: ([^()]*)\)")  # at the end of a comment: where the default is from


@dataclasses.dataclass(frozen=True)
class Field:
    """One field. `name` is as the command line has it, such as `grpo.beta`; `needed`: there is no default."""

    name: str
    kind: str  # float; paper|modern; float|None
    default: Any
    needed: bool
    help: str
    source: str  # what docs/spec says of the default, such as "grpo, section 1"; empty: nothing


@dataclasses.dataclass(frozen=True)
class Section:
    """A dataclass of the config. `name` is "" for the config itself."""

    name: str
    kind: type
    help: str
    fields: tuple[Field, ...]


def sections(kind: type) -> list[Section]:
    """The sections of a config's dataclass, itself first, those in a section after it."""
    return list(_sections(kind, "", None))


def _sections(kind: type, name: str, default: Any) -> Iterator[Section]:
    hints: dict[str, Any] = typing.get_type_hints(kind)
    comments: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        comments |= _comments(base)
    # Where a section has defaults of its own, what is said of the dataclass's defaults is not about them.
    own = default is None or all(getattr(default, field.name) == field.default for field in dataclasses.fields(kind))
    found, inner = [], []
    declared = inspect.get_annotations(kind)
    for field in sorted(
        dataclasses.fields(kind), key=lambda field: field.name not in declared
    ):  # inherited ones come last
        hint, full = hints[field.name], f"{name}.{field.name}".lstrip(".")
        value = field.default if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(hint):
            inner.append((typing.cast(type, hint), full, value))
            continue
        text = comments.get(field.name, "")
        source = SOURCE.search(text)
        needed = value is dataclasses.MISSING
        found.append(
            Field(full, kind_name(hint), None if needed else value, needed,
                  sentence(SOURCE.sub("", text)), source[1] if source and own else "")
        )  # fmt: skip
    yield Section(name, kind, " ".join((kind.__doc__ or "").split()), tuple(found))
    for each in inner:
        yield from _sections(*each)


def kind_name(hint: Any) -> str:
    """A type in short: a choice as its options."""
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if isinstance(hint, types.UnionType):
        return "|".join(kind_name(part) for part in typing.get_args(hint))
    return "None" if hint is type(None) else str(getattr(hint, "__name__", hint))


def sentence(text: str) -> str:
    """A comment as a sentence of its own."""
    text = " ".join(text.split())
    if not text:
        return ""
    first = text.partition(" ")[0]
    # A name that begins it, such as b1 or sorted|shuffled, stays as it is.
    begin = text[0].upper() if re.fullmatch(r"[a-z]+(-[a-z]+)*[,;]?", first) else text[0]
    return begin + text[1:] + ("" if text[-1] in ".:!?" else ".")


def _comments(kind: type) -> dict[str, str]:
    """What stands above and behind each field of one class, by the field's name."""
    source = textwrap.dedent(inspect.getsource(kind))
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    alone: dict[int, str] = {}
    behind: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            where = alone if token.line.lstrip().startswith("#") else behind
            where[token.start[0]] = token.string.lstrip("#").strip()
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            line = node.lineno - 1
            while line in alone:
                above.insert(0, alone[line])
                line -= 1
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            texts = [" ".join(above), *(each[line] for line in lines for each in (alone, behind) if line in each)]
            found[node.target.id] = " ".join(filter(None, texts))
    return found
