"""Synthetic study: how far GRPO carries a small policy towards the Bayes ceiling, over three seeds in about an hour on two cores.

The quickstart with three times as many patients and question groups twice as many. The policy reads records for longer, so
that it knows how findings go together, but sees only 250 worked answers: it begins as a model that has the knowledge and
cannot yet use it to answer. `make study` runs three seeds; one of them:

    creason train --config=configs/synthetic_study.py --workdir=runs/study-1 --config.seed=1
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """The run's configuration; fields and defaults: docs/configuration.md."""
    config = quickstart.get_config()
    config.name = "synthetic_study"
    config.seed = 1
    config.data.update(patients=6_000, valid_patients=1_000, train_questions=100_000, valid_questions=4_000)
    config.warmup.update(steps=1_000, worked_answers=250, worked_fraction=0.04)
    config.grpo.update(questions_per_step=128, steps=400)
    config.rollout.update(slots=128)
    config.checkpoint.update(every=100)
    return config
