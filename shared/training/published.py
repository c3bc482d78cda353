"""After every publish: does the engine hold the learner's weights? Its version and rows of its tensors, read back, show it.

A difference of log-probabilities would not show it: one update at a learning rate of 1e-6 changes them less than rounding does.
So rows of a few tensors are compared bit by bit (SHA-256 of their bytes, in the engine's number format). The tensors change with
the step, so that each gets its turn. In bfloat16 such an update changes about 1 in 100 weights, so a row of some hundred weights
is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shared.backend import Learner, Probe, RolloutEngine
from shared.errors import SyncError
from shared.randomness import generator

TENSORS = 4  # compared after a publish
ROWS = 16  # of each tensor


def publish(learner: Learner, engine: RolloutEngine, *, any_process: Callable[[bool], bool] = bool) -> None:
    """Publish the learner's weights to the engine and check that it holds them. Every process calls it.

    Raises SyncError, in every process, where the engine holds another version or other weights. `any_process` is the backend's.
    """
    learner.publish(engine)
    what_differs = difference(learner, engine)
    if any_process(bool(what_differs)):
        raise SyncError(
            f"step {learner.step}: {what_differs or 'in another process the engine holds other weights than the learner'}; its "
            "completions would be another model's; start again from the last checkpoint with another engine "
            "(torch.rollout_engine), or report this one"
        )


def difference(learner: Learner, engine: RolloutEngine) -> str:
    """In words, how the engine's weights differ from the learner's; "" where they do not."""
    if engine.version != learner.step:
        return f"the engine holds the weights of step {engine.version}, the learner those of step {learner.step}"
    probes = probes_of(engine.readable(), learner.step, whole=engine.whole_tensors)
    if not probes:
        return "no tensor can be read back from the engine, so nobody knows what it holds"
    pairs = zip(probes, engine.digests(probes), learner.digests(probes), strict=True)
    differing = [probe.name for probe, theirs, ours in pairs if theirs != ours]
    if not differing:
        return ""
    return f"the engine's {', '.join(differing)} {'is' if len(differing) == 1 else 'are'} not the learner's"


def probes_of(readable: Mapping[str, int], step: int, *, whole: bool) -> list[Probe]:
    """Some tensors, spread over the list of their names, and some rows of each (all where `whole`): others at each `step`.

    `readable` has the number of rows of each tensor that can be read back.
    """
    names = sorted(readable)
    count = min(TENSORS, len(names))
    places = sorted({(step + index * len(names) // max(1, count)) % len(names) for index in range(count)})
    return [
        Probe(names[place], None if whole else _rows(names[place], readable[names[place]], step)) for place in places
    ]


def _rows(name: str, size: int, step: int) -> tuple[int, ...]:
    """At most `ROWS` of `size` rows. They are drawn: at equal distances some rows might never be chosen with their tensor."""
    rows = generator(step, "published", name).choice(size, min(ROWS, size), replace=False)
    return tuple(sorted(int(row) for row in rows))
