"""Probabilities, comparison, subgroups, orders, baselines, votes, forced choice, and the harness' task folder."""

from __future__ import annotations

import dataclasses
import json
import stat

import numpy as np
import pandas as pd
import pytest
from exam import exam, exam_tokenizer
from sklearn.metrics import brier_score_loss, roc_auc_score

from shared import binary, forced_choice, lm_eval, orders
from shared.answering import _vote
from shared.backend import Completion
from shared.comparison import compare
from shared.errors import InputError
from shared.evaluation import answer_to, details, read_answers, summarise, write_answers
from shared.evaluation_page import write_page
from shared.patients import age_band
from shared.prompts import encode
from shared.questions import LETTERS
from shared.subgroups import subgroups


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
    group = [Completion(np.zeros(4, np.int32), np.zeros(4, np.float32), truncated=i > 2) for i in range(5)]
    answer = _vote(question, group, ["B", "", "A", "B", "A"])
    assert (answer.predicted, answer.truncated, answer.tokens) == ("A", False, 4)  # of letters that tie the first
    assert answer.probabilities == (0.5, 0.5, 0.0, 0.0, 0.0)[: len(question.choices)]
    assert _vote(question, group, [""] * 5).probabilities == (1 / len(question.choices),) * len(question.choices)
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
    task = lm_eval.export(questions, tmp_path / "task", "creason_test")
    rows = [json.loads(line) for line in (tmp_path / "task" / "questions.jsonl").read_text().splitlines()]
    assert [row["letters"][row["right"]] for row in rows] == [question.answer for question in questions]
    text = task.read_text()
    assert "output_type: multiple_choice" in text and 'doc_to_text: "{{message}}\\nThe answer is"' in text
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "task").iterdir())
    with pytest.raises(InputError, match="letters, digits and underscores"):
        lm_eval.export(questions, tmp_path / "x", "a b")


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
    assert "61.3" in html and "suppressed" in html and "<svg" in html and "auroc" in html and "&lt;b&gt;" in html
    assert not any(line in html for question in questions for line in question.context.split("\n") if ":" in line)
