"""The paper's protocol: after its reasoning a model must go on with the answer phrase, and the letter is chosen for it.

What an engine has to offer for it is `OptionScorer`. Mended (spec: registry, quirks 11 and 32): only the letters of the
options shown compete, no second beginning-of-text token stands in the middle, and a text that is too long loses the end
of its reasoning, not the question's answer phrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

from shared.evaluation import Answer, answer_to
from shared.prompts import encode
from shared.questions import LETTERS, Question

PHRASE = "\n\nTherefore, the answer to Q1 is"


class OptionScorer(Protocol):
    """An engine that can say how likely each of some next tokens is."""

    def next_token_logprobs(self, prompts: Sequence[np.ndarray], candidates: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each prompt `[time]` int32, the float32 log-probabilities of its `candidates` `[options]` as next token.

        Under the weights last published, at temperature 1, over the whole vocabulary.
        """
        ...


def letter_tokens(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """`[5]` int32: the token that each letter begins with when it follows the answer phrase after a blank."""
    stem = encode(tokenizer, PHRASE)
    found = []
    for letter in LETTERS:
        whole = encode(tokenizer, f"{PHRASE} {letter}")
        shared_part = next((i for i, (a, b) in enumerate(zip(stem, whole)) if a != b), len(stem))
        found.append(int(whole[shared_part]))
    if len(set(found)) < len(LETTERS):  # the blank is a token of its own, so the letter is the one after it
        found = [int(encode(tokenizer, letter)[-1]) for letter in LETTERS]
    return np.asarray(found, np.int32)


def forced_prompt(
    tokenizer: PreTrainedTokenizerFast,
    prompt: np.ndarray,
    completion: np.ndarray,
    *,
    max_tokens: int,
    stop: Sequence[int],
) -> np.ndarray:
    """Prompt, reasoning without its end-of-sequence token, and the answer phrase, in at most `max_tokens` tokens."""
    if len(completion) and int(completion[-1]) in stop:
        completion = completion[:-1]
    phrase = encode(tokenizer, PHRASE)
    room = max(0, max_tokens - len(prompt) - len(phrase))
    return np.concatenate([prompt, completion[:room], phrase]).astype(np.int32)[-max_tokens:]


def forced_answers(
    scorer: OptionScorer,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
    completions: Sequence[np.ndarray],
    truncated: Sequence[bool],
    *,
    max_tokens: int,
    stop: Sequence[int],
) -> list[Answer]:
    """The most likely letter of each question among its options, with the probabilities of all of them."""
    letters = letter_tokens(tokenizer)
    texts = [
        forced_prompt(tokenizer, prompt, completion, max_tokens=max_tokens, stop=stop)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    scores = scorer.next_token_logprobs(texts, [letters[: len(question.choices)] for question in questions])
    answers = []
    for question, score, completion, cut in zip(questions, scores, completions, truncated, strict=True):
        shares = np.exp(score.astype(np.float64) - score.max())
        answers.append(
            answer_to(
                question,
                LETTERS[int(np.argmax(score))],
                truncated=cut,
                tokens=len(completion),
                probabilities=tuple((shares / shares.sum()).tolist()),
            )
        )
    return answers
