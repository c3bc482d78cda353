"""Make the documentation's screenshots: each page as a browser shows it, on a desk by day and on a phone by night.

    python -m tests.support.screenshots --out=docs/screenshots

Takes the pages from --workdir, and makes those that are not there: a run of the smoke config, an evaluation of the model that it
trained, some rungs of the parity ladder, and a review (about five minutes on two cores). Needs Chromium, see docs/pages.md.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags

from benchmarks.review_load import serving
from launch import app
from shared.errors import InputError
from shared.questions.record import read_questions
from shared.review import review
from shared.storage import files
from shared.tasks.prompts import user_message
from shared.training.warmup import worked_answer
from tests.support import browsers

FLAGS = flags.FLAGS
REPOSITORY = Path(__file__).resolve().parents[2]
LOOKS = {"desk": ("wide", "light"), "phone": ("phone", "dark")}
MODEL, QUESTIONS = "runs/smoke/trained", "runs/smoke/data/questions/valid.parquet"
# Each page in the work directory, and the command that makes it there.
PAGES = {
    "report": (
        "runs/smoke/report.html",
        ("train", f"--config={REPOSITORY}/configs/smoke.py", "--workdir=runs/smoke", "--device=cpu"),
    ),
    "evaluation": (
        "runs/again/evaluation.html",
        (
            "evaluate", f"--model={MODEL}", f"--questions={QUESTIONS}", "--out=runs/again", "--registry=runs/smoke/data/registry",
            "--max_prompt_tokens=288", "--max_new_tokens=24", "--completions", "--show_examples", "--device=cpu",
        ),
    ),
    "parity": (
        "runs/parity/parity.html",
        (
            "parity", f"--config={REPOSITORY}/configs/parity.py", "--workdir=runs/parity", "--families=phi3",
            "--rungs=contract,operations,scoring,gradients,updates",
        ),
    ),
}  # fmt: skip
REVIEW, RATER = "runs/review", "r1"


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string("out", None, "Folder for the pictures.", required=True)
    flags.DEFINE_string("workdir", "", "Folder with the pages, or for them; empty: one that is removed at the end.")


def main() -> None:
    """Make the pictures. Raises InputError where there is no browser, or a page cannot be made."""
    if browsers.executable() is None:
        raise InputError(
            f"none of {', '.join(browsers.NAMES)} is on PATH; install Chromium (Debian: apt-get install chromium)"
        )
    out = Path(FLAGS.out)
    files.check_folder("out", out)
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(FLAGS.workdir or temporary).absolute()
        for name, (place, command) in PAGES.items():
            if not (workdir / place).is_file():
                make(name, workdir, command)
        if not (workdir / REVIEW).is_dir():
            make_review(workdir)
        pages = {name: (workdir / place).as_uri() for name, (place, _) in PAGES.items()}
        with serving(workdir / REVIEW / "served") as server:
            for path in shoot(pages | {"review": f"{server.links[RATER]}/1"}, out):
                print(path)


def make(name: str, workdir: Path, command: tuple[str, ...]) -> None:
    """Run the program that makes a page. Raises InputError with its last line where it fails."""
    print(f"making the page {name}: launch.{command[0]}", file=sys.stderr)
    workdir.mkdir(parents=True, exist_ok=True)
    ended = subprocess.run(
        [sys.executable, "-m", f"launch.{command[0]}", *command[1:]],
        cwd=workdir,  # so that the page names no folder of this machine
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ended.returncode:
        last = ended.stderr.strip().rpartition("\n")[2]
        raise InputError(f"launch.{command[0]} ended with code {ended.returncode}: {last}")


def make_review(workdir: Path) -> None:
    """A review of made-up answers to the run's questions: the right value, and the most frequent one."""
    questions = read_questions(workdir / QUESTIONS)
    answers = {
        "first": [worked_answer(question) for question in questions],
        "second": [worked_answer(dataclasses.replace(question, answer=question.majority)) for question in questions],
    }
    for name, texts in answers.items():
        rows = [
            {"id": question.id, "question": user_message(question), "completion": text}
            for question, text in zip(questions, texts, strict=True)
        ]
        files.write_json_lines(workdir / REVIEW / f"{name}.jsonl", rows)
    review.export(
        workdir / REVIEW / "first.jsonl", workdir / REVIEW / "second.jsonl", names=("first", "second"), raters=(RATER,),
        count=12, out=workdir / REVIEW / "served", key=workdir / REVIEW / "key.json", seed=1,
    )  # fmt: skip


def shoot(pages: dict[str, str], out: Path) -> list[Path]:
    """A picture of the top of each page, by its address, in each of LOOKS, `NAME-LOOK.png` in `out`, as large as the window."""
    made = []
    with browsers.chromium() as browser:
        for name, address in pages.items():
            for look, (size, scheme) in LOOKS.items():
                with browsers.page(browser, size, scheme) as page:
                    page.goto(address)
                    target = out / f"{name}-{look}.png"
                    with files.replacing(target) as temporary:
                        temporary.write_bytes(page.screenshot())
                    made.append(target)
    return made


if __name__ == "__main__":
    define_flags()
    app.run(main)
