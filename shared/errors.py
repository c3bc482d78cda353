"""What launchers turn into one clear line: bad input (exit code 2) and a run that must not go on (exit code 1)."""

REASON_LENGTH = 200  # characters of a library's message that are shown


class InputError(ValueError):
    """Bad input or configuration. The message is one line that names the thing and the fix."""


class TrainingError(RuntimeError):
    """A run that must not go on. The message is one line that says why and what to do."""


class SyncError(TrainingError):
    """The rollout engine and the learner disagree: log-probabilities by more than the bound, or weights."""


def reason(error: BaseException) -> str:
    """What a library says in an error, in one line of at most `REASON_LENGTH` characters; its kind where it says nothing."""
    return " ".join(str(error).split())[:REASON_LENGTH] or type(error).__name__
