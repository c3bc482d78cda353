from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shared.config import ModelConfig
from shared.policy.families import FAMILIES
from shared.policy.initial import random_weights, write_model

MODEL = ModelConfig(
    hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
    initializer_range=0.05,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_what_is_written(tmp_path, family, tied):
    model = ModelConfig(
        hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        tie_word_embeddings=tied, family=family,
    )  # fmt: skip
    write_model(model, tmp_path, vocab_size=310, bos=1, eos=3, pad=0, seed=5)
    network, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(report.values()), report
    config = network.config
    assert config.model_type == family
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.vocab_size) == (1, 3, 0, 310)
    assert (network.lm_head.weight is network.model.embed_tokens.weight) == tied
    stored = random_weights(model, 310, 5)
    for name, weight in network.named_parameters():
        np.testing.assert_array_equal(weight.detach().numpy(), stored[name])
        assert not name.endswith("bias") or (stored[name] == 0).all()


def test_weights_have_the_spread_of_the_config_and_depend_on_seed_and_name_alone():
    found, again, other = (random_weights(MODEL, 310, seed) for seed in (5, 5, 6))
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, again[name])
        if "norm" in name:
            assert (values == 1).all()
        else:
            assert values.std() == pytest.approx(0.05, rel=0.05)
            assert abs(values.mean()) < 0.002
            assert not np.array_equal(values, other[name])
    first, second = (found[f"model.layers.{layer}.self_attn.qkv_proj.weight"] for layer in (0, 1))
    assert not np.array_equal(first, second)
    larger = random_weights(ModelConfig(**{**MODEL.__dict__, "num_hidden_layers": 3}), 310, 5)
    assert all(np.array_equal(larger[name], values) for name, values in found.items())
