"""Seconds and memory of rollout, scoring and update, compared with TRL, Tunix and vLLM on the same weights and lengths.

python -m benchmarks.peers [--trl=PYTHON] [--tunix=PYTHON] [--cases=short,long] [--repeats=3]

TRL and Tunix each need an environment of their own; a flag names its interpreter (`python3 -m venv trl && trl/bin/pip install trl
torch`; `... tunix/bin/pip install google-tunix`). A system without its flag is left out. The systems run one after another, each
in a process of its own, and the round is repeated, so that a change in the machine's load affects all of them. All completions
have the full length. Arithmetic is float32. A row of a batch is a group here, and a completion in the other systems.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks import measure
from benchmarks.contestants import contest
from launch import app
from shared.errors import InputError

FLAGS = flags.FLAGS
FOLDER = Path(__file__).parent / "contestants"
PHASES = (contest.ROLLOUT, contest.SCORING, contest.UPDATE)
OWN = "creason"
MODEL = measure.MODELS["5M"]
# Questions, tokens of a prompt, completions, tokens of a completion.
CASES = {"short": (4, 192, 8, 64), "long": (1, 1_024, 8, 256)}


def write_work(folder: Path) -> None:
    """Write the model, and the questions of every case."""
    measure.write_model(folder / "model", MODEL)
    for name, (questions, prompt, group, completion) in CASES.items():
        rng = np.random.default_rng(0)
        prompts = rng.integers(3, MODEL.vocab_size - 1, (questions, prompt)).astype(np.int32)
        completions = rng.integers(3, MODEL.vocab_size - 1, (questions, group, completion)).astype(np.int32)
        work = contest.Work(folder / "model", prompts, completions, rng.normal(size=(questions, group)))
        contest.write(folder / f"{name}.npz", work)


def run(name: str, python: str, file: Path) -> dict:
    """Run one contestant and return its answer. Raises InputError with the end of its output if it fails."""
    script = FOLDER / f"of_{name}.py"
    root = str(FOLDER.parent.parent) if name == OWN else ""
    # Where libtpu is installed, vLLM (which TRL imports too) takes any machine for a TPU.
    variables = {
        "VLLM_TARGET_DEVICE": "cpu",
        "JAX_PLATFORMS": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": root,
    }
    environment = {**os.environ, **variables}
    ended = subprocess.run(
        [python, script, file, str(FLAGS.repeats)], capture_output=True, text=True, env=environment, check=False
    )
    if ended.returncode:
        raise InputError(f"{name} failed with {python}:\n{ended.stderr[-2_000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    """Print a table for each case. Ratios are the other system's seconds divided by ours."""
    unknown = set(FLAGS.cases) - set(CASES)
    if unknown:
        raise InputError(f"--cases={','.join(sorted(unknown))}: there are {', '.join(CASES)}")
    pythons = {OWN: sys.executable, "trl": FLAGS.trl, "tunix": FLAGS.tunix, "vllm": FLAGS.vllm}
    pythons = {name: python for name, python in pythons.items() if python}
    with tempfile.TemporaryDirectory() as folder:
        write_work(Path(folder))
        for case in FLAGS.cases:
            answers: dict[str, list[dict]] = {name: [] for name in pythons}
            for _ in range(FLAGS.rounds):
                for name, python in pythons.items():
                    answers[name].append(run(name, python, Path(folder) / f"{case}.npz"))
            questions, prompt, group, completion = CASES[case]
            print(f"{case}: {questions} x ({prompt} + {group} x {completion}) tokens")
            measure.print_table(*_table(answers))


def _table(answers: dict[str, list[dict]]) -> tuple[list[str], list[list[str]]]:
    def seconds(name: str, phase: str) -> float | None:
        all_seconds = [second for answer in answers[name] for second in answer["seconds"].get(phase, [])]
        return statistics.median(all_seconds) if all_seconds else None

    lines = []
    for name in answers:
        line = [name]
        for phase in PHASES:
            own, theirs = seconds(OWN, phase), seconds(name, phase)
            line += [f"{theirs:.2f}", f"{theirs / own:.1f}"] if theirs and own else ["-", "-"]
        line.append(f"{max(answer['peak'] for answer in answers[name]) / 1e9:.2f}")
        lines.append(line)
    heading = [""]
    for phase in PHASES:
        heading += [f"{phase}, s", "to ours"]
    return [*heading, "peak GB"], lines


if __name__ == "__main__":
    flags.DEFINE_string("trl", "", "Interpreter of an environment with TRL.")
    flags.DEFINE_string("tunix", "", "Interpreter of an environment with Tunix.")
    own = sys.executable if importlib.util.find_spec("vllm") else ""
    flags.DEFINE_string("vllm", own, "Interpreter of an environment with vLLM; default: this one, if it has it.")
    flags.DEFINE_list("cases", list(CASES), f"Cases to measure, of {', '.join(CASES)}.")
    flags.DEFINE_integer("repeats", 3, "Repetitions in a process; one more comes first, not counted.", lower_bound=1)
    flags.DEFINE_integer("rounds", 2, "Number of processes of each system.", lower_bound=1)
    app.run(main)
