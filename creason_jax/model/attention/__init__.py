"""Attention over the group layout behind one interface, with a kernel for each platform; all compute the same."""

from creason_jax.model.attention.choose import group_attention, platform_of
from creason_jax.model.attention.reference import MASKED, decode_attention

__all__ = ["MASKED", "decode_attention", "group_attention", "platform_of"]
