"""The --config flag: a Python file. Every field of the config, also one that the file leaves out, can be set by a flag."""

from __future__ import annotations

import dataclasses
import runpy
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from shared.config import RunConfig
from shared.errors import InputError

# Exceptions of a config file's code. The file is a program; a mistake in it is reported in one line, without a traceback.
MISTAKES = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
)


class ConfigFile(flags.ArgumentParser):
    """Parses `FILE` or `FILE:ARGUMENT`; the argument is passed to the file's `get_config`."""

    def __init__(self, sections: type | None, documented: Callable[[], type | None]):
        self.sections = sections
        self.documented = documented

    def parse(self, argument: str) -> ConfigDict:
        """The config of the file. Raises InputError that says what is wrong with the file."""
        return load(argument, self.sections)

    def flag_type(self) -> str:
        """See `flags.ArgumentParser`."""
        return "config file"


def define(
    name: str, sections: type | None = RunConfig, *, documented: Callable[[], type | None] | None = None
) -> None:
    """Define the flag `name`, and a flag --name.section.field for each field of the dataclass `sections`.

    `documented` returns the dataclass whose fields `--help` explains; default: `sections`.
    """
    # Not locked, so that a field which the file leaves out can be set. `validate` refuses names that are not fields.
    config_flags.DEFINE_config_file(
        name, None, "Config file, e.g. configs/quickstart.py.", lock_config=False, accept_new_attributes=True
    )
    flags.FLAGS[name].parser = ConfigFile(sections, documented or (lambda: sections))


def overrides(name: str) -> list[str]:
    """The fields of the config flag `name` that are set on the command line, e.g. `grpo.beta`."""
    return list(config_flags.get_override_values(flags.FLAGS[name]))


def load(argument: str, sections: type | None = RunConfig) -> ConfigDict:
    """The config that a file's `get_config` returns, with an empty section for each section of `sections` that it leaves out.

    `argument` is `FILE` or `FILE:ARGUMENT`. Raises InputError that says what is wrong with the file.
    """
    path, colon, rest = argument.partition(":")
    if not Path(path).is_file():
        raise InputError("no such file")
    try:
        names = runpy.run_path(path)
        if "get_config" not in names:
            raise InputError("it defines no get_config()")
        config = names["get_config"](*([rest] if colon else []))
    except InputError:
        raise
    except MISTAKES as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"line {lines[-1]}: " if lines else ""
        raise InputError(f"{where}{type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"get_config() must return a ConfigDict, not a {type(config).__name__}")
    config.unlock()
    if sections is not None:
        _add_sections(config, sections)
    return config


def _add_sections(config: ConfigDict, kind: type) -> None:
    hints: dict[str, Any] = typing.get_type_hints(kind)
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            if name not in config:
                config[name] = ConfigDict()
            if isinstance(config[name], ConfigDict):
                _add_sections(config[name], typing.cast(type, hint))
