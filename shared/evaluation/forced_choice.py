"""The paper's protocol: a fixed answer phrase is put behind the model's reasoning, and its likeliest letter is the answer.

Three faults of the original are mended (spec: registry, quirks 11 and 32). Only the letters of the options shown compete. The
phrase begins a paragraph and is encoded together with its letter: the original put a second beginning-of-text token in the
middle, and left a blank before a letter that tokenizers write with one. A text that is too long loses the end of its
reasoning, not the question or the phrase. What the model boxed itself has no influence; an evaluation reports it beside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from shared.backend import Completion, RolloutEngine
from shared.errors import InputError
from shared.evaluation.answers import Answer, answer_to
from shared.questions.prompts import encode
from shared.questions.record import LETTERS, Question

PHRASE = "\n\nTherefore, the answer to Q1 is"


def phrase_and_letters(tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of the answer phrase `[time]`, and the first token of each letter after it `[5]`, int32.

    Raises InputError for a tokenizer in which two letters begin with the same token.
    """
    whole = [encode(tokenizer, f"{PHRASE} {letter}") for letter in LETTERS]
    columns = np.stack([text[: min(map(len, whole))] for text in whole], axis=1)
    same = (columns == columns[:, :1]).all(axis=1)
    length = int(np.argmin(same))
    letters = columns[length]
    if same.all() or len(set(letters.tolist())) < len(LETTERS):
        raise InputError(
            "--protocol=forced_choice: this tokenizer has no token of its own for each of A to E; use boxed"
        )
    return whole[0][:length], letters


def forced_text(
    prompt: np.ndarray, completion: np.ndarray, phrase: np.ndarray, *, longest: int, stop: Sequence[int]
) -> np.ndarray:
    """Prompt, reasoning without its end-of-sequence token, and the answer phrase, in at most `longest` tokens."""
    if len(completion) and int(completion[-1]) in stop:
        completion = completion[:-1]
    room = max(0, longest - len(prompt) - len(phrase))
    return np.concatenate([prompt, completion[:room], phrase]).astype(np.int32)[-longest:]


def forced_answers(
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    completions: Sequence[Completion],
    *,
    longest: int,
    stop: Sequence[int],
) -> list[Answer]:
    """The most likely letter of each question among its options, with the probabilities of all of them.

    `prompts`: token ids of each question `[time]`. `longest`: the most tokens that the engine takes
    (`shared.backend.longest_scored`). `stop`: the tokens that end a completion. Raises InputError where a log-probability is not
    a number, since the first letter would win every time.
    """
    phrase, letters = phrase_and_letters(tokenizer)
    texts = [
        forced_text(prompt, completion.tokens, phrase, longest=longest, stop=stop)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    answers = []
    scored = engine.next_token_logprobs(texts, letters)
    for question, logprobs, completion in zip(questions, scored, completions, strict=True):
        competing = logprobs[: len(question.choices)].astype(np.float64)
        if np.isnan(competing).any() or not np.isfinite(competing.max()):
            raise InputError(
                f"question {question.id}: the model's log-probabilities of its letters are not numbers; its weights are "
                "broken, or too large for the number format: try --compute_dtype=float32"
            )
        shares = np.exp(competing - competing.max())
        answers.append(
            answer_to(
                question,
                LETTERS[int(np.argmax(competing))],
                truncated=completion.truncated,
                tokens=len(completion.tokens),
                probabilities=tuple((shares / shares.sum()).tolist()),
            )
        )
    return answers
