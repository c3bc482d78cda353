"""One model twice: Transformers' and the JAX backend's, from the same folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from transformers import PreTrainedModel

from creason_jax import model as ours
from creason_jax.model import DecoderConfig
from shared.errors import InputError
from tests.support.families import tiny_variant
from tests.support.tiny import tiny_phi3

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model of Transformers, and its folder as the JAX backend reads it."""

    name: str
    folder: Path
    torch: PreTrainedModel
    config: DecoderConfig
    params: Any


def load_whole(folder: Path, **options: Any) -> tuple[DecoderConfig, Any]:
    """Configuration and parameters on one device."""
    config = DecoderConfig.read(folder)
    shardings = jax.tree.map(lambda _: ONE, ours.abstract_params(config))
    return config, ours.load_params(folder, config, shardings, **options)


def phi3_pair(folder: Path, **overrides: Any) -> Pair:
    """A `tiny_phi3` with these fields."""
    network = tiny_phi3(folder, **overrides)
    return Pair("phi3", folder, network, *load_whole(folder))


def variant_pair(folder: Path, variant: str, **overrides: Any) -> Pair:
    """A `tiny_variant` with these fields."""
    network = tiny_variant(variant, **overrides).eval()
    network.save_pretrained(folder)
    return Pair(variant, folder, network, *load_whole(folder))


def error_of(action: Callable[[], Any]) -> str:
    """The one line that a refused action is answered with."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message
