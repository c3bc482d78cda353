"""Blinded review: clinicians compare the answers of two models, on a page or in workbooks.

    creason review --first=base_eval/completions.jsonl --second=trained_eval/completions.jsonl \\
        --names=base,trained --raters=r1,r2,r3 --cases=60 --out=review --key=review_key.json
    creason review --serve --out=review
    creason review --ratings=review --key=review_key.json --out=review_summary.json
    creason review --ratings=r1=review/r1/ratings.xlsx,r2=review/r2/ratings.xlsx --key=review_key.json \\
        --out=review_summary.json

The first command writes the cases. The second serves the page on which raters rate them. The last two summarise the ratings from
the page, or from workbooks. The answers come from `creason evaluate --completions` or `creason consult` (docs/review.md).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import flags

from launch import app
from shared.errors import InputError
from shared.storage import files

FLAGS = flags.FLAGS
# Use of this program -> its flags, besides --out.
TAKES = {
    "--first and --second": {"first", "second", "names", "raters", "cases", "seed", "key"},
    "--serve": {"serve", "host", "port", "address"},
    "--ratings": {"ratings", "sheets", "key", "bootstrap", "seed"},
}


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string(
        "first",
        "",
        "Answers of one model (completions.jsonl of `creason evaluate --completions` or `creason consult`).",
    )
    flags.DEFINE_string("second", "", "Answers of the other model to the same questions.")
    flags.DEFINE_list("names", ["first", "second"], "Names of the two models in the key and the summary.")
    flags.DEFINE_list("raters", [], "Names of the raters, separated by commas; they may be pseudonyms.")
    flags.DEFINE_integer(
        "cases", 0, "How many cases are drawn at random, the same for every rater; 0: all.", lower_bound=0
    )
    flags.DEFINE_integer(
        "seed", 42, "Seed for drawing cases, their order, which answer is number 1, and the resampling."
    )
    flags.DEFINE_bool(
        "serve", False, "Serve the raters' page from --out; with --first and --second, write the cases first."
    )
    flags.DEFINE_string(
        "host",
        "127.0.0.1",
        "With --serve: the address to listen on. The default is for this machine only; others are not encrypted.",
    )
    flags.DEFINE_integer("port", 8765, "With --serve: the port; 0: any free port.", lower_bound=0, upper_bound=65_535)
    flags.DEFINE_string(
        "address",
        "",
        "With --serve: the address of a proxy through which raters reach the page, e.g. https://review.example.org.",
    )
    flags.DEFINE_list(
        "ratings",
        [],
        "To summarise: the folder of a review that was served, or filled-in sheets as RATER=FILE,RATER=FILE.",
    )
    flags.DEFINE_string(
        "sheets", "", "With --ratings: a new folder for all ratings as filled-in workbooks, one for each rater."
    )
    flags.DEFINE_string(
        "key", "", "File that says which model gave which answer: written with the cases, read with the ratings."
    )
    flags.DEFINE_string(
        "out", None, "Folder for the cases to write or serve; with --ratings, the summary's file (JSON).", required=True
    )
    flags.DEFINE_integer("bootstrap", 2_000, "Resamples of cases for the intervals.", lower_bound=100)


def main() -> None:
    """Write cases, serve them, or summarise ratings. Raises InputError for a bad flag or file."""
    out, writes = Path(FLAGS.out), bool(FLAGS.first or FLAGS.second)
    check_flags(writes)
    if FLAGS.ratings:
        if writes or FLAGS.serve:
            raise InputError("--ratings summarises; give it without --serve, --first and --second")
        summarise(out)
        return
    if not (writes or FLAGS.serve):
        raise InputError(
            "--first and --second are needed to write cases, --serve to serve them, or --ratings to summarise"
        )
    if not FLAGS.serve:
        write(out)
        return
    from launch import review_server  # needs neither pandas nor SciPy, so the server starts quickly

    review_server.check_address(FLAGS.address)
    with review_server.listen(FLAGS.host, FLAGS.port) as listening:
        if writes:
            write(out)
        review_server.serve(out, listening, host=FLAGS.host, address=FLAGS.address)


def check_flags(writes: bool) -> None:
    """Raise InputError for a flag that would be ignored, because it belongs to another use of this program."""
    requested = dict(zip(TAKES, (writes, FLAGS.serve, FLAGS.ratings), strict=True))
    allowed = set().union(*(names for use, names in TAKES.items() if requested[use]))
    for name in sorted(set().union(*TAKES.values()) - allowed):
        if FLAGS[name].present and any(requested.values()):
            uses = " or ".join(use for use, names in TAKES.items() if name in names)
            raise InputError(f"--{name} goes with {uses}; leave it out, for nothing would read it")


def write(out: Path) -> None:
    """Write the cases, and print how many there are."""
    from shared.review import review

    if not FLAGS.first or not FLAGS.second:
        raise InputError("--first and --second are both needed to write cases")
    if len(FLAGS.names) != 2:
        raise InputError("--names: give two names, separated by a comma")
    if out.exists() and FLAGS.serve:
        raise InputError(f"--out={out}: is there already; to go on with it give --serve and --out alone")
    written = review.export(
        Path(FLAGS.first),
        Path(FLAGS.second),
        names=(FLAGS.names[0], FLAGS.names[1]),
        raters=FLAGS.raters,
        count=FLAGS.cases,
        out=out,
        key=key_path(),
        seed=FLAGS.seed,
    )
    print(
        f"cases    {written.cases} for each of {len(FLAGS.raters)} raters: {out}\nkey      {key_path()} (not for raters)"
    )
    if written.identical:
        print(f"left out {written.identical} of {written.pairs} pairs, whose two answers are the same")


def summarise(out: Path) -> None:
    """Summarise ratings, from the page or from sheets, and print the figures."""
    from shared.review import ratings

    replaced = app.check_result("out", out, files.holds("names", "preference", "agreement"))
    key = ratings.read_key(key_path())
    folders, files_of = sources(FLAGS.ratings)
    ratings_of = {
        rater: dict(rater_ratings)
        for folder in folders
        for rater, rater_ratings in ratings.read_store(folder, key).items()
    }
    for rater, path in files_of.items():
        if rater not in key.drawn:
            raise InputError(f"{key_path()}: knows no rater {rater}; known are {', '.join(key.drawn)}")
        if ratings_of.get(rater):
            raise InputError(f"--ratings: {rater} has ratings on the page and in {path}; give one of them")
        ratings_of[rater] = ratings.read_sheet(path, key, rater)
        if not ratings.says_whose(path):
            print(
                f"warning: {path}: was made by an earlier version, so it does not say whose it is; check that it is the sheet of "
                f"{rater}: with another rater's sheet the figures would be wrong",
                file=sys.stderr,
            )
    summary = ratings.summarise(ratings_of, key, bootstrap=FLAGS.bootstrap, seed=FLAGS.seed)
    if FLAGS.sheets:
        ratings.write_sheets(Path(FLAGS.sheets), ratings_of, key)
    files.write_json(out, summary)
    print(
        "\n".join(
            [*lines(summary), f"figures  {out}{replaced}", *([f"sheets   {FLAGS.sheets}"] if FLAGS.sheets else [])]
        )
    )


def key_path() -> Path:
    """The file that --key names. Raises InputError if the flag is missing."""
    if not FLAGS.key:
        raise InputError("--key is needed: which answer is whose, written with the cases and read with the ratings")
    return Path(FLAGS.key)


def sources(words: list[str]) -> tuple[list[Path], dict[str, Path]]:
    """The folders (none or one) of a served review, and rater -> file, from the values of --ratings.

    Raises InputError for a value that is neither a folder nor RATER=FILE, for a rater that comes twice, and for a second folder.
    """
    folders: list[Path] = []
    files_of: dict[str, Path] = {}
    for word in words:
        rater, mark, path = word.partition("=")
        if not mark and Path(word).is_dir() and not folders:
            folders.append(Path(word))
        elif rater in files_of:
            raise InputError(
                f"--ratings: {rater} comes twice, with {files_of[rater]} and with {path}; give one file for each rater"
            )
        elif not mark or not rater or not path:
            raise InputError(f"--ratings: {word!r} must be RATER=FILE, or the one folder of a served review")
        else:
            files_of[rater] = Path(path).expanduser()
    return folders, files_of


def lines(summary: dict[str, Any]) -> list[str]:
    """The lines of the summary for a terminal."""

    def figure(value: float | None, form: str = ".2f") -> str:
        return "unknown" if value is None else f"{value:{form}}"

    first, second = summary["names"]
    better, grades, agreement = summary["better"], summary["grades"], summary["agreement"]
    bounds = summary["ci"]
    return [
        f"ratings  {summary['ratings']} of {summary['possible']} that could be given ({summary['cases']} cases, "
        f"{len(summary['raters'])} {'rater' if len(summary['raters']) == 1 else 'raters'})",
        f"better   {first} {better['first']}, equal {better['equal']}, {second} {better['second']}",
        f"mean     {figure(summary['preference'], '+.2f')} from -1 ({first}) to +1 ({second}), 95 % interval "
        + ("unknown" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}")
        + f", sign test p = {summary['p']:.3g}",
        f"grades   {first} {figure(grades['first'])}, {second} {figure(grades['second'])}",
        f"answer 1 chosen {figure(summary['said_1'])} of the time",
        f"agreement  alpha of preferences {figure(agreement['preference_alpha'])}, of grades "
        f"{figure(agreement['grades_alpha'])}, equal preferences {figure(agreement['equal_preferences'])}",
        *([f"left out {summary['identical']} pairs, whose two answers are the same"] if summary["identical"] else []),
        *(f"open     {rater}: {part['open']} cases" for rater, part in summary["raters"].items() if part["open"]),
    ]


if __name__ == "__main__":
    define_flags()
    app.run(main)
