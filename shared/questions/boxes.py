r"""The letter that a completion gives as its answer, by the rule of the paper or by a lenient rule. This file imports nothing
of the project: `shared.evaluation.lm_eval` exports a copy of it, so that both programs read answers in the same way.

    strict_first  the first `\boxed{X}` with X from A to E, anywhere in the completion; no other form counts (the paper)
    lenient_last  the last box that holds a single letter, after the reasoning

The lenient rule accepts `\boxed` and `\fbox`, capital and small letters, and around the letter blanks, `$`, `*`, quotes,
brackets, full stops and commands for a typeface: `\boxed{\text{B}}`, `{ B }`, `{B.}`, `{(B)}`, `{b}`. Without braces the letter
must be a capital: `\boxed B`. A letter that is followed by more text does not count: `\boxed{E. coli}` is the text of an option,
not the letter E. A box that does not hold exactly one letter is ignored. The letter of the last remaining box is the answer; if
it is not the letter of an option, there is no answer.
"""

from __future__ import annotations

import re

RULES = ("strict_first", "lenient_last")
LETTERS = "ABCDE"  # the reward and the forced-choice evaluation know no others (spec: registry, e)

_STRICT = re.compile(r"\\boxed\{([A-E])\}")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_TYPEFACE = re.compile(
    r"\\(?:(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt|normal)|operatorname|boldsymbol|bm|mbox|bf|it|rm)"
    r"(?![A-Za-z])|[,;:! ])"
)
_LETTER = re.compile(r"[\s~$*_`'\".,:;(){}\[\]]*([A-Za-z])[\s~$*_`'\".,:;(){}\[\]]*")
_BARE = re.compile(r"\s*([A-Z])(?![A-Za-z0-9])")
LONGEST = 80  # characters of a box that are read at most, so that the time to read a text is linear in its length
THINK, THOUGHT = "<think>", "</think>"


def strict_first(text: str) -> str:
    r"""The letter of the first `\boxed{X}` with X in A-E, or "" if there is none.

    Small letters, blanks within the braces and `\text{}` do not count. Source: the original's reward (docs/spec/registry.md,
    section e).
    """
    match = _STRICT.search(text)
    return match.group(1) if match else ""


def lenient_last(text: str, options: int = 5, *, thinking: bool = False) -> str:
    """The letter of the last box with a letter (see the top of this file), or "" if there is none.

    It is "" too if the letter is not among the first `options` letters. Only the text after the reasoning is read (see
    `answer_part`): a box in the reasoning is not an answer.
    """
    answer = answer_part(text, thinking=thinking)
    for box in reversed(list(_BOX.finditer(answer))):
        letter = _letter_in(answer[box.end() : box.end() + LONGEST])
        if letter:
            return letter if letter in LETTERS[:options] else ""
    return ""


def answer_part(text: str, *, thinking: bool = False) -> str:
    """The text after the reasoning: after the last `</think>`, and before a `<think>` that is not closed.

    A text without reasoning is returned completely. `thinking` says that the prompt has opened the reasoning, so that the text
    begins inside it; if it never ends, the result is "".
    """
    opened = THINK + text if thinking else text
    return opened.rpartition(THOUGHT)[2].partition(THINK)[0]


def answer_letter(text: str, rule: str = "strict_first", *, options: int = 5, thinking: bool = False) -> str:
    """The letter of the answer by one of `RULES`, or "". The strict rule ignores `options` and `thinking`."""
    return strict_first(text) if rule == "strict_first" else lenient_last(text, options, thinking=thinking)


def _letter_in(text: str) -> str:
    """The letter in a box, as a capital; "" if the box holds anything else. `text` begins after the command of the box."""
    content = text.lstrip()
    if not content.startswith("{"):
        bare = _BARE.match(text)
        return bare.group(1) if bare else ""
    depth = 0
    for end, character in enumerate(content):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            match = _LETTER.fullmatch(_TYPEFACE.sub("", content[1:end]))
            return match.group(1).upper() if match else ""
    return ""
