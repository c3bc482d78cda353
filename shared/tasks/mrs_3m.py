"""The modified Rankin scale 3 months after a stroke, 0 to 6."""

from __future__ import annotations

from shared.tasks.prediction import Target
from shared.tasks.stroke_outcome import MRS, OUTCOME_QUESTIONS, StrokeOutcome

TASK = StrokeOutcome(Target("mrs_3m", MRS, OUTCOME_QUESTIONS[MRS], tuple("0123456")))
