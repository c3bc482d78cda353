"""Quickstart."""

from ml_collections import ConfigDict

from shared.config import grpo_preset


def get_config() -> ConfigDict:
    """The run's configuration; fields and defaults: shared/config.py."""
    config = ConfigDict()
    config.name = "quickstart"
    config.seed = 42
    config.data = ConfigDict(
        dict(patients=2_000, valid_patients=500, train_questions=24_000, valid_questions=2_000, context_features=20)
    )
    config.model = ConfigDict(
        dict(vocab_size=3_072, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4)
    )
    config.warmup = ConfigDict(
        dict(
            steps=400,
            batch_size=32,
            sequence_length=232,
            worked_answers=4_000,
            optimizer=dict(learning_rate=2e-3, b2=0.95, warmup_ratio=0.05),
        )
    )
    config.grpo = ConfigDict(grpo_preset("paper") | dict(group_size=8, questions_per_step=64, steps=100))
    config.optimizer = ConfigDict(dict(learning_rate=3e-4))
    config.rollout = ConfigDict(dict(max_prompt_tokens=240, max_new_tokens=24, slots=64, prefill_batch=32))
    config.learner = ConfigDict(dict(micro_batch_rows=16, compute_dtype="float32", remat="none"))
    config.evaluation = ConfigDict(dict(slots=128))
    config.checkpoint = ConfigDict(dict(every=50))
    return config
