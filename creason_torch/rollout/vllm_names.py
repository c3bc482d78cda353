"""Where the weights of a model directory are in vLLM's network, which fuses some of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

# vLLM's name of a matrix -> the matrices whose rows it holds, one after the other.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
EMPTY = hashlib.sha256(b"").hexdigest()  # of a weight that vLLM packed and then dropped, as it does on CPUs
PADDED_TO = 64  # vLLM's embedding has a multiple of so many rows


def unfused(name: str, known: Collection[str]) -> tuple[str, ...]:
    """The weights, of those that are `known`, that vLLM keeps under `name`, in the order of their rows; () for none."""
    if name in known:
        return (name,)
    for fused, parts in FUSED.items():
        names = tuple(name.replace(f".{fused}.", f".{part}.") for part in parts)
        if f".{fused}." in name and all(part in known for part in names):
            return names
    return ()


def whole_digests(workers: Iterable[Mapping[str, str]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Digests by weight from what a server's workers say (`rank:name` -> digest), of those kept whole under their own name.

    Where several workers split the model, matrices are split and only vectors are whole. Biases are left out: some kernels
    of CPUs keep them in float32.
    """
    found: dict[str, set[str]] = {}
    workers = list(workers)
    for worker in workers:
        for name, digest in worker.items():
            found.setdefault(name.rpartition(":")[2], set()).add(digest)
    split = len({name.rpartition(":")[0].rpartition(":")[2] for worker in workers for name in worker}) > 1

    def is_whole(name: str) -> bool:
        shape = shapes[name]
        padded = name.endswith(("embed_tokens.weight", "lm_head.weight")) and shape[0] % PADDED_TO
        return not padded and (len(shape) == 1 or not split)

    # Workers that hold the same weight must agree; where they do not, no learner's digest is theirs.
    return {
        name: " and ".join(sorted(each))
        for name, each in found.items()
        if name in shapes and is_whole(name) and EMPTY not in each and not name.endswith(".bias")
    }
