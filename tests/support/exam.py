"""Questions and a tokenizer for tests that need some, whatever they are about."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from shared.policy.tokenizer import load_tokenizer, train_tokenizer
from shared.questions.prompts import PREFILL, SYSTEM_PROMPT
from shared.questions.record import LETTERS, Question
from shared.tasks.prompts import user_message
from shared.training.warmup import worked_answer

SOURCES = ("Lung", "Urinary tract", "Abdomen", "Skin and soft tissue", "Unknown")


def exam(count: int, *, start: int = 0) -> list[Question]:
    """`count` questions, each about a patient of its own; their contexts differ in a number and in length."""
    return [_question(number) for number in range(start, start + count)]


def of_others(questions: list[Question]) -> list[Question]:
    """The same questions about other patients: training questions, where these are held out."""
    return [dataclasses.replace(question, patient=f"other {question.patient}") for question in questions]


def _question(number: int) -> Question:
    choices = SOURCES[: 2 + number % 4]
    answer = LETTERS[number % len(choices)]
    comments = "".join(f"\nComment {line}: stable" for line in range(number % 3))
    return Question(
        id=f"question-{number}",
        cohort="synthetic",
        task="denoising",
        feature=f"feature-{number % 3}",
        section="[Initial Findings]",
        patient=f"patient-{number}",
        context=f"[Baseline]\nAge: {40 + number}\nSex: Male\n\n[Initial Findings]\nSource: [MASK]\nLactate: 2.4{comments}",
        question="Q1. What would be the masked value of 'Source' in section [Initial Findings]?",
        choices=choices,
        answer=answer,
        majority="A",
    )


def exam_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer trained on the questions, written to `folder`."""
    texts = [text for q in exam(20) for text in (SYSTEM_PROMPT, user_message(q), PREFILL, worked_answer(q))]
    train_tokenizer(texts, 512, folder)
    return load_tokenizer(folder)


def numbered(count: int) -> list[Question]:
    return [
        Question(
            id=f"q{number}",
            cohort="synthetic",
            task="denoising",
            feature="age",
            section="[Baseline]",
            patient="p",
            context="age: [MASK]",
            question="which?",
            choices=("1", "2"),
            answer="A",
            majority="B",
        )
        for number in range(count)
    ]
