"""Blinded review by clinicians: write pairs of two models' answers, or read ratings back.

    creason review --first=base_eval/completions.jsonl --second=trained_eval/completions.jsonl \\
        --names=base,trained --raters=r1,r2,r3 --cases=60 --out=review --key=review_key.json
    creason review --ratings=r1=review/r1/ratings.xlsx,r2=review/r2/ratings.xlsx --key=review_key.json \\
        --out=review_summary.json

Answers come from `creason evaluate --completions` or `creason consult` (docs/review.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from launch import app
from shared import files, review
from shared.errors import InputError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string(
        "first",
        "",
        "Answers of one model (completions.jsonl of `creason evaluate --completions` or `creason consult`).",
    )
    flags.DEFINE_string("second", "", "Answers of the other model to the same questions.")
    flags.DEFINE_list("names", ["first", "second"], "What the two are called in the key and the summary.")
    flags.DEFINE_list("raters", [], "Names of the raters, separated by commas; pseudonyms will do.")
    flags.DEFINE_integer("cases", 0, "Cases drawn, the same for every rater; 0: all.", lower_bound=0)
    flags.DEFINE_integer("seed", 42, "Seed of the cases, their order, who is A, and the resampling.")
    flags.DEFINE_list("ratings", [], "To summarise: RATER=FILE, RATER=FILE, filled-in sheets.")
    flags.DEFINE_string(
        "key", None, "Which answer is whose: written with the cases, read with the ratings.", required=True
    )
    flags.DEFINE_string("out", None, "Folder of the cases to write; or file of the summary (JSON).", required=True)
    flags.DEFINE_integer("bootstrap", 2_000, "Resamples of cases for the intervals.", lower_bound=100)


def main() -> None:
    """Write cases, or summarise ratings. Raises InputError for a bad flag or file."""
    out, key = Path(FLAGS.out), Path(FLAGS.key)
    if FLAGS.ratings:
        if FLAGS.first or FLAGS.second:
            raise InputError("--ratings summarises, --first and --second write cases; give one or the other")
        found = review.summarise(sheets(FLAGS.ratings), key, bootstrap=FLAGS.bootstrap, seed=FLAGS.seed)
        files.write_json(out, found)
        print("\n".join([*lines(found), f"figures  {out}"]))
        return
    if not FLAGS.first or not FLAGS.second:
        raise InputError("--first and --second are needed to write cases, or --ratings to summarise them")
    if len(FLAGS.names) != 2:
        raise InputError("--names: give two names, separated by a comma")
    count = review.export(
        Path(FLAGS.first),
        Path(FLAGS.second),
        names=(FLAGS.names[0], FLAGS.names[1]),
        raters=FLAGS.raters,
        count=FLAGS.cases,
        out=out,
        key=key,
        seed=FLAGS.seed,
    )
    print(f"cases    {count} for each of {len(FLAGS.raters)} raters: {out}\nkey      {key} (not for raters)")


def sheets(words: list[str]) -> dict[str, Path]:
    """Each rater's file. Raises InputError for a word that is not RATER=FILE, or a rater that comes twice."""
    found: dict[str, Path] = {}
    for word in words:
        rater, mark, path = word.partition("=")
        if not mark or not rater or not path or rater in found:
            raise InputError(f"--ratings: {word!r} must be RATER=FILE, each rater once")
        found[rater] = Path(path).expanduser()
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The summary for a terminal."""

    def figure(value: float | None, form: str = ".2f") -> str:
        return "unknown" if value is None else f"{value:{form}}"

    first, second = found["names"]
    better, grades, agreement = found["better"], found["grades"], found["agreement"]
    bounds = found["ci"]
    return [
        f"ratings  {found['ratings']} of {found['cases']} cases by {len(found['raters'])} raters",
        f"better   {first} {better['first']}, equal {better['equal']}, {second} {better['second']}",
        f"mean     {figure(found['preference'], '+.2f')} from -1 ({first}) to +1 ({second}), 95 % interval "
        + ("unknown" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}")
        + f", sign test p = {found['p']:.3g}",
        f"grades   {first} {figure(grades['first'])}, {second} {figure(grades['second'])}",
        f"A chosen {figure(found['said_a'])} of the time",
        f"agreement  alpha of preferences {figure(agreement['preference_alpha'])}, of grades "
        f"{figure(agreement['grades_alpha'])}, equal preferences {figure(agreement['equal_preferences'])}",
        *(f"open     {rater}: {part['open']} cases" for rater, part in found["raters"].items() if part["open"]),
    ]


if __name__ == "__main__":
    define_flags()
    app.run(main)
