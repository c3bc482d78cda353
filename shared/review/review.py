"""Blinded review by clinicians: the answers of two models side by side, without the models' names.

A case holds the question and the two answers. The answers are called 1 and 2, since letters could be confused with the options
of a question. Which model is 1 is drawn for each rater and case, and is stored only in the key, a file that raters do not get.
A rater says which answer is better, and grades each, in a sheet (`ratings.py`) or on a web page (`site.py`). (The original
showed such pairs to its raters, but could not record their ratings; spec: registry, f.)
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared.errors import InputError
from shared.randomness import generator
from shared.report.page import write_html
from shared.review import store
from shared.review.ratings import write_sheet
from shared.review.store import STORE_FILE, Case
from shared.storage import files

RATER = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclasses.dataclass(frozen=True)
class Reply:
    """A question, a model's answer to it (`completion`), and the right answer (`answer`; "" if there is none)."""

    id: str
    question: str
    completion: str
    answer: str = ""


def read_replies(path: Path) -> dict[str, Reply]:
    """Read replies, by id, from a file with one JSON object per line, as `launch.evaluate --completions` writes.

    Raises InputError that names the wrong line, but never shows its content.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a text may contain other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable file of answers ({type(error).__name__})") from None
    replies: dict[str, Reply] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            reply = Reply(row["id"], row["question"], row["completion"], row.get("answer") or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}, line {number}: must be a JSON object with id, question, completion") from None
        if not all(isinstance(text, str) for text in dataclasses.astuple(reply)):
            raise InputError(f"{path}, line {number}: id, question, completion and answer must be texts")
        if reply.id in replies:
            raise InputError(f"{path}, line {number}: its id comes twice")
        replies[reply.id] = reply
    return replies


@dataclasses.dataclass(frozen=True)
class Written:
    """What `export` wrote: the number of cases of each rater, of pairs left out since both answers are the same, of all pairs."""

    cases: int
    identical: int
    pairs: int


def export(
    first: Path,
    second: Path,
    *,
    names: tuple[str, str],
    raters: Sequence[str],
    count: int,
    out: Path,
    key: Path,
    seed: int,
) -> Written:
    """Write a review: `out/RATER/cases.html` and `out/RATER/ratings.xlsx` for each rater, `out/review.sqlite`, and `key`.

    `first` and `second` are the files of replies of the two models. `count` cases (0: all) are drawn, the same for all raters,
    but in a different order for each. Pairs of equal answers (white space at the ends is ignored) are left out before. Raises
    InputError if too few pairs remain, the models had different questions, the name of a rater is not allowed, or a file or
    folder exists already.
    """
    of_first, of_second = read_replies(first), read_replies(second)
    ids = sorted(set(of_first) & set(of_second))
    if not ids:
        raise InputError(f"{first} and {second}: no id is in both; ask both models the same")
    if any(of_first[name].question != of_second[name].question for name in ids):
        raise InputError(f"{first} and {second}: a question of the same id differs; ask both models the same")
    _check_places(names, raters, out, key)
    different = [name for name in ids if of_first[name].completion.strip() != of_second[name].completion.strip()]
    if not different:
        raise InputError(f"{first} and {second}: all {len(ids)} pairs of answers are the same; nobody can prefer one")
    if count > len(different):
        same = (
            f", {len(ids) - len(different)} further ones are twice the same answer" if len(different) < len(ids) else ""
        )
        raise InputError(
            f"--cases={count}: there are {len(different)} pairs of answers that can be compared{same}; give at most "
            f"--cases={len(different)}, or leave --cases out for all"
        )
    chosen = sorted(generator(seed, "review").permutation(different)[: count or None].tolist())
    drawn, cases = {}, {}
    for rater in raters:
        random = generator(seed, "review", rater)
        order = random.permutation(chosen).tolist()
        swaps = random.permutation(np.arange(len(order)) % 2 == 1).tolist()  # each model is 1 in half of the cases
        drawn[rater] = [{"id": name, "second_is_1": swap} for name, swap in zip(order, swaps, strict=True)]
        cases[rater] = [_case(of_first[name], of_second[name], swap) for name, swap in zip(order, swaps, strict=True)]
    written = Written(len(chosen), len(ids) - len(different), len(ids))
    review = secrets.token_hex(8)
    with files.replacing(out) as temporary:
        for rater, shown in cases.items():
            (temporary / rater).mkdir(parents=True, mode=files.OWNER_ONLY_FOLDER)
            write_html(temporary / rater / "cases.html", "review.html", {"rater": rater, "cases": shown})
            write_sheet(temporary / rater / "ratings.xlsx", len(shown), {}, review=review, rater=rater)
        store.create(temporary / STORE_FILE, review, cases)
    key_content = {"names": list(names), "seed": seed, "review": review, "marked": True, "identical": written.identical}
    files.write_json(key, key_content | {"raters": drawn})
    return written


def _case(first: Reply, second: Reply, swap: bool) -> Case:
    answers = (first.completion, second.completion)
    return Case(first.question, (second if swap else first).answer, *(answers[::-1] if swap else answers))


def _check_places(names: tuple[str, str], raters: Sequence[str], out: Path, key: Path) -> None:
    if not raters:
        raise InputError(
            "--raters is needed: a name for each person who will rate, e.g. --raters=r1,r2; pseudonyms will do"
        )
    if len(set(raters)) < len(raters):
        duplicate = next(rater for rater in raters if raters.count(rater) > 1)
        raise InputError(f"--raters: {duplicate!r} stands there twice; name each rater once")
    not_allowed = [rater for rater in raters if not RATER.fullmatch(rater)]
    if not_allowed:
        raise InputError(f"--raters: {not_allowed[0]!r} must be letters, digits, hyphens and underscores")
    if names[0] == names[1]:
        raise InputError("--names: the two models need different names")
    if out.resolve() in key.resolve().parents:
        raise InputError(f"--key={key}: lies in --out, where raters would find it; keep it elsewhere")
    for path in (out, key):
        if path.exists():
            raise InputError(f"{path}: is there already; a new review needs a new place, so that no rating is lost")
