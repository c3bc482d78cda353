r"""The letter that a completion gives as its answer, by the rule of the paper or by a lenient one. This file imports nothing of
the project: `shared.evaluation.lm_eval` exports it as it stands, so that both programs read alike.

    strict_first  the first `\boxed{X}` with X from A to E, anywhere in the completion; nothing else is a box (the paper)
    lenient_last  the last box that holds a single letter, in what stands behind the reasoning

The lenient rule takes `\boxed` and `\fbox`, either case, and blanks, `$`, `*`, quotes, brackets, full stops and commands for a
typeface around the letter: `\boxed{\text{B}}`, `{ B }`, `{B.}`, `{(B)}`, `{b}`; without braces a capital: `\boxed B`. It takes
no letter with a text behind it: `\boxed{E. coli}` is an option's text, not the letter E. A box that holds anything else than
one letter is passed over. The letter of the last one counts: where it is none of the options shown, there is no answer.
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
LONGEST = 80  # characters of a box that may hold a letter; so a text of any kind is read in time linear in its length
THINK, THOUGHT = "<think>", "</think>"


def strict_first(text: str) -> str:
    r"""The letter of the first `\boxed{X}` with X in A-E, or "" where there is none.

    Later boxes, lower case, blanks within the braces and `\text{}` do not count. Source: the original's reward
    (docs/spec/registry.md, section e).
    """
    match = _STRICT.search(text)
    return match.group(1) if match else ""


def lenient_last(text: str, options: int = 5, *, thinking: bool = False) -> str:
    """The letter of the last box with a letter (top of this file), or "" where there is none or it is not among the `options`.

    Only what stands behind the last `</think>` is read, and of that nothing behind a `<think>`, which was never closed: a box
    in reasoning is no answer. `thinking`: the prompt has opened the reasoning, and the text begins inside it.
    """
    answer = answer_part(text, thinking=thinking)
    for box in reversed(list(_BOX.finditer(answer))):
        letter = _letter_in(answer[box.end() : box.end() + LONGEST])
        if letter:
            return letter if letter in LETTERS[:options] else ""
    return ""


def answer_part(text: str, *, thinking: bool = False) -> str:
    """What stands behind the reasoning: all of a text without any, nothing of one that never ends it."""
    opened = THINK + text if thinking else text
    return opened.rpartition(THOUGHT)[2].partition(THINK)[0]


def answer_letter(text: str, rule: str = "strict_first", *, options: int = 5, thinking: bool = False) -> str:
    """The letter by one of `RULES`, or "". The strict rule looks neither at the `options` nor at reasoning."""
    return strict_first(text) if rule == "strict_first" else lenient_last(text, options, thinking=thinking)


def _letter_in(behind: str) -> str:
    """The letter, a capital, in the box whose content begins `behind` the command; "" where it holds anything else."""
    content = behind.lstrip()
    if not content.startswith("{"):
        bare = _BARE.match(behind)
        return bare.group(1) if bare else ""
    depth = 0
    for end, character in enumerate(content):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            found = _LETTER.fullmatch(_TYPEFACE.sub("", content[1:end]))
            return found.group(1).upper() if found else ""
    return ""
