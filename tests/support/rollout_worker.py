"""One process of a run: draws completions together with the others, and writes what it was given back.

torchrun --nproc-per-node=2 -m tests.support.rollout_worker ENGINE MODELS OUT OPTIONS

OPTIONS is JSON for the configuration's section `torch`, or null.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from creason_torch import zero
from tests.support import rollouts


def main(kind: str, models: Path, out: Path, torch_options: dict[str, Any] | None) -> None:
    """Join the processes, draw, and use the process group once more."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = rollouts.make_world(models)
    engine = world.engine(kind, torch_options=torch_options)
    found = engine.generate(world.prompts, rollouts.SAMPLED, world.uniforms)
    single = engine.generate(world.prompts[:1], rollouts.SAMPLED, world.uniforms[:1])  # fewer than processes
    rollouts.assert_same(single, found[:1])
    rollouts.check_next_tokens(world, engine)
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == dist.get_world_size()
    rollouts.write(out / f"{dist.get_rank()}.npz", found)
    dist.barrier()
    zero.end_process(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
