"""Every family and variant on this backend's attention and head against Hugging Face's own, far into a long row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from creason_torch.model import attention
from creason_torch.model.decoder import build_network, load_weights
from shared.grpo import GroupLayout
from tests.support.families import VARIANTS, tiny_variant

pytestmark = pytest.mark.slow

LENGTH = 2_000
FAR = 14_001  # a position at which the row may begin


@pytest.fixture(scope="module", params=VARIANTS)
def networks(request, tmp_path_factory) -> tuple[PreTrainedModel, Path]:
    """Hugging Face's network of a variant, and its folder."""
    folder = tmp_path_factory.mktemp("model")
    theirs = tiny_variant(request.param).eval()
    theirs.save_pretrained(folder)
    return theirs, folder


def built(folder: Path) -> PreTrainedModel:
    """This backend's network of a folder, with the weights that are stored in it."""
    ours = build_network(folder, torch.float32, longest=FAR + LENGTH).eval()
    assert ours.config._attn_implementation == attention.NAME
    with torch.no_grad():
        load_weights(folder, dict(ours.named_parameters()), lambda param, value: param.copy_(value))
    return ours


@pytest.mark.parametrize("start", [0, FAR])
def test_long_rows_and_far_positions_equal_hugging_face(networks, start):
    theirs, folder = networks
    ours = built(folder)
    tokens = torch.tensor(np.random.default_rng(LENGTH).integers(4, 320, (1, LENGTH)))
    positions = start + torch.arange(LENGTH)[None]
    with torch.no_grad():
        expected = theirs(tokens, position_ids=positions, use_cache=False).logits
        hidden = ours.model(
            input_ids=tokens,
            position_ids=positions,
            use_cache=False,
            group_layout=GroupLayout(prompt=LENGTH, group=0, completion=0),
            valid=torch.ones(1, LENGTH, dtype=torch.bool),
        ).last_hidden_state
        found = ours.lm_head(hidden)
    assert expected.std() > 0.3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
