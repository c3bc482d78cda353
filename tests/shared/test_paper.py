"""The original's generator: every value choice, record, question set and prediction of the golden folder."""

from __future__ import annotations

import hashlib
import math

import pandas as pd
import pytest

from shared.paper import denoising, prediction
from shared.paper.draws import Draws
from shared.paper.records import CannotShow, Place, show
from shared.paper.values import CannotDraw, from_json, plain, value_choices
from shared.questions.prompts import SYSTEM_PROMPT
from shared.tasks.stroke_outcome import MACE, MRS
from tests.support.golden_folder import parameters
from tests.support.golden_registry import FOLDER, cases, choices, lines, material, needs_golden, places, rows

golden = pytest.mark.golden
SERIALIZERS = {"sepsis_registry": "sections", "stroke_registry": "lines", "aki_registry": "days"}
SETS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/questions_*.jsonl.gz"))
OPTIONS = {"num_choices": "num_choices", "difficulty_const": "difficulty", "mi_cutoff": "mi_cutoff"}


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def check_value_choice(case, stats):
    label = case["label"]
    if case.get("label_type") == "float":
        label = math.nan if label is None else float(label)
    draws = Draws(case["seed"])
    asked = {"num_choices": case["num_choices"], "difficulty": case["difficulty"]}
    if case["error"]:
        with pytest.raises(CannotDraw):
            value_choices(label, stats, draws, **asked)
        return
    assert value_choices(label, stats, draws, **asked) == (case["label_out"], case["choices"])
    assert [draws.py.random(), draws.np.rand()] == case["rng_after"]


@golden
@pytest.mark.parametrize("case", cases("value_choices_synthetic.jsonl.gz"))
def test_value_choices_of_every_branch(case):
    check_value_choice(case, from_json(case["stat"]))


@golden
@pytest.mark.parametrize("case", cases("value_choices_registry.jsonl.gz"))
def test_value_choices_of_the_registries(case):
    check_value_choice(case, choices(case["registry"])[case["col"]])


@pytest.mark.slow
@golden
@pytest.mark.parametrize("case", cases("serializer_cases.jsonl.gz"))
def test_records(case):
    style = SERIALIZERS[case["serializer"]]
    if case.get("registry"):
        row, where = rows(case["registry"])[case["valid_row"]], places(case["registry"])
    else:
        row, where = dict(case["row"]), {entry[0]: Place(*entry[1:]) for entry in case["col_mapper"]}
    if case["error"]:
        with pytest.raises(CannotShow):
            show(style, row, where, masked=case["victims"], hidden=case["high_mis"])
        return
    assert show(style, row, where, masked=case["victims"], hidden=case["high_mis"]) == case["out"]


@pytest.mark.slow
@golden
@pytest.mark.parametrize("name", parameters(SETS, FOLDER, lambda _, name: name.removesuffix(".jsonl.gz")))
def test_question_sets_come_out_again(name):
    registry, kind = name.removesuffix(".jsonl.gz").split("/questions_")
    meta, *expected = lines(name)
    overrides = dict(meta.get("overrides", {}))
    count = overrides.pop("num_questions", 1)
    parts = material(registry, **{OPTIONS[name]: value for name, value in overrides.items()})
    draws, table = Draws(), rows(registry)[: meta["rows"]]
    if kind == "all_victims":
        made = denoising.all_victims(table, parts, draws)
    elif kind == "oversample":
        made = denoising.oversample(table, parts, draws, wanted=meta["data_length"])
    else:
        made = denoising.plain(table, parts, draws, count=count)
    assert expected and len(made) == len(expected)
    assert [draws.py.random(), draws.np.rand()] == meta["rng_after"]
    system = SYSTEM_PROMPT.partition("\n")[0] if registry == "stroke" else SYSTEM_PROMPT
    for message, wanted in zip(made, expected, strict=True):
        turns = (("system", system), ("user", message.text))
        prompt = "".join(f"<|im_start|>{role}<|im_sep|>{text}<|im_end|>" for role, text in turns)
        prompt += "<|im_start|>assistant<|im_sep|>Let's think step by step."
        assert wanted.get("prompt", prompt) == prompt and wanted.get("prompt_sha256", digest(prompt)) == digest(prompt)
        assert [question.victim for question in message.asked] == wanted["victims"]
        for number, question in enumerate(message.asked):
            assert denoising.LETTERS[question.right] == wanted[f"label_{number}"]
            assert list(question.choices) == wanted[f"choices_{number}"]


@golden
@pytest.mark.parametrize("case", cases("aki/prediction_serializer_cases.jsonl.gz"))
def test_aki_questions_of_a_patient(case):
    flags = [math.nan if flag is None else flag for flag in case["aki_seq"]]
    made = prediction.aki_questions(rows("aki")[case["valid_row"]], flags, places("aki"), Draws(case["seed"]))
    assert ["AB"[question.right] for question in made] == case["labels"]
    assert [list(question.choices) for question in made] == case["choices"]
    assert [digest(f"\n{question.message}") for question in made] == case["prompt_sha256"]


@golden
@pytest.mark.parametrize("case", cases("aki_label_cases.jsonl.gz"))
def test_aki_labels(case):
    row, where = {}, {}
    for slot in range(21):
        day, part = slot // 3 + 1, slot % 3
        row[f"x{slot}"] = float(slot) if slot < case["slots"] else None
        where[f"x{slot}"] = Place("X", f"[Day {day} {8 * part:02d}:00 - {8 * part + 8:02d}:00]")
        if part == 2:
            row[f"q{day}"] = "No" if slot < case["slots"] else None
            where[f"q{day}"] = Place("Q", f"[Day {day}]")
    row["out"], where["out"] = "No", Place("Out", "[Final Outcomes]")
    flags = [math.nan if flag is None else flag for flag in case["aki_seq"]]
    made = prediction.aki_questions(row, flags, where, Draws(case["seed"]))
    assert ["AB"[question.right] for question in made] == case["labels"]
    assert [f"\n{question.message}" for question in made][: len(case["prompts"])] == case["prompts"]


@golden
@needs_golden
def test_the_aki_set_comes_out_again():
    raw, mask = (pd.read_csv(FOLDER / "aki" / "raw" / f"{name}.csv.gz") for name in
                 ("data_processed", "data_missing_processed"))  # fmt: skip
    names = [f"d{day}_{slot}_aki" for day in range(1, 9) for slot in (1, 2, 3)]
    flags = raw[names].where(mask[names] != 0).set_axis(raw["Study_ID"])
    draws = Draws()
    made = [
        question
        for row in rows("aki")
        for question in prediction.aki_questions(row, flags.loc[row["Unique ID"]].tolist(), places("aki"), draws)
    ]
    expected = lines("aki/prediction_questions.jsonl.gz")
    chosen = prediction.one_for_each(made, len(expected), Draws())
    assert [digest(q.message) for q in chosen] == [case["user_message_sha256"] for case in expected]
    assert ["AB"[q.right] for q in chosen] == [case["label_0"] for case in expected]


@golden
@needs_golden
def test_the_stroke_outcome_sets_come_out_again():
    draws = Draws()
    for target in (MRS, MACE):
        made = prediction.outcome_questions(rows("stroke"), target, places("stroke"), choices("stroke")[target], draws)
        expected = [case for case in lines("stroke/prediction_questions.jsonl.gz") if case["task"] == target]
        assert [digest(q.message) for q in made] == [case["user_message_sha256"] for case in expected]
        assert [denoising.LETTERS[q.right] for q in made] == [case["label_0"] for case in expected]


@pytest.mark.parametrize(
    ("text", "shorter"),
    [("3.0", "3"), ("1.50", "1.5"), ("10", "10"), ("v2.00", "v2"), ("0.05", "0.05"), ("<0.3", "<0.3")],
)
def test_zeros_at_the_end(text, shorter):
    assert plain(text) == shorter


def test_a_row_without_a_usable_value_is_left_out_and_does_not_draw_for_ever():
    stats = from_json({"VOCAB": ["a"], "WEIGHTS": [1.0], "FLOAT_RATIO": 0.0, "ALL_VOCAB": ["a"],
                       "GM": {"means": [0, 0, 0], "stds": [0, 0, 0], "weights": [0, 0, 0]}})  # fmt: skip
    parts = denoising.Material("lines", {"x": Place("X")}, {"x": stats}, {})
    assert denoising.ask({"Unique ID": 1, "x": "a"}, parts, Draws()) is None
    assert denoising.ask({"Unique ID": 1, "x": None}, parts, Draws()) is None
