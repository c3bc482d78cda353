"""What is agreed on a checkpoint, so that each backend reads those of the other.

A folder of the PyTorch backend holds `META`, which names the arrays, and for each kind a folder with one flat float32 Zarr array
for each parameter. A folder of the JAX backend is Orbax's; beside its position stand, under `CHECKSUMS`, the checksums of all
values. The bits of each value, read as an integer, are combined with the value's position (`PLACE`) and mixed by the last steps
of MurmurHash3 (`SCATTER`); the results are added modulo 2**32. One changed value is always found; a change of several is missed
once in about 4,000 million times. Arrays that are stacked over layers have one sum for each layer.
"""

from __future__ import annotations

FORMAT = 1  # of the PyTorch backend's folders
META = "meta.json"
PARAMS, MEAN, SQUARE, REFERENCE = "params", "exp_avg", "exp_avg_sq", "reference"  # kinds of arrays; Adam's moments
CHECKSUMS = "checksums"
PLACE = 0x9E3779B1  # multiplies a value's position
SCATTER = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))  # shift right by so many bits, xor, then multiply by that
REMEDY = "remove that folder to go on from the one before"
