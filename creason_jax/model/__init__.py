"""The policy network: a dense decoder, and its Hugging Face form on disk."""

from creason_jax.model.attention import decode_attention, group_attention, platform_of
from creason_jax.model.config import DecoderConfig
from creason_jax.model.decoder import Spread, abstract_params, forward, head, layer_forward, normed, unstacked_forward
from creason_jax.model.rotary import rotary
from creason_jax.model.stacking import stack_layers, unstack_layers
from creason_jax.model.weights import StoredParams, gather_params, load_params, read_params, save_params

__all__ = [
    "DecoderConfig",
    "Spread",
    "StoredParams",
    "abstract_params",
    "decode_attention",
    "forward",
    "gather_params",
    "group_attention",
    "head",
    "layer_forward",
    "load_params",
    "normed",
    "platform_of",
    "read_params",
    "rotary",
    "save_params",
    "stack_layers",
    "unstack_layers",
    "unstacked_forward",
]
