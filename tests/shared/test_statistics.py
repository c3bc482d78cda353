"""Value distributions: the definitions, and the original's own figures on its own rows."""

import numpy as np
import pandas as pd
import pytest

from shared.registry.features import Feature, fewest_decimals, to_units, units_text, value_text
from shared.registry.statistics import from_table, to_table, value_statistics
from tests.support.golden_registry import needs_golden, read
from tests.support.golden_sepsis import everybody, registry


def feature(name, kind="number", **more):
    return Feature(name=name, display_name=name, section="[a/b]", kind=kind, **more)


def objects(values):
    return pd.Series(values, dtype=object)


def test_few_numbers_are_categories_in_order_of_first_appearance():
    numbers = pd.Series([3.0, np.nan, 1.0, 3.0, 2.0, 3.0])
    found = value_statistics(pd.DataFrame({"x": numbers}), [feature("x")])["x"]
    assert found.vocab == ("3", "1", "2") and found.finite
    assert found.weights.tolist() == [0.6, 0.2, 0.2]  # a missing value is no value
    assert found.all_vocab == ("1", "2", "3") and not found.means.any()
    assert found.entropy == pytest.approx(-(0.6 * np.log(0.6) + 0.4 * np.log(0.2)))


def test_many_numbers_get_a_mixture():
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.normal(0, 1, 400), rng.normal(50, 2, 400), rng.normal(100, 1, 200)]).round(1)
    found = value_statistics(pd.DataFrame({"x": numbers}), [feature("x", decimals=1)])["x"]
    assert found.float_ratio == 1 and found.vocab == ()
    order = np.argsort(found.means)
    assert found.means[order] == pytest.approx([0, 50, 100], abs=0.5)
    assert found.stds[order] == pytest.approx([1, 2, 1], abs=0.3)
    assert found.mixture[order] == pytest.approx([0.4, 0.4, 0.2], abs=0.01)
    assert found.density(50.0) > 1000 * found.density(25.0)
    assert found.density(50.0) == pytest.approx(0.4 / (2 * np.sqrt(2 * np.pi)), rel=0.05)


def test_numbers_mixed_with_texts_have_a_ratio_of_distinct_values():
    found = value_statistics(pd.DataFrame({"x": objects([str(i) for i in range(29)] + ["<1"] * 9)}), [feature("x")])[
        "x"
    ]
    assert found.float_ratio == 29 / 30 and found.vocab == ("<1",) and found.weights.tolist() == [1.0]
    assert len(found.all_vocab) == 30


def test_what_cannot_be_asked_has_no_statistics():
    table = pd.DataFrame(
        {
            "one": [1.0, 1.0] + [np.nan] * 48,
            "none": [np.nan] * 50,
            "sitedesc": objects([f"text {i}" for i in range(50)]),
            "visitdate": objects([f"text {i}" for i in range(50)]),
            "notes": objects([f"text {i}" for i in range(50)]),
            "fewdesc": objects(["a", "b"] * 25),
        }
    )
    features = [feature("one"), feature("none"), *(feature(n, "category") for n in table.columns[2:])]
    assert set(value_statistics(table, features)) == {"notes", "fewdesc"}


def test_tables_keep_everything():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=60), "c": objects(["a", "b", None] * 20)})
    found = value_statistics(table, [feature("x", decimals=3), feature("c", "category")])
    again = from_table(to_table(found), "here")
    for name in found:
        assert again[name].vocab == found[name].vocab and again[name].all_vocab == found[name].all_vocab
        assert again[name].float_ratio == found[name].float_ratio
        for part in ("weights", "means", "stds", "mixture"):
            assert np.array_equal(getattr(again[name], part), getattr(found[name], part))


@pytest.mark.parametrize(
    "numbers, expected", [([1.0, 20.0], 0), ([1.5, 2.0], 1), ([7.38, 7.4], 2), ([0.1234], 3), ([], 0), ([0.1 + 0.2], 1)]
)
def test_fewest_decimals(numbers, expected):
    assert fewest_decimals(numbers) == expected


@pytest.mark.parametrize(
    "value, decimals, text",
    [(63.0, 0, "63"), (1.35, 2, "1.35"), (1.0, 1, "1.0"), (-0.04, 1, "0.0"), (-1.25, 2, "-1.25"), ("<0.3", 1, "<0.3"),
     ("12", 1, "12.0"), (0.07, 2, "0.07")],
)  # fmt: skip
def test_number_texts(value, decimals, text):
    assert value_text(feature("x", decimals=decimals), value) == text
    if text != "<0.3":
        assert units_text(to_units(float(text), decimals), decimals) == text


def test_other_texts():
    assert value_text(feature("d", "datetime"), pd.Timestamp("2020-01-02 03:04")) == "2020-01-02 03:04:00"
    assert value_text(feature("c", "category"), "3") == "3"


@pytest.mark.golden
@needs_golden
def test_figures_are_the_originals():
    """On the rows that the original used: all of them, in the order of its raw file."""
    found = value_statistics(everybody(), registry().features)
    expected = read("sepsis/choices.json.gz")
    # Only `yes` or missing: the original counts missing as a value, so it had a question without a distractor.
    constant = {name for name in expected if len(set(expected[name]["VOCAB"]) - {"nan"}) == 1 and name not in found}
    assert set(expected) - constant == set(found) - {"remvinfectintravas", "inspercutdrain", "othernonsurg"}
    for name in set(expected) - constant:
        theirs, mine = expected[name], found[name]
        weights = {text: w for text, w in zip(theirs["VOCAB"], theirs["WEIGHTS"], strict=True) if text != "nan"}
        total = sum(weights.values())
        assert dict(zip(mine.vocab, mine.weights.tolist(), strict=True)) == pytest.approx(
            {text: weight / total for text, weight in weights.items()}
        )
        assert mine.float_ratio == pytest.approx(theirs["FLOAT_RATIO"])
        assert np.allclose(np.sort(mine.means), np.sort(theirs["GM"]["means"]), rtol=1e-4)
        assert np.allclose(np.sort(mine.stds), np.sort(theirs["GM"]["stds"]), rtol=1e-3)
