"""Mutual information: against its definition, the full computation, and the original's matrix."""

import numpy as np
import pandas as pd
import pytest

from shared.cohorts import sepsis
from shared.registry.features import Feature
from shared.registry.leakage import (
    RELATIVE_CUTOFF,
    binned,
    hidden_with,
    lowest_cutoff,
    mutual_information,
)
from shared.registry.leakage import _columns as columns_of
from shared.registry.statistics import value_statistics
from tests.support.golden_registry import matrix, needs_golden
from tests.support.golden_sepsis import everybody as all_patients
from tests.support.golden_sepsis import registry

golden = pytest.mark.golden


def feature(name, kind, group=None):
    return Feature(name=name, display_name=name, section="[a/b]", kind=kind, decimals=3, leak_group=group)


def plug_in(left, right):
    """Mutual information of two lists of codes, from its definition."""
    joint = pd.crosstab(np.asarray(left), np.asarray(right)).to_numpy() / len(left)
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum())


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(3)
    size = 600
    x = rng.normal(size=size)
    level = np.where(x > 0.8, "high", np.where(x > -0.3, "mid", "low")).astype(object)
    level[rng.random(size) < 0.2] = None
    sparse = x.copy()
    sparse[rng.random(size) < 0.4] = np.nan
    note = np.array([f"note {i}" if i % 3 == 0 else None for i in range(size)], dtype=object)
    table = pd.DataFrame(
        {
            "x": x,
            "twin": x + 0.05 * rng.normal(size=size),
            "sparse": sparse,
            "noise": rng.normal(size=size),
            "level": pd.Series(level, dtype=object),
            "coin": pd.Series(rng.choice(["a", "b"], size), dtype=object),
            "rare": pd.Series(np.where(x > 1.5, "yes", "no"), dtype=object),
            "note": pd.Series(note, dtype=object),
            "noted": pd.Series(["yes" if text else "no" for text in note], dtype=object),
        }
    )
    kinds = dict.fromkeys(("x", "twin", "sparse", "noise"), "number") | {"note": "text"}
    features = [feature(name, kinds.get(name, "category")) for name in table]
    return table, features, value_statistics(table, features)


def test_discrete_pairs_follow_the_definition(small):
    table, features, statistics = small
    found = mutual_information(table, features, statistics, screen=0.0)
    rows = table["level"].notna()
    assert found.loc["rare", "level"] == pytest.approx(plug_in(table["rare"][rows], table["level"][rows]), abs=1e-9)
    everything = table["level"].fillna("missing")  # missingness of a feature counts, that of the target does not
    assert found.loc["level", "rare"] == pytest.approx(plug_in(everything, table["rare"]), abs=1e-9)


def corrected(left, right):
    """The plug-in estimate less its bias, (joint levels - levels - levels + 1) / 2n, counting levels that occur."""
    joint = len(set(zip(left, right, strict=True)))
    return plug_in(left, right) - (joint - len(set(left)) - len(set(right)) + 1) / (2 * len(left))


def test_binned_estimate_is_the_plug_in_of_codes_less_its_bias(small):
    table, features, _ = small
    columns = columns_of(table, features, {}, None)
    rough = pd.DataFrame(binned(columns), index=list(columns), columns=list(columns))
    rows = table["level"].notna()
    edges = np.quantile(table["x"], np.linspace(0, 1, 9)[1:-1])
    codes = np.searchsorted(edges, table["x"], side="right")
    assert rough.loc["x", "level"] == pytest.approx(corrected(codes[rows], table["level"][rows]), abs=1e-6)
    assert rough.loc["x", "coin"] == pytest.approx(max(corrected(codes, table["coin"]), 0.0), abs=1e-6)


def test_matrix_shape_and_screening(small):
    table, features, statistics = small
    quick = mutual_information(table, features, statistics)
    full = mutual_information(table, features, statistics, screen=0.0)
    assert np.isnan(np.diag(quick)).all() and quick["note"].isna().all()  # free text is never a target
    assert full.loc["twin", "x"] > 1.5 and full.loc["noise", "x"] < 0.1
    for target in statistics:
        assert (quick[target] > lowest_cutoff(statistics[target], 0.5)).equals(
            full[target] > lowest_cutoff(statistics[target], 0.5)
        )
    assert mutual_information(table, features, statistics).equals(quick)  # fixed random state


def test_presence_of_free_text_counts(small):
    table, features, statistics = small
    found = mutual_information(table, features, statistics)
    hidden = hidden_with("noted", 0.5, leakage=found, features=features, statistics=statistics)
    assert hidden == {"note"}


def test_what_is_hidden(small):
    table, features, statistics = small
    leakage = mutual_information(table, features, statistics)
    hide = lambda name, cutoff, fs=features: hidden_with(  # noqa: E731
        name, cutoff, leakage=leakage, features=fs, statistics=statistics
    )
    assert hide("x", 0.5) == {"twin", "sparse", "level"}
    # A rare answer holds few nats; half of them are enough to hide what tells them.
    assert leakage.loc["x", "rare"] < 0.5 and RELATIVE_CUTOFF * statistics["rare"].entropy < leakage.loc["x", "rare"]
    assert "x" in hide("rare", 0.5) and "noise" not in hide("rare", 0.5)
    assert hide("x", float(leakage.loc["twin", "x"])) == set()  # strictly more than the cutoff
    grouped = [feature(f.name, f.kind, "pair" if f.name in ("coin", "noise") else None) for f in features]
    assert hide("coin", 0.5, grouped) == {"noise"} and hide("coin", 0.5) == set()


def test_datetimes_count_from_the_reference():
    rng = np.random.default_rng(0)
    start = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 10**6, 300), unit="min")
    delay = rng.integers(0, 300, 300)
    table = pd.DataFrame({"zero": start, "later": start + pd.to_timedelta(delay, unit="min"), "delay": delay * 1.0})
    features = [feature("zero", "datetime"), feature("later", "datetime"), feature("delay", "number")]
    found = mutual_information(table, features, value_statistics(table, features), reference="zero")
    assert list(found.columns) == ["later", "delay"] and found.loc["later", "delay"] > 2


def test_too_few_rows_give_an_empty_column():
    table = pd.DataFrame({"x": [1.0, 2.0] + [np.nan] * 30, "y": np.arange(32.0)})
    features = [feature("x", "number"), feature("y", "number")]
    found = mutual_information(table, features, value_statistics(table, features))
    assert found["x"].isna().all() and found["y"].notna().sum() == 1


@pytest.fixture(scope="module")
def everybody():
    features = registry().features
    return all_patients(), features, value_statistics(all_patients(), features)


@pytest.mark.slow
@golden
@needs_golden
def test_matrix_is_the_originals(everybody):
    table, features, statistics = everybody
    ours = mutual_information(table, features, statistics, ordered=sepsis.ORDERED, reference=sepsis.REFERENCE_TIME)
    theirs = matrix("sepsis")
    # The original erased these three; `nan` as a category of its own does not exist for us.
    names = [name for name in theirs.columns if name in ours.columns and theirs[name].notna().any()]
    assert len(names) > 0.9 * theirs.shape[1]
    differences: list[float] = []
    for target in names:
        threshold = lowest_cutoff(statistics.get(target), 0.5)
        estimated = [f for f in names if f != target and ours.loc[f, target] > 0.5 * threshold]
        differences += np.abs(ours.loc[estimated, target] - theirs.loc[estimated, target]).tolist()
        # Nothing that the original's figures would hide is screened out, up to the noise of its figures.
        hidden = {f for f in names if f != target and theirs.loc[f, target] > threshold + 0.06}
        assert hidden <= hidden_with(target, 0.5, leakage=ours, features=features, statistics=statistics)
    # The original's jitter was not seeded: its own runs differ by up to 0.07 nats, more where few rows have many ties.
    assert len(differences) > len(names) and np.quantile(differences, 0.99) < 0.1 and max(differences) < 0.15


@pytest.mark.slow
@golden
@needs_golden
def test_screening_hides_what_the_full_computation_hides(everybody):
    table, features, statistics = everybody
    some = features[6:70:3]
    chosen = {f.name: statistics[f.name] for f in some if f.name in statistics}
    train = table.iloc[: len(table) // 2]
    quick = mutual_information(train, some, chosen, ordered=sepsis.ORDERED)
    full = mutual_information(train, some, chosen, ordered=sepsis.ORDERED, screen=0.0)
    for target in chosen:
        sets = [hidden_with(target, 0.5, leakage=m, features=some, statistics=chosen) for m in (quick, full)]
        assert sets[0] == sets[1], target


@pytest.mark.parametrize("target", ["ward", "number"])
def test_a_category_that_never_repeats_is_judged_by_the_binned_estimate(target):
    """As in a registry of few patients: scikit-learn has nothing to compare there, and ended in a traceback."""
    wards = pd.Series([*"abcde", None, None, None], dtype=object)
    table = pd.DataFrame({"ward": wards, "number": [1.0, 2, 3, 4, 5, np.nan, np.nan, np.nan]})
    features = [feature("ward", "category"), feature("number", "number")]
    found = mutual_information(table, features, value_statistics(table, features), screen=0.0)
    rough = pd.DataFrame(binned(columns_of(table, features, {}, None)), index=list(table), columns=list(table))
    other = {"ward": "number", "number": "ward"}[target]
    assert found.loc[other, target] == rough.loc[other, target]
