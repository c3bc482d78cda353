"""Peak rates and memory of the chips of each TPU generation, for estimates of time."""

from __future__ import annotations

import dataclasses

from shared.errors import InputError
from shared.runs.memory import GIB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as JAX counts them. Source: cloud.google.com/tpu/docs, the "system architecture" page of each generation."""

    flops: float  # bfloat16 operations per second
    hbm_bandwidth: float  # bytes per second
    ici_bandwidth: float  # bytes per second that a chip sends over the two links along one axis of the torus
    hbm: float  # bytes that a program may use, as the compiler's "out of memory" error gives them


# Published per chip: bf16 TFLOP/s, HBM GB/s, and inter-chip interconnect Gbit/s over all links. A mesh axis is a ring over
# the two links of one torus axis: a third of a 3D torus's links (v4, v5p), half of a 2D torus's (v5e, v6e).
CHIPS = {
    # Per chip: 275 TFLOP/s, 1,228 GB/s, 2,400 Gbit/s. The compiler counts the chip's two cores as two devices.
    "v4": Chip(flops=137.5e12, hbm_bandwidth=614e9, ici_bandwidth=50e9, hbm=15.25 * GIB),
    "v5e": Chip(flops=197e12, hbm_bandwidth=819e9, ici_bandwidth=100e9, hbm=15.75 * GIB),
    "v5p": Chip(flops=459e12, hbm_bandwidth=2_765e9, ici_bandwidth=200e9, hbm=95.73 * GIB),
    "v6e": Chip(flops=918e12, hbm_bandwidth=1_640e9, ici_bandwidth=224e9, hbm=31.24 * GIB),
}
# Slices that are offered of each generation, smallest first. A search tries them in this order.
SHAPES = {
    "v4": ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8"),
    "v5e": ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    "v6e": ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as `v5p:4x4x4`. Raises InputError for a generation that is not in the table."""
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise InputError(f"topology {topology!r}: no figures for {generation!r}; there are {', '.join(CHIPS)}")
    return CHIPS[generation]
