"""How the original read the letter out of a forced answer (spec: registry, e)."""

from __future__ import annotations

ENDS = ("Q:", "\n\n", "</s>", ".")


def simplified(prediction: str) -> str:
    """The prediction up to the first of `Q:`, a blank line, `</s>` or a full stop, without blanks around it."""
    for end in ENDS:
        prediction = prediction.split(end)[0]
    return prediction.strip()
