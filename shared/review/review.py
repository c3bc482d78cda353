"""Blinded review by clinicians: two models' answers side by side, neither named.

A case holds what both models were given and their answers, called 1 and 2: letters would be taken for the options of a
question. Which is which is drawn for each rater and case and stands in the key alone, a file kept apart from what raters
get. A rater says which answer is better and gives a grade to each, in a sheet (`ratings.py`) or on a page
(`review_site.py`). (The original showed such pairs to its raters and had no place for their ratings; spec: registry, f.)
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
    """What a model was given and what it answered; `answer` is the right one where there is such, else ""."""

    id: str
    question: str
    completion: str
    answer: str = ""


def read_replies(path: Path) -> dict[str, Reply]:
    """Replies by id from a file with one JSON object a line, as `launch.evaluate --completions` writes it.

    Raises InputError naming the line that is wrong, never with what it holds.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # texts may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable file of answers ({type(error).__name__})") from None
    found: dict[str, Reply] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            reply = Reply(row["id"], row["question"], row["completion"], row.get("answer") or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}, line {number}: must be a JSON object with id, question, completion") from None
        if not all(isinstance(text, str) for text in dataclasses.astuple(reply)):
            raise InputError(f"{path}, line {number}: id, question, completion and answer must be texts")
        if reply.id in found:
            raise InputError(f"{path}, line {number}: its id comes twice")
        found[reply.id] = reply
    return found


@dataclasses.dataclass(frozen=True)
class Written:
    """What `export` wrote: cases for each rater; pairs left out because both answers are the same, of all pairs."""

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
    """Write `out/RATER/cases.html` and `out/RATER/ratings.xlsx` for each rater, `out/review.sqlite` and `key`.

    `count` cases (0: all) are drawn, the same for every rater, each rater's in an order of their own. Pairs of the same
    answer, but for white space around it, are left out before that. Raises InputError where too few other pairs are there, the
    models were not asked the same, a rater's name cannot be a folder's, or files would be replaced.
    """
    one, other = read_replies(first), read_replies(second)
    ids = sorted(set(one) & set(other))
    if not ids:
        raise InputError(f"{first} and {second}: no id is in both; ask both models the same")
    if any(one[name].question != other[name].question for name in ids):
        raise InputError(f"{first} and {second}: a question of the same id differs; ask both models the same")
    _check_places(names, raters, out, key)
    different = [name for name in ids if one[name].completion.strip() != other[name].completion.strip()]
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
        turned = random.permutation(np.arange(len(order)) % 2 == 1).tolist()  # each model is 1 in half of the cases
        drawn[rater] = [{"id": name, "second_is_1": turn} for name, turn in zip(order, turned, strict=True)]
        cases[rater] = [_case(one[name], other[name], turn) for name, turn in zip(order, turned, strict=True)]
    written = Written(len(chosen), len(ids) - len(different), len(ids))
    review = secrets.token_hex(8)
    with files.replacing(out) as temporary:
        for rater, shown in cases.items():
            (temporary / rater).mkdir(parents=True, mode=files.OWNER_ONLY_FOLDER)
            write_html(temporary / rater / "cases.html", "review.html", {"rater": rater, "cases": shown})
            write_sheet(temporary / rater / "ratings.xlsx", len(shown), {}, review=review, rater=rater)
        store.create(temporary / STORE_FILE, review, cases)
    known = {"names": list(names), "seed": seed, "review": review, "marked": True, "identical": written.identical}
    files.write_json(key, known | {"raters": drawn})
    return written


def _case(one: Reply, other: Reply, turn: bool) -> Case:
    answers = (one.completion, other.completion)
    return Case(one.question, (other if turn else one).answer, *(answers[::-1] if turn else answers))


def _check_places(names: tuple[str, str], raters: Sequence[str], out: Path, key: Path) -> None:
    if not raters:
        raise InputError(
            "--raters is needed: a name for each person who will rate, e.g. --raters=r1,r2; pseudonyms will do"
        )
    if len(set(raters)) < len(raters):
        twice = next(rater for rater in raters if raters.count(rater) > 1)
        raise InputError(f"--raters: {twice!r} stands there twice; name each rater once")
    wrong = [rater for rater in raters if not RATER.fullmatch(rater)]
    if wrong:
        raise InputError(f"--raters: {wrong[0]!r} must be letters, digits, hyphens and underscores")
    if names[0] == names[1]:
        raise InputError("--names: the two models need different names")
    if out.resolve() in key.resolve().parents:
        raise InputError(f"--key={key}: lies in --out, where raters would find it; keep it elsewhere")
    for path in (out, key):
        if path.exists():
            raise InputError(f"{path}: is there already; a new review needs a new place, so that no rating is lost")
