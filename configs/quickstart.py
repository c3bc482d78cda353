"""Quickstart: a small policy learns to answer clinical questions by GRPO, from nothing, on a laptop.

Reproduces the shape of the paper's run, not its size: a synthetic sepsis registry of 2,000 patients, questions about 26
coded features, a policy of 0.6 M parameters that is warmed up on training records, then GRPO with the paper's preset scaled
down, evaluated before and after on 2,000 questions about held-out patients.

    make quickstart
    creason train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from shared.config import grpo_preset


def get_config() -> ConfigDict:
    """The run's configuration; fields and defaults: docs/configuration.md."""
    config = ConfigDict()
    config.name = "quickstart"
    config.seed = 42
    config.data = ConfigDict(
        dict(
            patients=2_000,
            valid_patients=500,
            train_questions=24_000,
            valid_questions=2_000,
            core_features=26,
            core_kind="category",
            context_features=22,
            option_order="sorted",
            balance="none",  # values as often as among patients: what the README's figures were measured with
        )
    )
    config.model = ConfigDict(
        dict(
            vocab_size=2_048,
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            rope_theta=100.0,
            initializer_range=0.08,
        )
    )
    config.warmup = ConfigDict(
        dict(
            steps=800,
            batch_size=32,
            sequence_length=168,
            worked_answers=250,
            worked_fraction=0.03,
            optimizer=dict(learning_rate=2e-3, b2=0.98, warmup_ratio=0.05),
        )
    )
    config.grpo = ConfigDict(grpo_preset("paper") | dict(group_size=8, questions_per_step=64, steps=320))
    config.optimizer = ConfigDict(dict(learning_rate=6e-4))
    config.rollout = ConfigDict(
        dict(temperature=1.0, max_prompt_tokens=168, max_new_tokens=12, slots=64, prefill_batch=64)
    )
    # float32 by name: docs/measurements.md compares both backends on it.
    config.learner = ConfigDict(dict(micro_batch_rows=16, compute_dtype="float32", remat="none"))
    config.evaluation = ConfigDict(dict(slots=256))
    config.torch = ConfigDict(dict(zero_stage=0))  # one process: nothing to shard
    config.checkpoint = ConfigDict(dict(every=50))
    return config
