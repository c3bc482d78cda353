"""Names of a model's weights in vLLM's network, which fuses some of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

# vLLM's name of a matrix -> the Hugging Face matrices whose rows it holds, in this order.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
EMPTY = hashlib.sha256(
    b""
).hexdigest()  # the digest of a weight that vLLM has packed and then freed, as it does on CPUs
PADDED_TO = 64  # the number of rows of vLLM's embedding is a multiple of this


def unfused(name: str, names_known: Collection[str]) -> tuple[str, ...]:
    """The Hugging Face names of the weights that vLLM keeps under `name`, in the order of their rows; () for none.

    `names_known`: the Hugging Face names of all weights of the model.
    """
    if name in names_known:
        return (name,)
    for fused, parts in FUSED.items():
        names = tuple(name.replace(f".{fused}.", f".{part}.") for part in parts)
        if f".{fused}." in name and all(part in names_known for part in names):
            return names
    return ()


def whole_digests(workers: Iterable[Mapping[str, str]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Weight -> digest, from the digests of a server's workers (`rank:name` -> digest); only for weights that are kept whole.

    Where several workers share the model, matrices are split and only vectors are whole. Biases are left out: some CPU kernels
    keep them in float32.
    """
    digests: dict[str, set[str]] = {}
    workers = list(workers)
    for worker in workers:
        for name, digest in worker.items():
            digests.setdefault(name.rpartition(":")[2], set()).add(digest)
    split = len({name.rpartition(":")[0].rpartition(":")[2] for worker in workers for name in worker}) > 1

    def is_whole(name: str) -> bool:
        shape = shapes[name]
        padded = name.endswith(("embed_tokens.weight", "lm_head.weight")) and shape[0] % PADDED_TO
        return not padded and (len(shape) == 1 or not split)

    # Workers that hold the same weight must have the same digest. If they differ, the joined text equals no learner's digest.
    return {
        name: " and ".join(sorted(of_workers))
        for name, of_workers in digests.items()
        if name in shapes and is_whole(name) and EMPTY not in of_workers and not name.endswith(".bias")
    }
