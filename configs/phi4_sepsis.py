"""The paper's run: Phi-4 on 30,000 questions of the sepsis registry, 6,000 optimizer steps, all parameters trained.

On a node with eight 80 GB GPUs: seven learners and one vLLM server (`launch/gpu/serve.sh`), as in the paper. What fills the
memory of a GPU, and the variant with eight learners and a sleeping vLLM on each for larger GPUs: docs/gpu.md.

    deepspeed --include localhost:1,2,3,4,5,6,7 --module launch.train --backend=torch --config=configs/phi4_sepsis.py \\
        --workdir=runs/phi4 --config.model.path=models/phi-4 --config.data.source=registry
"""

from ml_collections import ConfigDict

from shared.config import grpo_preset


def get_config() -> ConfigDict:
    """The run's configuration; fields and defaults (the paper's): docs/configuration.md."""
    config = ConfigDict()
    config.name = "phi4_sepsis"
    config.seed = 42
    config.data = ConfigDict(
        dict(cohort="sepsis", source="registry", train_questions=30_000, valid_questions=1_000, valid_patients=1_000)
    )
    config.model = ConfigDict(dict(path="models/phi-4"))
    config.grpo = ConfigDict(grpo_preset("paper") | dict(group_size=7, questions_per_step=5, steps=6_000))
    config.optimizer = ConfigDict(dict(learning_rate=1e-6))
    config.rollout = ConfigDict(dict(temperature=0.9, max_prompt_tokens=9_000, max_new_tokens=2_000, decode_steps=32))
    # A row holds a question with its seven completions; with five rows, five of the seven learners get one row each.
    # compute_dtype is left at auto: bfloat16 on the GPUs and TPUs that this is for.
    config.learner = ConfigDict(dict(micro_batch_rows=5, remat="layer", length_bucket=512))
    config.jax = ConfigDict(dict(mesh_tensor=1))
    config.torch = ConfigDict(
        dict(
            zero_stage=3,
            rollout_engine="server",
            server_url="http://localhost:8000",
            server_weights="/dev/shm/creason-weights",
        )
    )
    config.evaluation = ConfigDict(dict(max_new_tokens=8_192, slots=256))
    config.checkpoint = ConfigDict(dict(every=256))
    return config
