"""Names of the mesh's axes, for what lays arrays out over them."""

from __future__ import annotations

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # rows of a batch are split over both
TENSOR = "tensor"  # heads, feed-forward width and vocabulary
