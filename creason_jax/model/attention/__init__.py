"""Attention behind one interface that knows the group layout: a kernel for each platform, one meaning."""

from creason_jax.model.attention.choose import group_attention, platform_of
from creason_jax.model.attention.reference import MASKED, decode_attention

__all__ = ["MASKED", "decode_attention", "group_attention", "platform_of"]
