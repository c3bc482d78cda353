"""Names of the mesh axes."""

from __future__ import annotations

AXES = ("data", "fsdp", "tensor")
FSDP = "fsdp"  # parameters and optimizer state are split over it
BATCH = ("data", FSDP)  # rows of a batch are split over both
TENSOR = "tensor"  # heads, feed-forward width and vocabulary are split over it
