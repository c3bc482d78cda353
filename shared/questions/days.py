"""Days as ISO 8601 writes them."""

from __future__ import annotations

import datetime


def is_day(text: str) -> bool:
    """Whether this is a day such as 2026-11-26."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
