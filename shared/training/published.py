"""After every publish: does the engine hold the learner's weights? Its version, and rows of its tensors read back, say so.

A gap of log-probabilities does not: one update at a learning rate of 1e-6 moves them less than rounding does. The rows of a few
tensors are compared bit by bit (SHA-256 of their bytes, in the engine's number format); which ones changes with the step, so
that all tensors get their turn. In bfloat16 such an update changes about 1 in 100 weights: each row of some hundred weights is
enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shared.backend import Learner, Probe, RolloutEngine
from shared.errors import SyncError
from shared.randomness import generator

TENSORS = 4  # compared after a publish
ROWS = 16  # of each


def publish(learner: Learner, engine: RolloutEngine, *, any_process: Callable[[bool], bool] = bool) -> None:
    """Publish the learner's weights to the engine and see that they are there. Every process calls it.

    Raises SyncError, in every process, where the engine holds another version or other weights. `any_process` is the backend's.
    """
    learner.publish(engine)
    wrong = difference(learner, engine)
    if any_process(bool(wrong)):
        raise SyncError(
            f"step {learner.step}: {wrong or 'in another process the engine holds other weights than the learner'}; its "
            "completions would be another model's; start again from the last checkpoint with another engine "
            "(torch.rollout_engine), or report this one"
        )


def difference(learner: Learner, engine: RolloutEngine) -> str:
    """In words, how what the engine holds differs from the learner's weights; "" where it does not."""
    if engine.version != learner.step:
        return f"the engine holds the weights of step {engine.version}, the learner those of step {learner.step}"
    probes = chosen(engine.readable(), learner.step, whole=engine.whole_tensors)
    if not probes:
        return "no tensor can be read back from the engine, so nobody knows what it holds"
    pairs = zip(probes, engine.digests(probes), learner.digests(probes), strict=True)
    apart = [probe.name for probe, theirs, ours in pairs if theirs != ours]
    return f"the engine's {', '.join(apart)} {'is' if len(apart) == 1 else 'are'} not the learner's" if apart else ""


def chosen(readable: Mapping[str, int], step: int, *, whole: bool) -> list[Probe]:
    """Some tensors, spread over all in order of their names, and some rows of each: other ones at each `step`."""
    names = sorted(readable)
    count = min(TENSORS, len(names))
    places = sorted({(step + index * len(names) // max(1, count)) % len(names) for index in range(count)})
    return [
        Probe(names[place], None if whole else _rows(names[place], readable[names[place]], step)) for place in places
    ]


def _rows(name: str, size: int, step: int) -> tuple[int, ...]:
    """At most `ROWS` rows of `size`. Drawn: at even steps some would never meet the steps at which the tensor is looked at."""
    found = generator(step, "published", name).choice(size, min(ROWS, size), replace=False)
    return tuple(sorted(int(row) for row in found))
