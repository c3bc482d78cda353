"""Synthetic study: how far GRPO carries a small policy towards the Bayes ceiling, in about an hour on two cores.

The quickstart with three times as many patients, a larger policy, and 1,000 optimizer steps of 128 questions x 8
completions on a decaying rate. One seed each:

    python -m launch.train --config=configs/synthetic_study.py --workdir=runs/study-1 --config.seed=1
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """The run's configuration; fields and defaults: shared/config.py."""
    config = quickstart.get_config()
    config.name = "synthetic_study"
    config.data.update(patients=6_000, valid_patients=1_000, train_questions=100_000, valid_questions=4_000)
    config.warmup.update(steps=400, worked_answers=2_000)
    config.grpo.update(questions_per_step=128, steps=1_000)
    config.optimizer.update(learning_rate=1e-3)
    config.rollout.update(slots=128)
    config.checkpoint.update(every=100)
    return config
