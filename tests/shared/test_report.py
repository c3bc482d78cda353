"""The report: whole without a network, safe with any text, and honest about what is missing."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.config import EvaluationConfig, RunConfig
from shared.errors import InputError
from shared.evaluation import figures
from shared.evaluation.answers import Answer, answer_to, write_answers
from shared.questions.record import LETTERS, Question
from shared.report import run_page, run_words, words
from shared.storage import files
from shared.training import metrics_log

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = RunConfig(name="quick <b>run</b>", seed=7, evaluation=EvaluationConfig(bootstrap=200))
EXAMPLE = {
    "question": "Lactate: [MASK]",
    "completion": "<script>alert('x')</script> & \\boxed{A}",
    "answer": "A",
    "predicted": "A",
    "when": "after",
}


def questions() -> list[Question]:
    return [
        Question(
            id=f"q{number}",
            cohort="synthetic",
            task="denoising",
            feature=f"feature {number % 6}",
            section=f"section {number % 3}",
            patient=f"p{number // 3}",
            context="record",
            question="which?",
            choices=("a", "b", "c"),
            answer=LETTERS[number % 3],
            majority="A",
            bayes_accuracy=0.9,
            bayes_answer="A",
        )
        for number in range(90)
    ]


def answers(share: float) -> list[Answer]:
    random = np.random.default_rng(int(share * 100))
    return [
        answer_to(item, item.answer if random.random() < share else "", truncated=False, tokens=9)
        for item in questions()
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The work directory of a run that has ended."""
    folder = tmp_path_factory.mktemp("finished")
    before, after = answers(0.3), answers(0.6)
    with metrics_log.MetricsWriter(folder, 0) as writer:
        for step in range(40):
            writer.write(
                step,
                {
                    "loss": 0.0, "reward": step / 40, "kl": 0.01, "entropy": 1.0, "grad_norm": 0.5,
                    "learning_rate": 1e-6, "completion_length": 9.0, "truncated": 0.0, "logprob_gap": 0.001,
                    "seconds_prefill": 0.5, "seconds_decode": 2.0, "tokens_per_second": 123.0,
                },
            )  # fmt: skip
    write_answers(folder / "evaluation" / "before.parquet", before)
    write_answers(folder / "evaluation" / "after.parquet", after)
    files.write_json(folder / "evaluation" / "examples.json", [EXAMPLE])
    files.write_json(folder / "config.json", dataclasses.asdict(CONFIG))
    timings = metrics_log.timings(metrics_log.read_metrics(folder / "metrics.jsonl"))
    summary = figures.summary(
        CONFIG.name, questions(), before, after, config=CONFIG, timings=timings, environment={"backend": "jax"}
    )
    files.write_json(folder / "summary.json", summary)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "loss": 5 - s}) + "\n" for s in range(4))
    )
    return folder


@pytest.fixture(scope="module")
def shown(finished, tmp_path_factory) -> Path:
    """A work directory with its report, examples included."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("shown") / "run"))
    assert run_page.write_report(folder, show_examples=True) == folder / "report.html"
    return folder


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


class Page(HTMLParser):
    """Collects what a browser would load, the open elements, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.elements: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.loads.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "link", "img", "br"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.slow
def test_the_health_of_a_run_is_a_table_and_a_config_of_another_version_is_said(shown, workdir):
    text = Page(shown / "report.html").text
    assert "Health of the run" in text and "exploding KL" in text and "> 5 for 5 steps" in text
    config = files.read_json(workdir / "config.json")
    files.write_json(workdir / "config.json", config | {"learner": {"mesh_data": 2}})  # it has another name now
    run_page.write_report(workdir, show_examples=False)
    assert "exploding KL" in Page(workdir / "report.html").text
    files.write_json(workdir / "config.json", config | {"unknown": 1})
    run_page.write_report(workdir, show_examples=False)
    text = Page(workdir / "report.html").text
    assert "exploding KL" not in text and "the health of the run: its config is not one of this version" in text


def test_the_page_holds_the_numbers_of_the_summary(shown):
    page = Page(shown / "report.html")
    assert page.open == []
    summary = json.loads((shown / "summary.json").read_text())
    for part in (summary["before"], summary["after"]):
        assert words.percent(part["accuracy"]) in page.text
        assert words.interval(part["ci"]) in page.text
    assert words.points(summary["gain"]["value"]) in page.text
    for key in ("bayes_accuracy", "majority_accuracy", "chance_accuracy"):
        assert words.percent(summary[key]) in page.text
    for row in summary["per_feature"]:
        assert row["feature"] in page.text and words.percent(row["after"]) in page.text
    for title in ("Reward", "KL to the reference", "Entropy", "Gradient norm", "Learning rate", "Completion length"):
        assert title in page.text
    assert "prefill" in page.text and "decode" in page.text and "123 tokens per second" in page.text
    assert "Warm-up" in page.text and "Not in this report" not in page.text
    assert page.elements.count("svg") == 14  # main, sections, 10 curves, warm-up, phases


def test_the_page_loads_nothing(shown):
    path = shown / "report.html"
    text = path.read_text()
    assert all(target.startswith(("#", "data:")) for target in Page(path).loads)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "default-src 'none'" in text
    assert not {"script", "link", "iframe", "object", "embed"} & set(Page(path).elements)


def test_what_a_run_says_is_escaped(shown):
    page = Page(shown / "report.html")
    assert EXAMPLE["completion"] in page.text
    assert "script" not in page.elements and "b" not in page.elements


@pytest.mark.slow
def test_examples_are_shown_only_if_allowed(workdir):
    path = run_page.write_report(workdir, show_examples=False)
    assert "alert" not in path.read_text() and "Lactate" not in path.read_text()
    assert "1 example completions are left out" in Page(path).text


def test_examples_of_records_that_may_be_real_need_the_flag():
    drawn = dataclasses.asdict(RunConfig(name="quick"))
    assert run_page.examples_allowed(drawn, False)
    for change in ({"cohort": "sepsis"}, {"source": "raw"}, {"train": "t.parquet", "valid": "v.parquet"}):
        real = {"data": drawn["data"] | change}
        assert not run_page.examples_allowed(real, False)
        assert run_page.examples_allowed(real, True)
    assert not run_page.examples_allowed({}, False)


def test_the_main_plot_is_a_picture_for_a_readme(shown):
    with Image.open(shown / "plots" / "main.png") as image:
        assert image.size == (1500, 630) and image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert np.asarray(image.convert("L")).std() > 20  # something is drawn


def test_phases_that_do_not_come_every_step(workdir):
    lines = ['{"step": 0, "seconds_update": 1.0, "seconds_total": 2.0}', '{"step": 1, "seconds_checkpoint": 3.0}', ""]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    text = Page(run_page.write_report(workdir, show_examples=False)).text
    assert re.search(r"checkpoint\s*3\.0 s\s*60\.0%\s*1\.500 s", text)
    assert re.search(r"other\s*1\.0 s\s*20\.0%", text)


def test_a_first_step_that_compiled_is_told_apart(workdir):
    lines = [{"step": step, "seconds_update": 90.0 if step == 0 else 2.0} for step in range(5)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = run_page.write_report(workdir, show_examples=False)
    text = Page(path).text
    assert "Step 0 took 1 min 30 s, a later one 2.0 s (median)" in text
    assert re.search(r"update\s*1 min 38 s\s*100\.0%\s*2\.000 s\s*90\.000 s", text)
    assert "Seconds per step, on average: update 2.0 s" in path.read_text()


@pytest.mark.slow
def test_features_have_the_names_that_readers_know(workdir):
    shown = {
        "display_name": "Lactate, first", "section": "x", "kind": "number", "unit": "", "decimals": 0, "categories": [],
        "labels": [], "leak_group": None, "visible": True,
    }  # fmt: skip
    files.write_json(workdir / "data" / "registry" / "features.json", [shown | {"name": "feature 1"}])
    text = Page(run_page.write_report(workdir, show_examples=False)).text
    assert "Lactate, first" in text and "feature 1" not in text and "feature 2" in text


@pytest.mark.slow
def test_the_same_files_make_the_same_page(shown, workdir):
    again = run_page.write_report(workdir, show_examples=True)
    assert again.read_text() == (shown / "report.html").read_text()


def test_a_run_that_has_just_begun(tmp_path):
    files.write_json(tmp_path / "config.json", dataclasses.asdict(CONFIG))
    page = Page(run_page.write_report(tmp_path, show_examples=True))
    assert "has not been evaluated yet" in page.text
    assert "summary.json: the run has not finished" in page.text
    assert "metrics.jsonl: no optimizer step" in page.text
    assert (tmp_path / "plots" / "main.png").is_file()


def test_a_run_in_the_middle(workdir):
    (workdir / "summary.json").unlink()
    (workdir / "metrics.jsonl").write_text('{"step": 0, "reward": 0.5, "kl": null}\n{"step": 1, "rew')
    page = Page(run_page.write_report(workdir, show_examples=False))
    assert "the curve of kl" in page.text and "the curve of entropy" in page.text
    assert "the curve of reward" not in page.text and "Reward" in page.text
    assert "the time of each phase" in page.text


@pytest.mark.slow
def test_a_run_evaluated_only_before(workdir):
    summary = figures.summary(CONFIG.name, questions(), answers(0.3), None, config=CONFIG)
    files.write_json(workdir / "summary.json", summary)
    page = Page(run_page.write_report(workdir, show_examples=False))
    assert "Before GRPO, accuracy on 90 questions about 30 held-out patients" in page.text
    assert "the evaluation after GRPO" in page.text
    assert "not evaluated yet" in run_words.terminal_summary(summary, workdir)


@pytest.mark.slow
def test_an_unknown_ceiling_is_said_to_be_unknown(workdir):
    real = [dataclasses.replace(item, bayes_accuracy=None, bayes_answer=None) for item in questions()]
    summary = figures.summary(CONFIG.name, real, answers(0.3), answers(0.6), config=CONFIG)
    files.write_json(workdir / "summary.json", summary)
    page = Page(run_page.write_report(workdir, show_examples=False))
    assert "the Bayes ceiling: it is known only" in page.text
    assert "Bayes" not in run_words.headline(summary) and "Bayes" not in run_words.terminal_summary(summary, workdir)


def part(accuracy: float, low: float, high: float) -> dict:
    return {"accuracy": accuracy, "ci": [low, high], "n": 100, "patients": 50}


def test_the_headline_claims_no_more_than_the_intervals():
    clear = {
        "before": part(0.3, 0.25, 0.35), "after": part(0.6, 0.55, 0.65), "gain": {"value": 0.3, "ci": [0.22, 0.38]},
        "majority_accuracy": 0.4, "bayes_accuracy": 0.8,
    }  # fmt: skip
    text = run_words.headline(clear)
    assert "from 30.0% (95% interval 25.0 to 35.0%) before GRPO to 60.0%" in text
    assert "+30.0 points (+22.0 to +38.0 points)" in text
    assert "above always taking the most frequent option (40.0%)" in text and "closes 60% of the distance" in text
    assert "zero" not in text
    unclear = clear | {"gain": {"value": 0.02, "ci": [-0.04, 0.08]}, "after": part(0.32, 0.27, 0.43)}
    assert "cannot tell the change from none" in run_words.headline(unclear)
    assert "not distinguishable from always" in run_words.headline(unclear)
    worse = clear | {"gain": {"value": -0.1, "ci": [-0.15, -0.05]}, "after": part(0.2, 0.15, 0.25)}
    assert "below always" in run_words.headline(worse) and "closes" not in run_words.headline(worse)
    single = clear | {"before": part(0.3, 0, 0) | {"ci": None, "patients": 1}, "gain": {"value": 0.3, "ci": None}}
    assert "no interval" in run_words.headline(single)


def test_terminal_summary_fits_a_screen(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    lines = run_words.terminal_summary(summary, Path("run")).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert words.percent(summary["after"]["accuracy"]) in text and "run/report.html" in text
    assert "40 optimizer steps in 1 min 40 s, 123 tokens/s" in text


def test_words_for_numbers():
    assert (words.percent(0.1234), words.percent(None), words.points(-0.05)) == ("12.3%", "–", "-5.0 points")
    assert words.interval([0.1, 0.25]) == "10.0 to 25.0%"
    assert words.interval([-0.1, 0.25], words.points) == "-10.0 to +25.0 points"
    assert [words.duration(s) for s in (0.25, 75, 59.99, 3_700)] == ["0.2 s", "1 min 15 s", "60.0 s", "1 h 01 min"]


def test_a_folder_without_a_run_or_with_a_broken_file_is_one_clear_line(tmp_path, workdir):
    with pytest.raises(InputError, match="holds no run"):
        run_page.write_report(tmp_path, show_examples=False)
    (workdir / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json: not JSON"):
        run_page.write_report(workdir, show_examples=False)


def launch(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch.report", *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_rebuilds_the_page(workdir):
    done = launch(f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout and "before GRPO" in done.stdout
    assert "alert" in (workdir / "report.html").read_text()  # the records were drawn, so the examples show
    (workdir / "config.json").unlink()
    (workdir / "summary.json").unlink()
    assert launch(f"--workdir={workdir}").stdout.count("no result yet") == 1
    assert "alert" not in (workdir / "report.html").read_text()  # of unknown origin now
    absent = launch(f"--workdir={workdir / 'absent'}")
    assert absent.returncode == 2 and "holds no run" in absent.stderr and "Traceback" not in absent.stderr
