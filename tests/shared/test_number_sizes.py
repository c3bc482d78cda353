"""Numbers of any size: what is a number at all, with how many digits it is shown, and that it can be asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shared.errors import InputError
from shared.registry.build import RawColumn, RawRegistry, build
from shared.registry.features import as_number, fewest_decimals, to_units, units_text
from shared.registry.statistics import fit_mixture
from shared.tasks.denoising import questions


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12.0), (" 12 ", 12.0), ("-1.50", -1.5), ("+5", 5.0), (".5", 0.5), ("5.", 5.0), ("1e5", 1e5), ("2E-3", 0.002),
     ("\u00a07", 7.0), (True, 1.0), (12, 12.0), ("-0", 0.0)],
)  # fmt: skip
def test_numbers(text, number):
    assert as_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["12_3", "1_000", "1e1_0", "1,000", "1.000,5", "９", "１２", "١٢", "²", "nan", "NaN", "inf", "-Infinity", "0x1F", "0b11",
     "1e", "e5", "1 000", "--1", "<0.3", "", " ", None, "1e999", 10**400, float("nan"), float("inf"), "TRUE"],
)  # fmt: skip
def test_no_numbers(text):
    assert math.isnan(as_number(text))


@pytest.mark.parametrize(
    ("numbers", "decimals", "texts"),
    [
        ([1e-6, 2e-6, 3e-6], 6, ["0.000001", "0.000002", "0.000003"]),
        ([1.25e-6, -0.5e-6], 8, ["0.00000125", "-0.00000050"]),
        ([1e-12, 0.0], 12, ["0.000000000001", "0.000000000000"]),
        ([1000.00001, 1000.00002], 5, ["1000.00001", "1000.00002"]),
        ([1e20, 2e20, -3e20], -6, ["100000000000000000000", "200000000000000000000", "-300000000000000000000"]),
        ([0.1 + 0.2 - 0.3, 1.0, 2.0], 0, ["0", "1", "2"]),
        ([-0.0, 2.5], 1, ["0.0", "2.5"]),
        ([7.4012, 7.3944], 3, ["7.401", "7.394"]),
        ([0.12341, 0.12342], 5, ["0.12341", "0.12342"]),
    ],
)
def test_different_numbers_read_differently(numbers, decimals, texts):
    assert fewest_decimals(numbers) == decimals
    assert [units_text(to_units(number, decimals), decimals) for number in numbers] == texts


@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e-6, 1e-3, 1.0, 1e6, 1e12, 1e20, 1e28])
def test_drawn_numbers_of_any_size_stay_different(scale):
    numbers = ((5 + np.random.default_rng(0).normal(size=200)) * scale).tolist()
    decimals = fewest_decimals(numbers)
    texts = [units_text(to_units(number, decimals), decimals) for number in numbers]
    assert len(set(texts)) > 190 and (scale == 1 or len(set(texts)) == 200)
    assert [float(text) for text in texts] == pytest.approx(numbers, rel=1e-2 if scale == 1e-3 else 1e-3, abs=0)


def test_a_mixture_of_small_numbers_has_their_spread():
    numbers = 3e-6 + 1e-6 * np.random.default_rng(0).normal(size=400)
    means, stds, weights = fit_mixture(numbers)
    mean = (weights * means).sum()  # a fitted mixture has the sample's mean and variance
    assert mean == pytest.approx(numbers.mean(), rel=1e-3)
    assert (weights * (stds**2 + means**2)).sum() - mean**2 == pytest.approx(numbers.var(), rel=1e-2)


def registry(numbers):
    columns = [
        RawColumn("x", "X", "", "", numbers, kind="number"),
        RawColumn("y", "Y", "", "", ["u", "v"] * (len(numbers) // 2)),
    ]
    return build(
        RawRegistry(cohort="t", ids=[str(i) for i in range(len(numbers))], columns=columns), valid_patients=60, seed=1
    )


@pytest.mark.parametrize("scale", [1e-6, 1e20])
@pytest.mark.parametrize("balance", [True, False])
def test_numbers_of_any_size_are_asked_for(scale, balance):
    numbers = ((5 + np.random.default_rng(0).normal(size=300)) * scale).tolist()
    made = [q for q in questions(registry(numbers), "train", 200, seed=1, balance=balance) if q.feature == "x"]
    assert len(made) > 50
    for question in made:
        options = [float(text) for text in question.choices]
        assert len(set(options)) == 5 and min(numbers) * 0.99 < min(options) and max(options) < max(numbers) * 1.01
        right = options["ABCDE".index(question.answer)]
        assert min(abs(right - number) for number in numbers) < 1e-5 * scale


def test_one_number_of_another_size_is_refused_with_its_column():
    numbers = [5 + 0.25 * (i % 40) for i in range(100)]
    numbers[41] = 1e20
    with pytest.raises(InputError, match=r"column x, patient 42 of 100: 1\.0e\+20 is too large"):
        registry(numbers)
    numbers[41] = 1e300
    with pytest.raises(InputError, match=r"column x, patient 42 of 100: 1\.0e\+300 is too large"):
        registry(numbers)


def test_what_is_shown_as_zero_is_said():
    numbers = [5 + 0.25 * (i % 40) for i in range(100)]
    assert registry(numbers).provenance["notes"] == []
    numbers[7] = 5.4e-79
    (note,) = registry(numbers).provenance["notes"]
    assert "column x: 1 of 100 values are not 0 and are shown as 0" in note


@pytest.mark.parametrize("text", ["12_3", "nan", "-inf", "٣", "1e999"])
def test_texts_that_only_python_takes_for_numbers_are_refused_in_a_number_column(text):
    numbers = [str(5 + 0.25 * i) for i in range(60)]
    mixed = RawColumn("x", "X", "", "", [*numbers[:9], "<0.3", *numbers[10:]])
    raw = RawRegistry(cohort="t", ids=[str(i) for i in range(60)], columns=[mixed])
    assert build(raw, valid_patients=10, seed=1).features[0].kind == "number"
    wrong = RawColumn("x", "X", "", "", [*numbers[:9], text, *numbers[10:]])
    with pytest.raises(InputError, match="column x, patient 10 of 60: not written as numbers are"):
        build(RawRegistry(cohort="t", ids=raw.ids, columns=[wrong]), valid_patients=10, seed=1)
