"""Export a checkpoint of a run as a Hugging Face model directory, with its tokenizer.

creason export --workdir=runs/quickstart --out=exported
creason export --workdir=runs/quickstart --step=100 --backend=torch --out=exported-100
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import app, backends
from shared.config import CONFIG_FILE
from shared.errors import InputError
from shared.questions import prompt_style
from shared.runs import replay
from shared.runs.policy import check_policy_unchanged, fetch_policy
from shared.runs.workdir import Job, read_config

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string("workdir", None, "Work directory of the run.", required=True)
    flags.DEFINE_integer("step", None, "Step of the checkpoint to export; default: the newest.", lower_bound=0)
    flags.DEFINE_string("out", None, "Directory to write; it must not exist.", required=True)
    backends.define_flags("Which backend reads the checkpoint; either reads the checkpoints of both.")


def main() -> None:
    """Export a checkpoint.

    Raises InputError if there is none, if `--out` exists, or if the policy in the work directory was replaced.
    """
    workdir, out = Path(FLAGS.workdir), Path(FLAGS.out)
    if out.exists():
        raise InputError(f"--out={out}: exists already; give a new directory")
    app.make_folder("out", out.parent)
    config = read_config(workdir / CONFIG_FILE)
    backend = backends.make_backend(config)
    job = Job.of(config, backend, workdir, progress=False)
    fetch_policy(job)
    policy = replay.started_from(config, workdir)
    if backend.process == 0:
        check_policy_unchanged(config, workdir, policy)
    learner = backend.learner(
        config,
        policy,
        optimizer=config.optimizer,
        steps=config.steps,
        reference=config.grpo.beta > 0,
    )
    checkpoints = job.checkpoints
    # `restore` would create a folder that does not exist.
    has_checkpoints = not isinstance(checkpoints, Path) or checkpoints.is_dir()
    restored = learner.restore(checkpoints, FLAGS.step) if has_checkpoints else None
    if restored is None:
        raise InputError(f"{checkpoints}: no checkpoint yet; the trained policy of an ended run is in trained/")
    prompt_style.export(learner, out, prompt_style.recorded(config, workdir), first=backend.process == 0)
    if backend.process == 0:
        print(f"step {restored[0]} of {config.name} written to {out}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
