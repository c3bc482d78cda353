"""How the original read the letter from an answer that begins with a given text (spec: registry, e)."""

from __future__ import annotations

ENDS = ("Q:", "\n\n", "</s>", ".")


def simplified(prediction: str) -> str:
    """The prediction up to the first `Q:`, blank line, `</s>` or full stop, without blanks at its ends."""
    for end in ENDS:
        prediction = prediction.split(end)[0]
    return prediction.strip()
