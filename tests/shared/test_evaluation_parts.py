"""Probabilities, comparison, subgroups, orders, baselines, votes, forced choice, and the harness' task folder."""

from __future__ import annotations

import dataclasses
import json
import runpy
import stat

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import brier_score_loss, roc_auc_score

from shared.backend import Completion
from shared.errors import InputError
from shared.evaluation import binary, forced_choice, lm_eval, orders
from shared.evaluation.answers import answer_to, read_answers, read_by, write_answers
from shared.evaluation.comparison import check_same, compare
from shared.evaluation.figures import details, summarise
from shared.evaluation.subgroups import check_patients, subgroups
from shared.evaluation.votes import Sample, answer_of, vote
from shared.questions.prompts import SYSTEM_PROMPT, encode
from shared.questions.record import LETTERS
from shared.registry.patients import age_band
from shared.report.evaluation_page import write_page
from shared.tasks.prompts import user_message
from tests.support.exam import exam, exam_tokenizer


def yes_no(count, seed=0):
    rng = np.random.default_rng(seed)
    made, given = [], []
    for number, question in enumerate(exam(count)):
        choices = ("yes", "no") if rng.random() < 0.5 else ("no", "yes")
        event = rng.random() < 0.3
        made.append(
            dataclasses.replace(
                question,
                choices=choices,
                answer=LETTERS[choices.index("yes" if event else "no")],
                patient=f"p{number // 2}",
            )
        )
        chance = float(np.clip(rng.normal(0.6 if event else 0.3, 0.2), 0, 1))
        given.append(tuple(chance if choice == "yes" else 1 - chance for choice in choices))
    return made, given


def test_binary_figures_are_sklearns_whatever_the_order_of_options():
    questions, given = yes_no(200)
    truth, scores, patients = binary.labels_and_scores(questions, given)
    found = binary.figures(truth, scores, patients, bootstrap=200, seed=1)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores)) and found["n"] == 200
    assert found["brier"] == pytest.approx(brier_score_loss(truth, scores))
    assert found["auroc_ci"][0] < found["auroc"] < found["auroc_ci"][1]
    by_hand = sum(row["n"] * abs(row["probability"] - row["frequency"]) for row in found["reliability"]) / 200
    assert found["ece"] == pytest.approx(by_hand) and sum(row["n"] for row in found["reliability"]) == 200
    assert binary.labels_and_scores(exam(3), [(1.0, 0.0)] * 3) is None
    assert binary.figures(np.zeros(4, bool), np.full(4, 0.1), list("abcd"), bootstrap=100, seed=1)["auroc"] is None


def test_calibrated_probabilities_have_a_small_error():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    truth = rng.random(20_000) < scores
    assert binary.expected_calibration_error(truth, scores) < 0.02
    assert binary.expected_calibration_error(truth, 1 - scores) > 0.4


def test_mcnemar_counts_by_hand():
    questions = exam(40)
    first = [answer_to(q, q.answer if i < 20 else "", truncated=False, tokens=1) for i, q in enumerate(questions)]
    second = [answer_to(q, q.answer if i < 30 else "", truncated=False, tokens=1) for i, q in enumerate(questions)]
    found = compare(first, second, bootstrap=200, seed=1)
    assert (found["only_first"], found["only_second"], found["difference"]) == (0, 10, 0.25)
    assert found["p"] == pytest.approx(2 * 0.5**10) and found["ci"][0] > 0
    assert compare(first, first, bootstrap=200, seed=1)["p"] == 1
    with pytest.raises(InputError, match="different questions"):
        compare(first, second[1:], bootstrap=200, seed=1)


def test_small_subgroups_are_suppressed_with_one_more():
    questions = exam(60)
    answers = [answer_to(q, q.answer, truncated=False, tokens=1) for q in questions]
    names = [q.patient for q in questions]
    table = pd.DataFrame(
        {"patient": names, "split": "valid", "age_band": "40-59", "sex": ["Male"] * 55 + ["Female"] * 5}
    )
    table["site"] = ["A"] * 20 + ["B"] * 25 + ["C"] * 15
    found = subgroups(answers, table, bootstrap=200, seed=1)
    assert {row["by"] for row in found} == {"sex", "site"}  # one age band only says nothing
    assert all(row["suppressed"] and "accuracy" not in row for row in found if row["by"] == "sex")
    assert {row["group"]: row.get("patients") for row in found if row["by"] == "site"} == {"A": 20, "B": 25, "C": 15}
    with pytest.raises(InputError, match="1 patients of the answers"):
        subgroups(answers, table[1:], bootstrap=200, seed=1)
    assert [age_band(age) for age in (17, 18, 65.5, 80, None)] == [
        "under 18",
        "18-39",
        "60-69",
        "80 and over",
        "unknown",
    ]


def test_cyclic_orders_move_the_answer_with_its_option():
    questions = exam(6)
    asked = orders.cyclic(questions)
    assert len(asked) == sum(len(q.choices) for q in questions) and len({q.id for q in asked}) == len(asked)
    for question in asked:
        original = next(q for q in questions if question.id.startswith(f"{q.id}~"))
        assert question.choices[LETTERS.index(question.answer)] == original.choices[LETTERS.index(original.answer)]
        assert sorted(question.choices) == sorted(original.choices)
    always_a = orders.consistency(asked, [answer_to(q, "A", truncated=False, tokens=1) for q in asked])
    assert always_a["letters"] == {"A": 1.0} and always_a["same_option"] == 0
    assert always_a["accuracy"] == pytest.approx(len(questions) / len(asked))
    right = orders.consistency(asked, [answer_to(q, q.answer, truncated=False, tokens=1) for q in asked])
    assert right["same_option"] == right["always_right"] == 1


def test_a_vote_of_samples_and_its_shares(tmp_path):
    (question,) = exam(1, start=3)
    boxes = [r"\boxed{B}", r"\boxed{ C }", r"\boxed{A}", r"\boxed{B}, no, \boxed{(c)}", r"\boxed{A}"]
    group = [Sample(completion=text, truncated=i > 2, tokens=4 + i // 4) for i, text in enumerate(boxes)]
    answer = answer_of(question, group, "strict_first")
    assert (answer.predicted, answer.truncated, answer.tokens) == ("A", False, 4)  # of letters that tie the first
    assert answer.probabilities == (0.5, 0.5, 0.0, 0.0, 0.0)[: len(question.choices)]
    lenient = answer_of(question, group, "lenient_last")
    assert (lenient.predicted, lenient.probabilities[:3]) == ("A", (0.4, 0.2, 0.4))
    assert (answer.strict, answer.lenient) == (lenient.strict, lenient.lenient) == ("A", "A")
    assert vote(question, [""] * 5) == ("", (1 / len(question.choices),) * len(question.choices))
    single = answer_of(question, group[3:4], "strict_first")
    assert (single.strict, single.lenient, single.predicted, single.probabilities) == ("B", "C", "B", ())
    assert read_by("lenient_last", question, single).predicted == "C"
    write_answers(tmp_path / "a.parquet", [answer])
    assert read_answers(tmp_path / "a.parquet") == [answer]


def test_forced_choice_lets_the_options_shown_compete(tmp_path):
    tokenizer = exam_tokenizer(tmp_path)
    questions = exam(4)
    phrase, letters = forced_choice.phrase_and_letters(tokenizer)
    assert len(set(letters.tolist())) == 5
    for letter, token in zip(LETTERS, letters.tolist(), strict=True):
        assert tokenizer.decode([*phrase, token]) == f"{forced_choice.PHRASE} {letter}"

    class Scorer:
        def next_token_logprobs(self, texts, tokens):
            self.texts = texts
            return np.tile(np.arange(len(tokens), dtype=np.float32), (len(texts), 1))

    scorer = Scorer()
    prompts = [encode(tokenizer, f"question {i}") for i in range(4)]
    thought = encode(tokenizer, "thinking")
    ended = Completion(np.append(thought, 7).astype(np.int32), np.zeros(len(thought) + 1, np.float32), truncated=False)
    asked = {"longest": 200, "stop": [7]}
    answers = forced_choice.forced_answers(scorer, tokenizer, questions, prompts, [ended] * 4, **asked)
    assert [answer.predicted for answer in answers] == [LETTERS[len(q.choices) - 1] for q in questions]
    for question, answer in zip(questions, answers, strict=True):
        weights = np.exp(np.arange(len(question.choices)))
        np.testing.assert_allclose(answer.probabilities, weights / weights.sum())
    for prompt, text in zip(prompts, scorer.texts, strict=True):
        assert text.tolist() == [*prompt, *thought, *phrase]  # the end of the completion is taken off
    # What does not fit is taken from the end of the reasoning, and only then from the beginning of the prompt.
    long = np.arange(100, dtype=np.int32)
    room = len(prompts[0]) + len(phrase)
    cut = forced_choice.forced_text(prompts[0], long, phrase, longest=room + 3, stop=[])
    assert cut.tolist() == [*prompts[0], 0, 1, 2, *phrase]
    assert forced_choice.forced_text(prompts[0], long, phrase, longest=room - 2, stop=[]).tolist() == [
        *prompts[0][2:], *phrase,
    ]  # fmt: skip


def test_the_harness_folder_holds_every_question_for_its_owner_alone(tmp_path):
    questions = exam(5)
    task = lm_eval.export(
        questions, tmp_path / "task", "creason_test", until=["<|im_end|>"], max_new_tokens=77, prefill='Let\'s "think"'
    )
    rows = [json.loads(line) for line in (tmp_path / "task" / "questions.jsonl").read_text().splitlines()]
    assert [(row["right"], row["options"]) for row in rows] == [(q.answer, len(q.choices)) for q in questions]
    assert [row["message"] for row in rows] == [user_message(question) for question in questions]
    found = yaml.load(task.read_text().replace("!function ", ""), yaml.SafeLoader)
    assert found["output_type"] == "generate_until" and found["doc_to_text"] == "{{message}}"
    assert found["generation_kwargs"]["until"] == ["<|im_end|>"] and found["generation_kwargs"]["max_gen_toks"] == 77
    assert found["description"] == SYSTEM_PROMPT + "\n" and found["gen_prefix"] == 'Let\'s "think"'
    assert found["process_results"] == "utils.process_results"
    assert [metric["metric"] for metric in found["metric_list"]] == list(lm_eval.METRICS)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "task").iterdir())
    plain = yaml.load(
        lm_eval.export(questions, tmp_path / "x", "a").read_text().replace("!function ", ""), yaml.SafeLoader
    )
    assert plain["generation_kwargs"]["until"] == [] and "gen_prefix" not in plain
    with pytest.raises(InputError, match="letters, digits and underscores"):
        lm_eval.export(questions, tmp_path / "x", "a b")


def test_the_harness_reads_boxes_as_we_do(tmp_path):
    """What the exported file says of a table of texts, against our own answers and accuracies."""
    forms = (
        r"\boxed{%s}",
        r"\boxed{\text{%s}}",
        r"\boxed{A}, no: \boxed{(%s)}",
        r"<think>\boxed{%s}",
        r"a</think>\fbox{%s.}",
    )
    pairs = [(q, form % q.answer) for q in exam(6) for form in (*forms, r"\boxed{F}%.0s", "no box%.0s")]
    lm_eval.export([q for q, _ in pairs], tmp_path / "task", "t")
    utils = runpy.run_path(str(tmp_path / "task" / "utils.py"))
    rows = [json.loads(line) for line in (tmp_path / "task" / "questions.jsonl").read_text().splitlines()]
    scored = [utils["process_results"](row, [text]) for row, (_, text) in zip(rows, pairs, strict=True)]
    assert scored == [utils["process_results"](row, [[text]]) for row, (_, text) in zip(rows, pairs, strict=True)]
    ours = [answer_of(q, [Sample(completion=text)], "strict_first") for q, text in pairs]
    for name in ("strict", "lenient"):
        letters = [getattr(answer, name) for answer in ours]
        assert [s[f"answered_{name}"] for s in scored] == [float(letter != "") for letter in letters]
        right = [float(letter == q.answer) for letter, (q, _) in zip(letters, pairs, strict=True)]
        assert [s[f"accuracy_{name}"] for s in scored] == right and 0 < sum(right) < len(right)
    assert set(scored[0]) == set(lm_eval.METRICS)


def test_the_page_shows_every_part_and_no_text_of_a_patient(tmp_path):
    questions, given = yes_no(60)
    answers = [
        answer_to(q, "A", truncated=False, tokens=3, probabilities=p) for q, p in zip(questions, given, strict=True)
    ]
    options = {"bootstrap": 200, "seed": 1}
    found = summarise(questions, answers, **options) | details(questions, answers)
    assert found["per_options"][0]["options"] == 2 and sum(found["right_letters"].values()) == pytest.approx(1)
    found |= {"chance_accuracy": 0.5, "majority_accuracy": 0.7, "orders": None}
    found["boxed"] = {"accuracy": 0.613, "ci": [0.5, 0.7], "macro_f1": 0.4, "answered": 0.9}
    found["binary"] = binary.figures(*binary.labels_and_scores(questions, given), **options)
    found["comparison"] = compare(answers, answers, **options)
    found["baselines"] = {"most frequent value": {"accuracy": 0.7, "ci": [0.6, 0.8], "macro_f1": 0.4}}
    found["subgroups"] = [{"by": "sex", "group": "<b>", "suppressed": True}]
    write_page(tmp_path / "page.html", found, title="A model")
    html = (tmp_path / "page.html").read_text()
    assert "61.3" in html and "suppressed" in html and "<svg" in html and "AUROC" in html and "&lt;b&gt;" in html
    assert not any(line in html for question in questions for line in question.context.split("\n") if ":" in line)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (("YES", "NO"), 0),
        (("no", "Yes"), 1),
        (("nO", "yEs"), 1),
        ((" Yes", "No "), 0),
        (("yes", "yes"), None),
        (("yes", "no", "unknown"), None),
        (("yes", "none"), None),
        (("예", "아니오"), None),
        (("oui", "non"), None),
    ],
)
def test_yes_and_no_however_they_are_written(options, place):
    (question,) = exam(1)
    question = dataclasses.replace(question, choices=options, answer="B")
    assert binary.positive_option(question) == place
    found = binary.labels_and_scores([question], [tuple(0.1 + 0.2 * i for i in range(len(options)))])
    if place is None:
        assert found is None
    else:
        truth, scores, _ = found
        assert (truth.tolist(), scores.tolist()) == ([place == 1], [0.1 + 0.2 * place])


def test_one_question_of_capitals_among_many_changes_no_figure():
    """All figures of the set are those with that question in small letters."""
    questions, given = yes_no(50)
    loud = [dataclasses.replace(questions[0], choices=tuple(c.upper() for c in questions[0].choices)), *questions[1:]]
    options = {"bootstrap": 100, "seed": 1}
    expected = binary.figures(*binary.labels_and_scores(questions, given), **options)
    assert binary.figures(*binary.labels_and_scores(loud, given), **options) == expected


def test_figures_of_few_questions_and_of_one_class():
    for count, event in ((1, True), (1, False), (3, True), (3, False)):
        truth, scores = np.full(count, event), np.linspace(0.2, 0.4, count)
        for patients in (["p"] * count, [f"p{i}" for i in range(count)]):
            found = binary.figures(truth, scores, patients, bootstrap=100, seed=1)
            assert (found["auroc"], found["auroc_ci"]) == (None, None)
            assert found["auprc"] == (1.0 if event else None)
            assert found["brier"] == pytest.approx(((scores - event) ** 2).mean())
            assert (found["brier_ci"] is None) == (len(set(patients)) == 1)
    assert binary.labels_and_scores([], []) is None


def test_probabilities_that_are_no_numbers_are_refused(tmp_path):
    questions, given = yes_no(5)
    given[2] = (float("nan"), float("nan"))
    with pytest.raises(InputError, match="probabilities of 1 of 5 questions are not numbers"):
        binary.labels_and_scores(questions, given)
    tokenizer = exam_tokenizer(tmp_path)
    ended = Completion(encode(tokenizer, "thinking"), np.zeros(3, np.float32), truncated=False)
    for bad in ([np.nan, 0, 0, 0, 0], [-np.inf] * 5, [np.inf, 0, 0, 0, 0]):

        class Broken:
            def next_token_logprobs(self, texts, tokens):
                return np.tile(np.float32(bad), (len(texts), 1))  # noqa: B023

        with pytest.raises(InputError, match="question question-1: the model's log-probabilities .* are not numbers"):
            forced_choice.forced_answers(
                Broken(), tokenizer, exam(1, start=1), [encode(tokenizer, "q")], [ended], longest=200, stop=[7]
            )


def test_unanswered_questions_and_one_patient_have_their_figures(tmp_path):
    questions = [dataclasses.replace(question, patient="p") for question in exam(4)]
    answers = [answer_to(question, "", truncated=True, tokens=3) for question in questions]
    options = {"bootstrap": 100, "seed": 1}
    for asked in (questions, questions[:1]):
        found = summarise(asked, answers[: len(asked)], **options) | details(asked, answers[: len(asked)])
        assert (found["accuracy"], found["answered"], found["ci"], found["macro_f1"]) == (0, 0, None, 0)
        found |= {"chance_accuracy": 0.5, "majority_accuracy": 0.7, "boxed": None, "binary": None, "comparison": None}
        found |= {"baselines": None, "subgroups": None, "orders": None}
        write_page(tmp_path / "page.html", found, title="A model")
        assert "no interval" in (tmp_path / "page.html").read_text()


def test_another_models_answers_are_checked_before_anything_is_asked():
    questions = exam(10)
    given = [answer_to(question, "A", truncated=False, tokens=1) for question in questions]
    check_same(given, questions)
    check_same(given[::-1], questions)
    for wrong, message in (
        (given[1:], "answers 0 other questions and lacks 1 of these 10"),
        (
            [*given, answer_to(*exam(1, start=11), "A", truncated=False, tokens=1)],
            "answers 1 other questions and lacks 0",
        ),
        ([*given, given[0]], "more than once"),
        ([dataclasses.replace(given[0], patient="x"), *given[1:]], "about other patients"),
        ([], "lacks 10"),
    ):
        with pytest.raises(InputError, match=message):
            check_same(wrong, questions)
    with pytest.raises(InputError, match="lacks 33 of these 33"):
        check_same(given, orders.cyclic(questions))


def test_a_file_of_patients_is_checked_for_who_is_missing_and_who_is_twice():
    table = pd.DataFrame({"patient": ["a", "b"], "age_band": "40-59", "sex": [None, "Female"], "site": "A"})
    check_patients(table, {"a", "b"})
    with pytest.raises(InputError, match="--patients: 1 patients"):
        check_patients(table, {"a", "c"})
    with pytest.raises(InputError, match="more than one row"):
        check_patients(pd.concat([table, table[:1]]), {"a"})
    answers = [answer_to(question, "A", truncated=False, tokens=1) for question in exam(40)]
    table = pd.DataFrame({"patient": [f"patient-{i}" for i in range(40)], "age_band": "40-59", "site": "A"})
    table["sex"] = ["Male"] * 20 + [None] * 20
    found = subgroups(answers, table, bootstrap=100, seed=1)
    assert [(row["by"], row["group"], row["n"]) for row in found] == [("sex", "Male", 20), ("sex", "unknown", 20)]


def test_a_task_folder_replaces_only_its_like(tmp_path):
    questions = exam(3)
    lm_eval.export(questions, tmp_path / "task", "one")
    lm_eval.export(questions[:2], tmp_path / "task", "two")
    assert {path.name for path in (tmp_path / "task").iterdir()} == {"two.yaml", "questions.jsonl", "utils.py"}
    (tmp_path / "task" / "__pycache__").mkdir()  # left by the harness
    lm_eval.export(questions[:2], tmp_path / "task", "two")
    (tmp_path / "task" / "mine.txt").write_text("x")
    for folder in (tmp_path / "task", tmp_path):
        with pytest.raises(InputError, match="holds other files than a task, and would be replaced"):
            lm_eval.export(questions, folder, "one")
    assert (tmp_path / "task" / "mine.txt").read_text() == "x"
