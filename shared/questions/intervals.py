"""How sure the intervals are that are shown: of what a guesser reaches on questions, and of every figure of an evaluation."""

CONFIDENCE = 0.95
