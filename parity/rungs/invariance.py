"""Rung 8: inside each backend the cut of a batch changes nothing: rows, micro-batches, chunks, devices; float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from parity.check import Check, largest_distance, largest_relative
from parity.sides import Side, gradient, run_config
from parity.world import Case, World
from shared import grpo

BOUND = 1e-5
# The same 35 completions, one of them masked: rows of seven or of one, so many to a micro-batch.
CUTS: dict[str, tuple[bool, dict[str, dict[str, Any]]]] = {
    "1 x 35": (False, {"learner": {"micro_batch_rows": 35}}),
    "7 x 5": (False, {"learner": {"micro_batch_rows": 5}}),
    "35 x 1": (False, {"learner": {"micro_batch_rows": 1}}),
    "5 x 1 group": (True, {"learner": {"micro_batch_rows": 1}}),
    "padded micro-batches of 2 groups": (True, {"learner": {"micro_batch_rows": 2}}),
    "chunks of 7 tokens": (True, {"learner": {"logprob_chunk": 7}}),
    "layers computed again": (True, {"learner": {"remat": "layer"}}),
}
MESH = {"mesh_data": 2, "mesh_fsdp": 2, "mesh_tensor": 2}


def checks(world: World) -> Iterator[Check]:
    """Gradient and logged norm of every cut against those of whole groups at once."""
    case = world.case()
    for side in world.sides:
        expected = _update(side, case, grouped=True, sections={})
        cuts = dict(CUTS)
        if side.name == "jax" and len(jax.devices()) >= 8:
            cuts["8 devices"] = (True, {"jax": MESH})
        for name, (grouped, sections) in cuts.items():
            found = _update(side, case, grouped=grouped, sections=sections)
            measured = largest_distance(found[0], expected[0])
            yield Check.of(
                "invariance", f"gradient, {name}, {side.name}", case.family, "groups at once", measured, BOUND
            )
            measured = largest_relative({"grad_norm": found[1]}, {"grad_norm": expected[1]})
            yield Check.of("invariance", f"norm, {name}, {side.name}", case.family, "groups at once", measured, BOUND)


def _update(
    side: Side, case: Case, *, grouped: bool, sections: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], float]:
    batch = case.batch()
    if not grouped:
        batch = grpo.separate_rows(batch)
    # Normalised by tokens: a mean of micro-batches' means is not the batch's mean.
    made = side.learner(run_config(grpo={"loss": "bnpo"}, **sections), case.folder, steps=1)
    metrics = made.update(batch)
    return gradient(side, made), metrics["grad_norm"]
