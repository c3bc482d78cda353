"""How a section of the config refuses a value: one line that names the field, its value and the reason."""

from __future__ import annotations

from typing import Any

from shared.errors import InputError


def check(condition: bool, field: str, value: Any, reason: str) -> None:
    """Raise InputError naming `field`, its value and the reason, unless `condition` holds."""
    if not condition:
        raise InputError(f"{field} = {value!r}: {reason}")


def at_least(config: Any, minimum: float, *fields: str) -> None:
    """Check that each of `fields` is at least `minimum`."""
    for field in fields:
        check(getattr(config, field) >= minimum, field, getattr(config, field), f"must be at least {minimum}")
