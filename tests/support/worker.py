"""One process of a learner under test: does the actions of a JSON file, and writes what came of them.

    python -m tests.support.worker SPEC.json                         one process
    torchrun --nproc-per-node=2 -m tests.support.worker SPEC.json    two

The file holds a list of learners. `actions` of each is a list of [name, argument]: `update` SEED, `sync`, `logprobs`
[SEED, WHICH], `long row` WHICH (its log-probabilities), `tables` null (what of both networks is no parameter), `save` STEP,
`save killed` STEP (in the middle, the hard way), `restore` STEP or null, `export` FOLDER, `same` (what processes say of the
same bytes, and of others).
Process 0 writes `out`.npz (parameters, moments, reference, log-probabilities) and `out`.json (metrics of each update, what
was restored, and how many elements of policy and reference a process holds).
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from creason_torch import zero
from tests.support.groups import LONG_ROW, OPTIMIZER, random_batch
from tests.support.tiny import run_config


def main(specs: list[dict[str, Any]]) -> None:
    """Do the actions of one learner after the other."""
    torch.set_num_threads(1)
    zero.PERSISTENT_PARAMS = 0  # so that even the tiny model's parameters are sharded
    zero.start_processes()
    for spec in specs:
        work(spec)
    dist.barrier()
    zero.end_process(0)


def work(spec: dict[str, Any]) -> None:
    """Do the actions of one learner."""
    from creason_torch.backend import Backend
    from creason_torch.learner.learner import Learner

    config = run_config(
        optimizer=OPTIMIZER | spec.get("optimizer", {}),
        learner={"remat": "none"} | spec.get("learner", {}),
        torch=spec.get("torch", {}),
        grpo=spec.get("grpo", {}),
        rollout=spec.get("rollout", {}),
    )
    learner = Learner(
        config,
        Path(spec["model"]),
        zero.device(),
        optimizer=config.optimizer,
        steps=spec.get("steps", 10),
        reference=spec.get("reference", True),
    )
    networks = [learner.weights, learner.reference_weights]
    held = [sum(param.numel() for param in weights.values()) for weights in networks]
    folder = Path(spec.get("checkpoints", spec["out"] + ".checkpoints"))
    metrics: list[Any] = []
    arrays = {}
    for name, argument in spec["actions"]:
        if name == "update":
            metrics.append(learner.update(random_batch(spec["rows"], seed=argument)))
        elif name == "sync":
            learner.sync_reference()
        elif name == "logprobs":
            seed, which = argument
            arrays[f"logprobs/{seed}/{which}"] = learner.logprobs(random_batch(spec["rows"], seed=seed), which)
        elif name == "long row":
            arrays[f"long row/{argument}"] = learner.logprobs(random_batch(1, layout=LONG_ROW), argument)
        elif name == "tables":
            for who, network in (("policy", learner.engine), ("reference", learner.reference)):
                for key, table in network.named_buffers():
                    arrays[f"tables/{who}/{key.split('.')[-1]}"] = table.float().numpy()
                    metrics.append(str(table.dtype))
        elif name == "save":
            learner.save(folder, argument, {"position": argument * 7})
        elif name == "save killed":
            learner._manager(folder).save(argument, killed(learner._state()), {})
        elif name == "restore":
            found = learner.restore(folder, argument)
            metrics.append(None if found is None else [found[0], found[1]["position"]])
        elif name == "export":
            learner.export(Path(argument))
        elif name == "same":
            backend = Backend(config)
            metrics.append([backend.same(b"digest"), backend.same(b"digest" + bytes([backend.process]))])
    for kind, key, value in learner._state() if learner.step else ():
        arrays[f"{kind}/{key}"] = value.float().cpu().numpy()
    if dist.get_rank() == 0:
        np.savez(spec["out"] + ".npz", **arrays)
        Path(spec["out"] + ".json").write_text(json.dumps({"metrics": metrics, "held": held}))


def killed(state: Iterator[Any]) -> Iterator[Any]:
    """The beginning of a stream; then the process ends, the hard way."""
    yield from itertools.islice(state, 9)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
