"""Evaluate: a model directory on question files, greedily; answers, figures and intervals in --out.

python -m launch.evaluate --model=runs/quickstart/trained --questions=runs/quickstart/data/questions/valid.parquet \\
    --out=runs/quickstart/again
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from absl import flags

from launch import app
from launch.backends import make_backend
from shared import evaluation, files
from shared.answering import answer_questions
from shared.config import EvaluationConfig, GrpoConfig, LearnerConfig, ModelConfig, RolloutConfig, RunConfig
from shared.errors import InputError
from shared.prompts import prompt_tokens
from shared.questions import Question, read_questions
from shared.report import interval, percent
from shared.tokenizer import load_tokenizer, special_tokens

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string("model", None, "Hugging Face model directory, tokenizer included.", required=True)
    flags.DEFINE_list("questions", None, "Question files (Parquet), separated by commas.", required=True)
    flags.DEFINE_string("out", None, "Directory for answers.parquet and summary.json.", required=True)
    flags.DEFINE_enum("backend", "jax", ["jax", "torch"], "Which engine generates.")
    flags.DEFINE_integer("max_prompt_tokens", 9_000, "Longer prompts lose their beginning.", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 2_000, "Length limit of a completion.", lower_bound=1)
    flags.DEFINE_integer("slots", 64, "Questions answered at once.", lower_bound=1)
    flags.DEFINE_integer("limit", 0, "Only the first questions; 0: all.", lower_bound=0)
    flags.DEFINE_integer("bootstrap", 2_000, "Resamples of patients for the intervals.", lower_bound=100)
    flags.DEFINE_integer("seed", 42, "Seed of the resampling.")
    flags.DEFINE_enum("compute_dtype", "bfloat16", ["bfloat16", "float32"], "Number format of the computation.")
    flags.DEFINE_bool("progress", sys.stderr.isatty(), "Show a progress bar (default: on a terminal).")


def main() -> None:
    """Evaluate. Raises InputError for a bad flag, model or question file."""
    folder, out = Path(FLAGS.model), Path(FLAGS.out)
    questions: list[Question] = [q for path in FLAGS.questions for q in read_questions(Path(path))]
    questions = questions[: FLAGS.limit or None]
    repeated = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        raise InputError(f"--questions: {len(repeated)} questions come more than once; give each file once")
    tokenizer = load_tokenizer(folder)
    config = RunConfig(
        name=folder.name,
        seed=FLAGS.seed,
        model=ModelConfig(path=str(folder)),
        grpo=GrpoConfig(beta=0.0),
        rollout=RolloutConfig(
            max_prompt_tokens=FLAGS.max_prompt_tokens, max_new_tokens=FLAGS.max_new_tokens, slots=FLAGS.slots
        ),
        learner=LearnerConfig(compute_dtype=FLAGS.compute_dtype),
        evaluation=EvaluationConfig(bootstrap=FLAGS.bootstrap, examples=0),
    )
    questions, prompts, cut = prompt_tokens(
        tokenizer, questions, max_tokens=FLAGS.max_prompt_tokens, overlong="truncate_left"
    )
    app.make_folder("out", out)
    backend = make_backend(FLAGS.backend, config)
    engine = backend.engine(config, folder, stop_tokens=special_tokens(tokenizer, folder).stop)
    backend.load(engine, folder)
    if cut:
        print(
            f"{cut} prompts were longer than {FLAGS.max_prompt_tokens} tokens and lost their beginning", file=sys.stderr
        )
    answers, _ = answer_questions(config, engine, tokenizer, questions, prompts, progress=FLAGS.progress)
    figures = evaluation.summarise(questions, answers, bootstrap=FLAGS.bootstrap, seed=FLAGS.seed)
    evaluation.write_answers(out / "answers.parquet", answers)
    files.write_json(out / "summary.json", {**figures, **evaluation.ceilings(questions)})
    print(f"accuracy {percent(figures['accuracy'])} {interval(figures['ci'])} on {figures['n']} questions")
    print(f"answers  {out / 'answers.parquet'}\nfigures  {out / 'summary.json'}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
