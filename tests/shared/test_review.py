"""Blinded review: what raters get, what stays apart, and what their ratings come to."""

from __future__ import annotations

import json
import shutil
import stat

import numpy as np
import openpyxl
import pandas as pd
import pytest
from commands import here

from shared import files, review
from shared.agreement import agreed, alpha
from shared.errors import InputError

CASES = 12
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


def replies(path, name, count=CASES):
    rows = [
        {
            "id": f"q{i:02}",
            "question": f"Case {i} <b>&",
            "completion": f"{name} answers {i}",
            "answer": "B" if i % 2 else "",
        }
        for i in range(count)
    ]
    files.write_json_lines(path, rows)
    return path


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
    assert count == CASES  # of those that both answered
    return out, key


def fill(path, rows):
    """Write ratings into a rater's sheet, by case: better, grade of A, grade of B."""
    book = openpyxl.load_workbook(path)
    for case, cells in rows.items():
        for column, cell in enumerate(cells, start=2):
            book.active.cell(row=case + 1, column=column, value=cell)
    book.save(path)


def test_raters_see_pairs_and_no_names(written):
    out, key = written
    known = json.loads(key.read_text())
    orders = []
    for rater in RATERS:
        page = (out / rater / "cases.html").read_text()
        assert "base" not in page and "trained" not in page and "&lt;b&gt;&amp;" in page and "<script" not in page
        places = known["raters"][rater]
        assert sum(place["second_is_a"] for place in places) == CASES / 2
        for place in places:
            number = int(place["id"][1:])
            one, other = page.index(f"alpha answers {number}<"), page.index(f"omega answers {number}<")
            assert (other < one) == place["second_is_a"]
        assert page.count("Reference answer") == CASES / 2
        shown = sorted(places, key=lambda place: page.index(f"alpha answers {int(place['id'][1:])}<"))
        assert shown == places
        orders.append([(place["id"], place["second_is_a"]) for place in places])
        assert sorted(path.name for path in (out / rater).iterdir()) == ["cases.html", "ratings.xlsx"]
    assert len({tuple(order) for order in orders}) == len(RATERS)
    for path in (key, *out.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_ratings_are_read_back_to_the_models(written):
    """Two raters find the second model better everywhere, the third says A always; grades go with it."""
    out, key = written
    known = json.loads(key.read_text())["raters"]
    for rater in RATERS[:2]:
        rows = {}
        for case, place in enumerate(known[rater], start=1):
            second_is_a = place["second_is_a"]
            rows[case] = ("A" if second_is_a else "B", *((5, 2) if second_is_a else (2, 5)))
        fill(out / rater / "ratings.xlsx", rows)
    fill(out / "r3" / "ratings.xlsx", dict.fromkeys(range(1, CASES), ("A", 3, 3)))  # the last is left out
    sheets = {rater: out / rater / "ratings.xlsx" for rater in RATERS}
    found = review.summarise(sheets, key, bootstrap=200, seed=1)
    left = known["r3"][-1]["second_is_a"]
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
    said_a = (CASES + CASES - 1) / total
    assert found["said_a"] == pytest.approx(said_a)
    two = review.summarise({rater: sheets[rater] for rater in RATERS[:2]}, key, bootstrap=200, seed=1)
    assert two["agreement"]["equal_preferences"] == 1 and two["agreement"]["grades_alpha"] == 1
    assert two["agreement"]["preference_alpha"] is None  # of ratings that are all the same nothing can be said
    assert found["agreement"]["equal_preferences"] < 1 and found["agreement"]["preference_alpha"] < 0.5


def test_a_sheet_may_come_back_as_csv(written):
    out, key = written
    table = pd.read_excel(out / "r1" / "ratings.xlsx").astype(object)
    table["better"], table["grade_a"], table["grade_b"] = "EQUAL", 4, 4
    table.to_csv(out / "r1.csv", index=False)
    found = review.summarise({"r1": out / "r1.csv"}, key, bootstrap=200, seed=1)
    assert found["better"] == {"first": 0, "equal": CASES, "second": 0} and found["p"] == 1
    assert found["said_a"] is None and found["preference"] == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("C", 1, 1), "row 3: better must be A, B or equal"),
        (("A", 6, 1), "row 3: grade_a must be a whole number from 1 to 5"),
        (("A", 1, 2.5), "row 3: grade_b must be"),
    ],
)
def test_a_wrong_rating_is_named(written, row, words):
    out, key = written
    fill(out / "r1" / "ratings.xlsx", {2: row})
    with pytest.raises(InputError, match=words):
        review.summarise({"r1": out / "r1" / "ratings.xlsx"}, key, bootstrap=200, seed=1)


def test_what_does_not_fit_is_named(written, tmp_path):
    out, key = written
    sheet = out / "r1" / "ratings.xlsx"
    options = {"bootstrap": 200, "seed": 1}
    with pytest.raises(InputError, match="no case has been rated yet"):
        review.summarise({"r1": sheet}, key, **options)
    with pytest.raises(InputError, match="knows no rater r9; known are r1, r2, r3"):
        review.summarise({"r9": sheet}, key, **options)
    with pytest.raises(InputError, match="no such file of ratings"):
        review.summarise({"r1": tmp_path / "none.xlsx"}, key, **options)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="not the key of a review"):
        review.summarise({"r1": sheet}, tmp_path / "other.json", **options)
    (tmp_path / "bad.csv").write_text("case,better,grade_a,grade_b\n1,A,,\n1,B,,\n")
    with pytest.raises(InputError, match="row 3: case 1 comes twice"):
        review.summarise({"r1": tmp_path / "bad.csv"}, key, **options)
    (tmp_path / "bad.csv").write_text("case,better\n1,A\n")
    with pytest.raises(InputError, match="columns are missing: grade_a, grade_b"):
        review.summarise({"r1": tmp_path / "bad.csv"}, key, **options)

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
    assert "name each rater once" in refusal(raters=["r1", "r1"]) and "letters" in refusal(raters=["../r1"])
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
        fill(tmp_path / "out" / rater / "ratings.xlsx", dict.fromkeys(range(1, 5), ("B", 2, 4)))
    sheets = ",".join(f"{rater}={tmp_path / 'out' / rater / 'ratings.xlsx'}" for rater in ("r1", "r2"))
    ended = here("review", f"--ratings={sheets}", f"--out={tmp_path / 'summary.json'}", *places,
                 monkeypatch=monkeypatch, capfd=capfd)  # fmt: skip
    assert ended.code == 0 and "A chosen 0.00 of the time" in ended.out and "r2: 1 cases" in ended.out, ended
    assert "omega" not in ended.out and files.read_json(tmp_path / "summary.json")["ratings"] == 8
    shutil.rmtree(tmp_path / "out")
    for arguments, words in (
        ([], "--first and --second are needed"),
        (["--ratings=r1"], "must be RATER=FILE"),
        ([f"--first={first}", f"--second={second}", "--raters=r1", "--names=a"], "two names"),
        ([f"--first={first}", "--ratings=r1=x"], "one or the other"),
    ):
        out = f"--out={tmp_path / 'out'}"
        assert words in here("review", *arguments, out, *places, monkeypatch=monkeypatch, capfd=capfd).refusal


def test_a_review_without_any_grade_has_none(written, monkeypatch, capfd, tmp_path):
    out, key = written
    fill(out / "r1" / "ratings.xlsx", {1: ("A",), 2: ("equal",)})
    found = review.summarise({"r1": out / "r1" / "ratings.xlsx"}, key, bootstrap=200, seed=1)
    assert found["ratings"] == 2 and found["agreement"]["grades_alpha"] is None
    assert found["grades"] == {"first": None, "second": None, "difference": None, "ci": None}
    told = here("review", f"--ratings=r1={out / 'r1' / 'ratings.xlsx'}", f"--key={key}", f"--out={tmp_path / 's.json'}",
                monkeypatch=monkeypatch, capfd=capfd)  # fmt: skip
    assert told.code == 0 and "grades   base unknown, trained unknown" in told.out


@pytest.mark.parametrize(
    "change", [{"raters": []}, {"raters": {"r1": 3}}, {"raters": {"r1": ["x"]}}, {"raters": {"r1": [{}]}}, {"names": 3},
               {"names": ["a"]}],
)  # fmt: skip
def test_a_key_of_another_form_is_one_line(written, change):
    out, key = written
    fill(out / "r1" / "ratings.xlsx", {1: ("A", 1, 2)})
    files.write_json(key, files.read_json(key) | change)
    with pytest.raises(InputError, match="not the key of a review"):
        review.summarise({"r1": out / "r1" / "ratings.xlsx"}, key, bootstrap=200, seed=1)
