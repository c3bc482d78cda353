"""What a piece of code makes and keeps: the shape of every tensor, and the shapes stored for the backward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded(TorchDispatchMode):
    """`with Recorded() as made:` around the forward and the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, ...]] = []
        self.kept: list[tuple[int, ...]] = []
        self._hooks = saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def __enter__(self) -> Recorded:
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.made += [tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        return result

    def largest(self, *, of: int | None = None) -> int:
        """Elements of the largest tensor made, or of the largest with a dimension of size `of`."""
        return max(math.prod(shape) for shape in self.made if of is None or of in shape)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.kept.append(tuple(tensor.shape))
        return tensor
