"""Blinded review: what raters get, what stays apart, and what their ratings come to."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat

import numpy as np
import openpyxl
import pandas as pd
import pytest

from shared.errors import InputError
from shared.review import ratings, review
from shared.review.agreement import agreed, alpha
from shared.review.store import STORE_FILE, Case, Said, Store
from shared.storage import files
from tests.support.commands import here
from tests.support.review_files import CASES, replies

RATERS = ("r1", "r2", "r3")

# Krippendorff's own example: 4 observers, 12 units.
KNOWN = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
], float)  # fmt: skip


@pytest.mark.parametrize(("scale", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_krippendorffs(scale, value):
    assert alpha(KNOWN, scale) == pytest.approx(value, abs=5e-4)
    assert alpha(KNOWN[::-1, ::-1], scale) == pytest.approx(alpha(KNOWN, scale))


def test_alpha_without_variation_or_pairs_is_unknown():
    assert alpha(np.ones((3, 4)), "nominal") is None
    assert alpha(np.array([[1.0, np.nan], [np.nan, 2.0]]), "nominal") is None
    assert alpha(np.array([[1.0, 2.0, 3.0]] * 2), "ordinal") == 1
    assert agreed([[1, 2, None], [1, 3, 4], [1, 2, None]]) == pytest.approx(4 / 6) and agreed([[1], [None]]) is None


def test_any_text_of_an_answer_comes_back(tmp_path):
    """Unicode has ends of lines that JSON leaves as they are."""
    text = "one\u2028two\u2029three\x85four\x0cfive\x1csix\r\nseven"
    rows = [{"id": f"q{i}", "question": text, "completion": text} for i in range(2)]
    files.write_json_lines(tmp_path / "a.jsonl", rows)
    found = review.read_replies(tmp_path / "a.jsonl")
    assert [(reply.id, reply.question, reply.completion) for reply in found.values()] == [
        ("q0", text, text),
        ("q1", text, text),
    ]


@pytest.fixture
def written(tmp_path):
    first, second = replies(tmp_path / "base.jsonl", "alpha"), replies(tmp_path / "trained.jsonl", "omega", CASES + 3)
    out, key = tmp_path / "out", tmp_path / "key.json"
    count = review.export(first, second, names=("base", "trained"), raters=RATERS, count=0, out=out, key=key, seed=1)
    assert count == review.Written(CASES, identical=0, pairs=CASES)  # of those that both answered
    return out, key


def fill(path, rows):
    """Write ratings into a rater's sheet, by case: better, grade of 1, grade of 2."""
    book = openpyxl.load_workbook(path)
    for case, cells in rows.items():
        for column, cell in enumerate(cells, start=2):
            book.active.cell(row=case + 1, column=column, value=cell)
    book.save(path)


def summary(sheets, key):
    """What `summarise` makes of sheets; `key` is a file."""
    known = ratings.read_key(key)
    said = {rater: ratings.read_sheet(path, known, rater) for rater, path in sheets.items()}
    return ratings.summarise(said, known, bootstrap=200, seed=1)


def test_raters_see_pairs_and_no_names(written):
    out, key = written
    known = json.loads(key.read_text())
    orders = []
    for rater in RATERS:
        page = (out / rater / "cases.html").read_text()
        assert "base" not in page and "trained" not in page and "&lt;b&gt;&amp;" in page and "<script" not in page
        places = known["raters"][rater]
        assert sum(place["second_is_1"] for place in places) == CASES / 2
        for place in places:
            number = int(place["id"][1:])
            one, other = page.index(f"alpha answers {number}<"), page.index(f"omega answers {number}<")
            assert (other < one) == place["second_is_1"]
        assert page.count("Reference answer") == CASES / 2
        assert page.count("<h3>Answer 1</h3>") == page.count("<h3>Answer 2</h3>") == CASES and "answer A" not in page
        shown = sorted(places, key=lambda place: page.index(f"alpha answers {int(place['id'][1:])}<"))
        assert shown == places
        orders.append([(place["id"], place["second_is_1"]) for place in places])
        assert sorted(path.name for path in (out / rater).iterdir()) == ["cases.html", "ratings.xlsx"]
    assert len({tuple(order) for order in orders}) == len(RATERS)
    for path in (key, *out.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_ratings_are_read_back_to_the_models(written):
    """Two raters find the second model better everywhere, the third says 1 always; grades go with it."""
    out, key = written
    known = json.loads(key.read_text())["raters"]
    for rater in RATERS[:2]:
        rows = {}
        for case, place in enumerate(known[rater], start=1):
            second_is_1 = place["second_is_1"]
            rows[case] = (1 if second_is_1 else 2, *((5, 2) if second_is_1 else (2, 5)))
        fill(out / rater / "ratings.xlsx", rows)
    fill(out / "r3" / "ratings.xlsx", dict.fromkeys(range(1, CASES), (1, 3, 3)))  # the last is left out
    sheets = {rater: out / rater / "ratings.xlsx" for rater in RATERS}
    found = summary(sheets, key)
    left = known["r3"][-1]["second_is_1"]
    third = {"first": CASES // 2 - (not left), "equal": 0, "second": CASES // 2 - left}
    assert found["raters"]["r3"] == {"open": 1, "better": third}
    assert found["better"] == {"first": third["first"], "equal": 0, "second": 2 * CASES + third["second"]}
    total = 3 * CASES - 1
    assert found["ratings"] == total and found["cases"] == CASES
    assert found["preference"] == pytest.approx((total - 2 * third["first"]) / total)
    assert found["ci"][0] <= found["preference"] <= found["ci"][1] and found["ci"][0] > 0
    assert found["p"] == pytest.approx(2 * 0.5**CASES)  # the second model has the better mean in every case
    assert found["grades"]["first"] == pytest.approx((2 * CASES * 2 + 3 * (CASES - 1)) / total)
    assert found["grades"]["second"] == pytest.approx((2 * CASES * 5 + 3 * (CASES - 1)) / total)
    said_1 = (CASES + CASES - 1) / total
    assert found["said_1"] == pytest.approx(said_1)
    two = summary({rater: sheets[rater] for rater in RATERS[:2]}, key)
    assert two["agreement"]["equal_preferences"] == 1 and two["agreement"]["grades_alpha"] == 1
    assert two["agreement"]["preference_alpha"] is None  # of ratings that are all the same nothing can be said
    assert found["agreement"]["equal_preferences"] < 1 and found["agreement"]["preference_alpha"] < 0.5


def test_a_sheet_may_come_back_as_csv(written):
    out, key = written
    table = pd.read_excel(out / "r1" / "ratings.xlsx").astype(object)
    table["better"], table["grade_1"], table["grade_2"] = "EQUAL", 4, 4
    table.to_csv(out / "r1.csv", index=False)
    found = summary({"r1": out / "r1.csv"}, key)
    assert found["better"] == {"first": 0, "equal": CASES, "second": 0} and found["p"] == 1
    assert found["said_1"] is None and found["preference"] == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((3, 1, 1), "row 3: better must be 1, 2 or equal"),
        (("A", 1, 1), "row 3: better must be 1, 2 or equal"),
        ((1, 6, 1), "row 3: grade_1 must be a whole number from 1 to 5"),
        ((1, 1, 2.5), "row 3: grade_2 must be"),
    ],
)
def test_a_wrong_rating_is_named(written, row, words):
    out, key = written
    fill(out / "r1" / "ratings.xlsx", {2: row})
    with pytest.raises(InputError, match=words):
        summary({"r1": out / "r1" / "ratings.xlsx"}, key)


def test_what_does_not_fit_is_named(written, tmp_path):
    out, key = written
    sheet = out / "r1" / "ratings.xlsx"
    with pytest.raises(InputError, match="no case has been rated yet"):
        summary({"r1": sheet}, key)
    with pytest.raises(InputError, match="knows no rater r9; known are r1, r2, r3"):
        ratings.summarise({"r9": {}}, ratings.read_key(key), bootstrap=200, seed=1)
    with pytest.raises(InputError, match="no such file of ratings"):
        summary({"r1": tmp_path / "none.xlsx"}, key)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="not the key of a review"):
        summary({"r1": sheet}, tmp_path / "other.json")
    mark = f"review {ratings.read_key(key).review} rater r1 case 1"
    (tmp_path / "bad.csv").write_text(f"case,better,grade_1,grade_2,sheet\n1,1,,,{mark}\n1,2,,,{mark}\n")
    with pytest.raises(InputError, match="row 3: case 1 comes twice"):
        summary({"r1": tmp_path / "bad.csv"}, key)
    (tmp_path / "bad.csv").write_text("case,better\n1,1\n")
    with pytest.raises(InputError, match="columns are missing: grade_1, grade_2"):
        summary({"r1": tmp_path / "bad.csv"}, key)

    first, second = tmp_path / "base.jsonl", tmp_path / "trained.jsonl"

    def refusal(**changes):
        given = {"names": ("a", "b"), "raters": ["r1"], "count": 0, "out": tmp_path / "new", "key": tmp_path / "new.json",
                 "seed": 1} | changes  # fmt: skip
        with pytest.raises(InputError) as caught:
            review.export(first, second, **given)
        assert not (tmp_path / "new").exists() and not (tmp_path / "new.json").exists()
        return str(caught.value)

    assert "lies in --out" in refusal(key=tmp_path / "new" / "key.json")
    assert "is there already" in refusal(out=out) and "is there already" in refusal(key=key)
    assert "'r1' stands there twice" in refusal(raters=["r1", "r1"]) and "letters" in refusal(raters=["../r1"])
    assert "--raters is needed: a name for each person" in refusal(raters=[])
    assert f"--cases=600: there are {CASES} pairs" in refusal(count=600)
    assert "different names" in refusal(names=("a", "a"))
    second.write_text(second.read_text().replace("Case 3 ", "Another case 3 "))
    assert "a question of the same id differs" in refusal()
    second.write_text('{"id": "x", "question": "secret words", "completion": "c"}\n{"id": "x"}\n')
    assert "line 2: must be a JSON object" in refusal() and "secret" not in refusal()
    second.write_text('{"id": "x", "question": "q", "completion": "c"}\n')
    assert "no id is in both" in refusal()


def test_the_program(tmp_path, monkeypatch, capfd):
    first, second = replies(tmp_path / "base.jsonl", "alpha"), replies(tmp_path / "trained.jsonl", "omega")
    places = [f"--key={tmp_path / 'key.json'}"]
    ended = here("review", f"--first={first}", f"--second={second}", "--names=base,trained", "--raters=r1,r2", "--cases=5",
                 f"--out={tmp_path / 'out'}", *places, monkeypatch=monkeypatch, capfd=capfd)  # fmt: skip
    assert ended.code == 0 and "5 for each of 2 raters" in ended.out, ended
    for rater in ("r1", "r2"):
        fill(tmp_path / "out" / rater / "ratings.xlsx", dict.fromkeys(range(1, 5), (2, 2, 4)))
    sheets = ",".join(f"{rater}={tmp_path / 'out' / rater / 'ratings.xlsx'}" for rater in ("r1", "r2"))
    ended = here("review", f"--ratings={sheets}", f"--out={tmp_path / 'summary.json'}", *places,
                 monkeypatch=monkeypatch, capfd=capfd)  # fmt: skip
    assert ended.code == 0 and "answer 1 chosen 0.00 of the time" in ended.out and "r2: 1 cases" in ended.out, ended
    assert "omega" not in ended.out and files.read_json(tmp_path / "summary.json")["ratings"] == 8
    shutil.rmtree(tmp_path / "out")
    for arguments, words in (
        ([], "--first and --second are needed"),
        ([f"--first={first}"], "both needed"),
        (["--serve", "--ratings=r1=x"], "give it without --serve"),
        (
            [f"--first={first}", f"--second={second}", "--sheets=x"],
            "--sheets goes with --ratings; leave it out",
        ),
        ([f"--first={first}", f"--second={second}", "--port=1"], "--port goes with --serve;"),
        (["--serve"], "--key goes with --first and --second or --ratings;"),
        (["--ratings=r9=x"], "knows no rater r9"),
        (["--ratings=r1"], "must be RATER=FILE"),
        ([f"--first={first}", f"--second={second}", "--raters=r1", "--names=a"], "two names"),
        ([f"--first={first}", "--ratings=r1=x"], "give it without"),
    ):
        out = f"--out={tmp_path / 'out'}"
        assert words in here("review", *arguments, out, *places, monkeypatch=monkeypatch, capfd=capfd).refusal


def sheet_of(written, rater):
    return openpyxl.load_workbook(written[0] / rater / "ratings.xlsx")


def test_a_sheet_of_another_rater_review_or_case_is_refused(written, tmp_path, monkeypatch, capfd):
    """The answers 1 and 2 are others for each rater: swapped sheets would give wrong figures, and nobody would see it."""
    out, key = written
    for rater in RATERS:
        fill(out / rater / "ratings.xlsx", {1: (1, 5, 1), 2: (2, 1, 5)})
    sheets = {rater: out / rater / "ratings.xlsx" for rater in RATERS}
    swapped = f"--ratings=r1={sheets['r2']},r2={sheets['r1']}"
    told = here("review", swapped, f"--key={key}", f"--out={tmp_path / 's.json'}", monkeypatch=monkeypatch, capfd=capfd)
    assert "row 2: this sheet is of the rater r2, and --ratings gives it as that of r1" in told.refusal
    assert not (tmp_path / "s.json").exists()
    twice = f"--ratings=r1={sheets['r1']},r1={sheets['r2']}"
    told = here("review", twice, f"--key={key}", f"--out={tmp_path / 's.json'}", monkeypatch=monkeypatch, capfd=capfd)
    assert "--ratings: r1 comes twice, with" in told.refusal
    first, second = tmp_path / "base.jsonl", tmp_path / "trained.jsonl"
    places = {"out": tmp_path / "other", "key": tmp_path / "other.json"}
    review.export(first, second, names=("a", "b"), raters=RATERS, count=0, seed=1, **places)
    with pytest.raises(InputError, match="row 2: this sheet is of another review"):
        summary({"r1": sheets["r1"]}, places["key"])

    def changed(change):
        book = sheet_of(written, "r1")
        change(book.active)
        book.save(tmp_path / "changed.xlsx")
        return summary({"r1": tmp_path / "changed.xlsx"}, key)

    rows = [[cell.value for cell in row] for row in sheet_of(written, "r1").active.iter_rows(min_row=2)]

    def put(sheet, cells):
        sheet.delete_rows(2, CASES)
        for row in cells:
            sheet.append(row)

    whole = changed(lambda sheet: None)
    assert changed(lambda sheet: put(sheet, rows[::-1])) == whole  # sorted whole rows
    assert changed(lambda sheet: put(sheet, rows[:2])) == whole  # open cases removed
    beside = [
        [row[0], *other[1:]] for row, other in zip(rows, rows[::-1], strict=True)
    ]  # all columns sorted but the first
    with pytest.raises(InputError, match=f"row 2: this row is of case {CASES}, and case says 1; sort whole rows"):
        changed(lambda sheet: put(sheet, beside))
    with pytest.raises(InputError, match="row 3: sheet was changed or is blank"):
        changed(lambda sheet: sheet.cell(row=3, column=6, value=""))
    with pytest.raises(InputError, match="the column sheet is missing, so nothing says"):
        changed(lambda sheet: sheet.delete_cols(6))


def test_an_earlier_sheet_that_does_not_say_whose_it_is_is_taken_with_a_warning(written, tmp_path, monkeypatch, capfd):
    _, key = written
    known = files.read_json(key)
    known.pop("marked")
    files.write_json(key, known)
    book = sheet_of(written, "r1")
    book.active.delete_cols(6)
    book.active.cell(row=2, column=2, value=1)
    book.save(tmp_path / "r1.xlsx")
    call = ("review", f"--ratings=r1={tmp_path / 'r1.xlsx'}", f"--key={key}", f"--out={tmp_path / 's.json'}")
    told = here(*call, monkeypatch=monkeypatch, capfd=capfd)
    assert told.code == 0 and "does not say whose it is" in told.err and "of r1" in told.err


def test_only_an_earlier_summary_is_replaced(written, tmp_path, monkeypatch, capfd):
    out, key = written
    fill(out / "r1" / "ratings.xlsx", {1: (1, 5, 1)})
    before = key.read_text()

    def call(name):
        return here("review", f"--ratings=r1={out / 'r1' / 'ratings.xlsx'}", f"--key={key}", f"--out={name}",
                    monkeypatch=monkeypatch, capfd=capfd)  # fmt: skip

    assert "is not an earlier result of this program" in call(key).refusal and key.read_text() == before
    assert "is a directory" in call(tmp_path).refusal
    assert "(replaced)" not in call(tmp_path / "s.json").out
    assert f"figures  {tmp_path / 's.json'} (replaced)" in call(tmp_path / "s.json").out


def test_sheets_of_earlier_versions_are_read(written, tmp_path):
    """They call the answers A and B, and so does their key."""
    out, key = written
    known = files.read_json(key)
    for places in known["raters"].values():
        for place in places:
            place["second_is_a"] = place.pop("second_is_1")
    files.write_json(tmp_path / "earlier.json", {name: known[name] for name in ("names", "seed", "raters")})
    words = {1: ("a", 5, 1), 2: ("B", 2, 4), 3: ("Equal", 3, 3)}
    now = {1: (1, 5, 1), 2: (2, 2, 4), 3: ("equal", 3, 3)}
    fill(out / "r1" / "ratings.xlsx", now)
    lines = [f"{case},{','.join(map(str, cells))}," for case, cells in words.items()]
    (tmp_path / "r1.csv").write_text("case,better,grade_a,grade_b,comment\n" + "\n".join(lines) + "\n")
    found = summary({"r1": tmp_path / "r1.csv"}, tmp_path / "earlier.json")
    assert found.pop("identical") is None
    today = summary({"r1": out / "r1" / "ratings.xlsx"}, key)
    assert today.pop("identical") == 0 and found == today and found["ratings"] == 3 and found["said_1"] == 0.5
    (tmp_path / "r1.csv").write_text("case,better,grade_a,grade_b\n1,1,5,1\n")
    with pytest.raises(InputError, match="row 2: better must be A, B or equal"):
        summary({"r1": tmp_path / "r1.csv"}, tmp_path / "earlier.json")


def test_the_same_answers_are_left_out_and_counted(tmp_path, monkeypatch, capfd):
    first, second = replies(tmp_path / "a.jsonl", "alpha"), replies(tmp_path / "b.jsonl", "omega")
    second.write_text(
        second.read_text().replace("omega answers 3", "alpha answers 3 ").replace("omega answers 7", "alpha answers 7")
    )
    places = {"out": tmp_path / "out", "key": tmp_path / "key.json"}
    ended = here("review", f"--first={first}", f"--second={second}", "--names=a,b", "--raters=r1",
                 *(f"--{name}={path}" for name, path in places.items()), monkeypatch=monkeypatch, capfd=capfd)  # fmt: skip
    assert ended.code == 0 and f"cases    {CASES - 2} for each of 1 raters" in ended.out, ended
    assert f"left out 2 of {CASES} pairs, whose two answers are the same" in ended.out
    shown = {name for name, _ in ratings.read_key(places["key"]).drawn["r1"]}
    assert shown == {f"q{i:02}" for i in range(CASES)} - {"q03", "q07"}
    fill(places["out"] / "r1" / "ratings.xlsx", {1: (1,)})
    assert summary({"r1": places["out"] / "r1" / "ratings.xlsx"}, places["key"])["identical"] == 2
    with pytest.raises(InputError, match=f"all {CASES} pairs of answers are the same"):
        review.export(
            first, first, names=("a", "b"), raters=["r1"], count=0, out=tmp_path / "x", key=tmp_path / "y", seed=1
        )
    assert not (tmp_path / "x").exists()


def test_the_page_has_the_workbooks_cases_and_figures(written, tmp_path):
    """What was said on the page, and the sheets made of it, come to the same as sheets that were filled in."""
    out, key = written
    store = Store(out / STORE_FILE)
    known = ratings.read_key(key)
    assert store.counts == dict.fromkeys(RATERS, CASES) and len(set(store.tokens.values())) == len(RATERS)
    assert min(map(len, store.tokens.values())) >= 43  # 256 bits
    for rater in RATERS:
        assert [second for _, second in known.drawn[rater]] == [
            store.case(rater, number).answer_1.startswith("omega") for number in range(1, CASES + 1)
        ]
        page = (out / rater / "cases.html").read_text()
        for number in range(1, CASES + 1):
            case = store.case(rater, number)
            assert page.index(f">{case.answer_1}<") < page.index(f">{case.answer_2}<")
    words = {1: ("1", "5", "2"), 2: ("2", "", ""), 3: ("equal", "3", "3"), 5: ("", "1", "")}
    for rater in RATERS[:2]:
        for number, values in words.items():
            for field, value in zip(("better", "grade_1", "grade_2"), values, strict=True):
                store.save(rater, number, field, value)
        fill(
            out / rater / "ratings.xlsx",
            {number: [value or None for value in values] for number, values in words.items()},
        )
    store.save("r1", 4, "comment", '=HYPERLINK("x")')
    store.close()
    said = ratings.read_store(out, known)
    assert said["r1"][1] == Said("1", "5", "2") and said["r1"][4].comment == '=HYPERLINK("x")' and said["r3"] == {}
    of_page = ratings.summarise(said, known, bootstrap=200, seed=1)
    assert of_page == summary({rater: out / rater / "ratings.xlsx" for rater in RATERS}, key)
    assert of_page["ratings"] == 6 and of_page["raters"]["r3"]["open"] == CASES
    ratings.write_sheets(tmp_path / "sheets", said, known)
    assert summary({rater: tmp_path / "sheets" / f"{rater}.xlsx" for rater in RATERS}, key) == of_page
    assert ratings.read_sheet(tmp_path / "sheets" / "r1.xlsx", known, "r1")[4].comment == '=HYPERLINK("x")'
    with pytest.raises(InputError, match="is there already"):
        ratings.write_sheets(tmp_path / "sheets", said, known)


def test_ratings_of_the_page_are_summarised_by_the_program(written, tmp_path, monkeypatch, capfd):
    out, key = written
    store = Store(out / STORE_FILE)
    store.save("r1", 1, "better", "1")
    store.save("r2", 1, "better", "2")
    store.close()
    fill(out / "r3" / "ratings.xlsx", {1: ("equal", 2, 4)})

    def call(ratings, *more):
        return here("review", f"--ratings={ratings}", f"--key={key}", f"--out={tmp_path / 's.json'}", *more,
                    monkeypatch=monkeypatch, capfd=capfd)  # fmt: skip

    ended = call(out, f"--sheets={tmp_path / 'sheets'}")
    assert (
        ended.code == 0 and f"ratings  2 of {3 * CASES} that could be given ({CASES} cases, 3 raters)" in ended.out
    ), ended
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["r1.xlsx", "r2.xlsx", "r3.xlsx"]
    assert f"ratings  3 of {3 * CASES} that could" in call(f"{out},r3={out / 'r3' / 'ratings.xlsx'}").out
    assert "r1 has ratings on the page and in" in call(f"{out},r1={out / 'r1' / 'ratings.xlsx'}").refusal
    assert "or the one folder of a served review" in call(f"{out},{out}").refusal
    assert "no such file; a review's folder" in call(tmp_path).refusal
    files.write_json(key, files.read_json(key) | {"review": "another"})
    assert "the key is of another review" in call(out).refusal


def test_a_store_keeps_only_what_fits(written, tmp_path):
    store = Store(written[0] / STORE_FILE)
    assert store.save("r1", 2, "grade_1", "4") == (Said(grade_1="4"), 0)
    assert store.save("r1", 2, "better", "equal") == (Said("equal", "4"), 1)
    assert store.save("r1", 2, "grade_1", "") == (Said("equal"), 1)
    assert store.save("r2", 2, "comment", "a\nb ≥ 😀")[0].comment == "a\nb ≥ 😀"
    for field, value, words in (("better", "A", "one of 1, 2, equal"), ("grade_1", "6", "one of 1, 2, 3, 4, 5"),
                                ("id", "1", "field must be one of"), ("comment", "\0", "cannot be kept"),
                                ("comment", "\ud800", "cannot be kept"), ("comment", "x" * 5_001, "5,000 at most")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            store.save("r1", 1, field, value)
    for rater, number in (("r1", 0), ("r1", CASES + 1), ("r9", 1)):
        with pytest.raises(KeyError, match="has no case"):
            store.save(rater, number, "better", "1")
    with pytest.raises(KeyError, match="has no case"):
        store.case("r1", CASES + 1)
    assert isinstance(store.case("r1", CASES), Case) and store.said("r1") == {2: Said("equal")}
    assert [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")] == [
        "wal",
        2,
    ]
    for path in written[0].glob(f"{STORE_FILE}*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    store.close()
    (tmp_path / "text").write_text("no database, " * 100)
    with pytest.raises(InputError, match="cannot be opened as a review"):
        Store(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE review (id)")
    with pytest.raises(InputError, match="is of format 0, this program reads 1"):
        Store(tmp_path / "other")


def test_a_review_without_any_grade_has_none(written, monkeypatch, capfd, tmp_path):
    out, key = written
    fill(out / "r1" / "ratings.xlsx", {1: (1,), 2: ("equal",)})
    found = summary({"r1": out / "r1" / "ratings.xlsx"}, key)
    assert found["ratings"] == 2 and found["agreement"]["grades_alpha"] is None
    assert found["grades"] == {"first": None, "second": None, "difference": None, "ci": None}
    told = here("review", f"--ratings=r1={out / 'r1' / 'ratings.xlsx'}", f"--key={key}", f"--out={tmp_path / 's.json'}",
                monkeypatch=monkeypatch, capfd=capfd)  # fmt: skip
    assert told.code == 0 and "grades   base unknown, trained unknown" in told.out


@pytest.mark.parametrize(
    "change", [{"raters": []}, {"raters": {"r1": 3}}, {"raters": {"r1": ["x"]}}, {"raters": {"r1": [{}]}}, {"names": 3},
               {"names": ["a"]}, {"raters": {"r1": [{"id": "q1", "second_is_1": "false"}]}}],
)  # fmt: skip
def test_a_key_of_another_form_is_one_line(written, change):
    out, key = written
    fill(out / "r1" / "ratings.xlsx", {1: (1, 1, 2)})
    files.write_json(key, files.read_json(key) | change)
    with pytest.raises(InputError, match="not the key of a review"):
        summary({"r1": out / "r1" / "ratings.xlsx"}, key)
