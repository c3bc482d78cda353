"""One table of longrope's factors for a whole run: rows do not depend on their neighbours, nor on how they are split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from creason_torch.model import attention
from creason_torch.model.decoder import build_network, long_factors
from creason_torch.rollout import make_engine
from shared.backend import Sampling
from shared.grpo import GroupLayout
from tests.support.families import SWITCH, tiny_variant
from tests.support.tiny import run_config

LIMIT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A longrope model, and Hugging Face's own network of it."""
    path = tmp_path_factory.mktemp("model")
    network = tiny_variant("phi4 mini").eval()
    network.save_pretrained(path)
    return path, network


def some_tokens(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(4, 320, length)


def long_states(network, tokens: np.ndarray) -> torch.Tensor:
    """Hugging Face's final states with its long factors: padded on the right, where nothing before looks."""
    padded = torch.tensor(np.pad(tokens, (0, SWITCH + 1), constant_values=5))[None]
    with torch.no_grad():
        return network.model(padded, use_cache=False).last_hidden_state[0, : len(tokens)]


@pytest.mark.parametrize("longest", [SWITCH, SWITCH + 1])
def test_a_row_is_rotated_by_the_runs_limit_whatever_stands_beside_it(folder, longest):
    path, theirs = folder
    network = build_network(path, torch.float32, longest=longest).eval()
    network.load_state_dict(theirs.state_dict())
    short, other = some_tokens(12), some_tokens(longest)
    with torch.no_grad():
        expected = theirs.model(torch.tensor(short)[None], use_cache=False).last_hidden_state[0]
    if long_factors(theirs.config, longest):
        apart = long_states(theirs, short)
        assert (apart - expected).abs().max() > 0.01
        expected = apart

    def states(rows: list[np.ndarray]) -> torch.Tensor:
        width = max(map(len, rows))
        tokens = torch.tensor(np.stack([np.pad(row, (0, width - len(row))) for row in rows]))
        valid = torch.tensor([[place < len(row) for place in range(width)] for row in rows])
        layout = GroupLayout(prompt=width, group=0, completion=0)
        with torch.no_grad():
            return network.model(
                input_ids=tokens,
                position_ids=torch.arange(width).expand_as(tokens),
                use_cache=False,
                group_layout=layout,
                valid=valid,
            ).last_hidden_state[0, : len(rows[0])]

    assert network.config._attn_implementation == attention.NAME
    for rows in ([short], [short, other]):
        np.testing.assert_allclose(states(rows), expected, rtol=0, atol=1e-5)


def test_completions_that_cross_the_switch_are_scored_with_the_factors_that_drew_them(folder):
    path, theirs = folder
    config = run_config(
        rollout={"max_prompt_tokens": SWITCH - 2, "max_new_tokens": LIMIT}, torch={"rollout_engine": "hf"}
    )
    engine = make_engine(config, path, stop_tokens=[3], device=torch.device("cpu"))
    engine.load((dict(theirs.named_parameters()) | {"lm_head.weight": theirs.lm_head.weight}).items())
    prompts = [some_tokens(length).astype(np.int32) for length in (SWITCH - 2, 5)]
    found = engine.generate(prompts, Sampling(group_size=1, temperature=0.0, max_new_tokens=LIMIT), None)
    for prompt, (completion,) in zip(prompts, found, strict=True):
        whole = np.concatenate([prompt, completion.tokens]).astype(np.int64)
        with torch.no_grad():
            law = theirs.lm_head(long_states(theirs, whole)).log_softmax(-1).numpy()
        expected = law[np.arange(len(prompt) - 1, len(whole) - 1), completion.tokens]
        np.testing.assert_allclose(completion.logprobs, expected, rtol=0, atol=1e-5)
