"""The whole of C-Reason in about 30 seconds on two cores: for tests, and for people in a hurry.

Reproduces nothing: 160 patients, a policy of 0.1 M parameters and 6 optimizer steps show that every part runs and fits
the others. Accuracy stays near chance.

    creason train --config=configs/smoke.py --workdir=runs/smoke
"""

from ml_collections import ConfigDict

from shared.config import grpo_preset


def get_config() -> ConfigDict:
    """The run's configuration; fields and defaults: docs/configuration.md."""
    config = ConfigDict()
    config.name = "smoke"
    config.seed = 42
    config.data = ConfigDict(
        dict(patients=160, valid_patients=40, train_questions=300, valid_questions=80, context_features=8)
    )
    config.model = ConfigDict(
        dict(
            vocab_size=768,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.08,
        )
    )
    config.warmup = ConfigDict(
        dict(
            steps=60,
            batch_size=16,
            sequence_length=256,
            worked_answers=200,
            worked_fraction=1.0,  # of these few steps all go to the format of answers
            optimizer=dict(learning_rate=5e-3, b2=0.95, warmup_ratio=0.05),
        )
    )
    config.grpo = ConfigDict(grpo_preset("paper") | dict(group_size=4, questions_per_step=8, steps=6, ref_sync_steps=4))
    config.optimizer = ConfigDict(dict(learning_rate=1e-3))
    config.rollout = ConfigDict(dict(max_prompt_tokens=288, max_new_tokens=24, slots=8, prefill_batch=8))
    # float32 by name: the tests compare both backends on it.
    config.learner = ConfigDict(dict(micro_batch_rows=4, compute_dtype="float32", remat="none"))
    config.evaluation = ConfigDict(dict(slots=16, bootstrap=200, examples=2))
    config.torch = ConfigDict(dict(zero_stage=0))  # one process: nothing to shard
    config.checkpoint = ConfigDict(dict(every=2))
    return config
