"""Major adverse cardiovascular events within a year of a stroke, yes or no."""

from __future__ import annotations

from shared.tasks.prediction import Target
from shared.tasks.stroke_outcome import MACE, OUTCOME_QUESTIONS, StrokeOutcome

TASK = StrokeOutcome(Target("mace_1y", MACE, OUTCOME_QUESTIONS[MACE], ("No", "Yes")))
