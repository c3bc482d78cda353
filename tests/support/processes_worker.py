"""Everything that a learner and an engine do, on eight devices: of this process, or of two that the test starts.

    python -m tests.support.processes_worker PORT PROCESS MODEL FOLDER

`FOLDER/by_one` holds a checkpoint of one process. Each process writes what it found to `FOLDER/found.PROCESS.npz` and `.json`;
checkpoint and exported model are theirs together.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from creason_jax import distributed
from creason_jax.backend import Backend
from shared.backend import Sampling
from shared.config import validate
from tests.support.groups import OPTIMIZER, random_batch

LIMIT, GROUP, PROMPTS = 8, 2, 5
SETTINGS = {
    "name": "tiny",
    "grpo": {"group_size": GROUP, "questions_per_step": 2, "steps": 4},
    "optimizer": OPTIMIZER,
    # fsdp and with it every parameter is spread over both processes, and rows over all four of its parts.
    "jax": {"mesh_data": 1, "mesh_fsdp": 4, "mesh_tensor": 2},
    "learner": {"micro_batch_rows": 4, "remat": "none", "compute_dtype": "float32", "logprob_chunk": 16},
    "rollout": {"max_prompt_tokens": 16, "max_new_tokens": LIMIT, "slots": 4, "prefill_batch": 4, "decode_steps": 3},
}
GREEDY = Sampling(group_size=1, temperature=0.0, max_new_tokens=LIMIT)
SAMPLED = Sampling(group_size=GROUP, temperature=0.9, max_new_tokens=LIMIT)
ROWS = 6  # of which the last micro-batch has two, and two that are empty


def do_all(model: Path, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the figures found; writes `folder/checkpoints` and `folder/exported`."""
    config = validate(SETTINGS)
    backend = Backend(config)
    learner = backend.learner(config, model, optimizer=config.optimizer, steps=10, reference=True)
    arrays: dict[str, np.ndarray] = {}
    arrays["logprobs before"] = learner.logprobs(random_batch(ROWS, seed=9), "policy")
    metrics = [learner.update(random_batch(ROWS, seed=0))]
    learner.sync_reference()
    metrics.append(learner.update(random_batch(ROWS, seed=1)))
    learner.save(folder / "checkpoints", 2, {"position": 12})
    metrics.append(learner.update(random_batch(ROWS, seed=2)))
    learner.finish_saves()
    for which in ("policy", "reference"):
        arrays[f"logprobs {which}"] = learner.logprobs(random_batch(ROWS, seed=9), which)
    learner.export(folder / "exported")
    arrays |= generated(backend, learner, config, model)
    restored = learner.restore(folder / "checkpoints")
    again = learner.update(random_batch(ROWS, seed=2))
    figures = {"metrics": metrics, "again": again, "restored": restored}
    figures["any_process"] = [backend.any_process(flag) for flag in (backend.process == 1, False, True)]
    figures["same"] = [backend.same(b"digest"), backend.same(b"digest" + bytes([backend.process]))]
    figures["least"] = distributed.least(2**31 - 2 + backend.process)
    held = [leaf.addressable_shards for leaf in jax.tree.leaves(learner.state.params)]
    figures["held"] = sum(shard.data.size for shards in held for shard in shards if shard.replica_id == 0)
    return arrays, figures


def generated(backend: Backend, learner: Any, config: Any, model: Path) -> dict[str, np.ndarray]:
    """Tokens and log-probabilities, greedy and drawn, with the learner's weights and with those on disk."""
    engine = backend.engine(config, model, stop_tokens=(3, 7, 11))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 60, length).astype(np.int32) for length in rng.integers(1, 17, PROMPTS)]
    numbers = rng.random((PROMPTS, GROUP, LIMIT), np.float32)
    learner.publish(engine)
    found = {"greedy": engine.generate(prompts, GREEDY, None), "drawn": engine.generate(prompts, SAMPLED, numbers)}
    backend.load(engine, model)
    found["stored"] = engine.generate(prompts, GREEDY, None)
    return {
        f"{name} {what}": np.concatenate([getattr(completion, what) for group in groups for completion in group])
        for name, groups in found.items()
        for what in ("tokens", "logprobs")
    }


def main(port: str, process: str, model: Path, folder: Path) -> None:
    """One of two processes."""
    assert distributed.start(f"127.0.0.1:{port}", 2, int(process))
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 8, 4)
    arrays, figures = do_all(model, folder)
    config = validate(SETTINGS)
    learner = Backend(config).learner(config, model, optimizer=config.optimizer, steps=10, reference=True)
    figures["of one"] = [learner.restore(folder / "by_one"), learner.update(random_batch(ROWS, seed=2))]
    np.savez(folder / f"found.{process}.npz", **arrays)
    (folder / f"found.{process}.json").write_text(json.dumps(figures))
    distributed.barrier()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
