"""How a section of the config refuses a value: one line that names the field, its value and the reason."""

from __future__ import annotations

import datetime
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


def is_day(text: str) -> bool:
    """Whether this is a day as ISO 8601 writes it, such as 2026-11-26."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
