"""Two shown values that give a third away: found, hidden, listed; and nothing is found where there is nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from shared.errors import InputError
from shared.registry import store
from shared.registry.build import RawColumn, RawRegistry, build
from shared.registry.dates import days
from shared.registry.features import Feature
from shared.registry.leakage import hidden_with, leak_audit
from shared.registry.relations import ARITHMETIC, DATE, DIFFERENCE, SEVERAL, find
from shared.registry.statistics import value_statistics
from shared.tasks.denoising import Denoising, questions

KINDS = {"admitted": "datetime", "discharged": "datetime", "seen": "datetime", "born": "text", "stay": "category"}


def table(size, seed):
    """Stays with two dates and their length, a birth date as text, and numbers computed from two others."""
    rng = np.random.default_rng(seed)
    start = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 4 * 365 * 1440, size), unit="min")
    days = rng.gamma(2, 3, size)
    born = start.normalize() - pd.to_timedelta(rng.integers(20 * 365, 95 * 365, size), unit="D")
    height, weight = rng.normal(170, 9, size).round(), rng.normal(75, 15, size).round(1)
    systolic = rng.normal(120, 20, size).round()
    diastolic = (0.5 * systolic + rng.normal(15, 6, size)).round()
    ward, icu = rng.integers(0, 40, size) * 1.0, rng.integers(0, 30, size) * 1.0
    return pd.DataFrame(
        {
            "admitted": start,
            "discharged": start + pd.to_timedelta((days * 1440).astype(int), unit="min"),
            "seen": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 10**6, size), unit="min"),
            "born": born.strftime("%Y-%m-%d"),
            "los": np.floor(days),
            "stay": pd.Series(np.where(days > 7, "long", "short"), dtype=object),
            "age": np.floor((start - born).days / 365.25).astype(float),
            "height": height,
            "weight": weight,
            "bmi": (weight / (height / 100) ** 2).round(1),
            "systolic": systolic,
            "diastolic": diastolic,
            "mean": ((systolic + 2 * diastolic) / 3).round(),
            "ward": ward,
            "icu": icu,
            "days": ward + icu,
            "noise": rng.normal(size=size).round(2),
        }
    )


def features_of(values):
    return [
        Feature(name=name, display_name=name, section="", kind=KINDS.get(name, "number"), decimals=2) for name in values
    ]


@pytest.mark.parametrize("size", [41, 300])
def test_what_two_give_away_is_found(size):
    values = table(size, 1)
    features = features_of(values)
    statistics = value_statistics(values, features)
    found = find(values, features, statistics)
    triples = {(row.target, frozenset((row.first, row.second)) - {""}, row.reason) for row in found.itertuples()}
    pair = frozenset
    assert {
        ("los", pair({"admitted", "discharged"}), DIFFERENCE),
        ("stay", pair({"admitted", "discharged"}), DIFFERENCE),
        ("age", pair({"born"}), DATE),
        ("bmi", pair({"height", "weight"}), ARITHMETIC),
        ("weight", pair({"height", "bmi"}), ARITHMETIC),
        ("mean", pair({"systolic", "diastolic"}), ARITHMETIC),
        ("diastolic", pair({"systolic", "mean"}), ARITHMETIC),
        ("days", pair({"ward", "icu"}), ARITHMETIC),
        ("icu", pair({"ward", "days"}), ARITHMETIC),
    } <= triples
    assert not {row.target for row in found.itertuples()} & {"noise"}
    assert {row.target for row in found.itertuples() if "seen" in (row.first, row.second)} <= {"age"}  # with `born`


def test_what_is_hidden_with_what_and_why():
    values = table(300, 2)
    features = features_of(values)
    statistics = value_statistics(values, features)
    relations = find(values, features, statistics)
    nothing = pd.DataFrame(index=[], columns=[], dtype=float)
    hide = lambda name: hidden_with(  # noqa: E731
        name, 0.5, leakage=nothing, features=features, statistics=statistics, relations=relations
    )
    assert hide("los") == {"admitted", "discharged"} == hide("stay")
    assert hide("age") == {"born"}  # the date of birth tells it by itself, so no other date has to go
    assert hide("bmi") == {"height", "weight"} and hide("noise") == frozenset()
    leaks = leak_audit(features, statistics, nothing, cutoff=0.5, relations=relations).set_index(["asked", "hidden"])
    assert leaks.loc[("los", "admitted"), "reason"] in (
        f"{DIFFERENCE} with discharged",
        f"{ARITHMETIC} with discharged",
    )
    assert leaks.loc[("bmi", "height"), "reason"] == "arithmetic with weight"
    assert leaks.loc[("age", "born"), "reason"] == DATE and (leaks["nats"] > leaks["cutoff"]).all()
    high = hidden_with("los", 9.0, leakage=nothing, features=features, statistics=statistics, relations=relations)
    assert high == frozenset()  # the cutoff holds for them too, but for targets with a known set of values


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_found_where_nothing_is(seed):
    """Dates and numbers that know nothing of each other, and numbers that share a cause: no medicine is hidden."""
    rng = np.random.default_rng(seed)
    size, cause = 150, rng.normal(size=150)
    values = {
        f"date{i}": pd.Timestamp("2021-01-01") + pd.to_timedelta(rng.integers(0, 10**6, size), "min") for i in range(5)
    }
    values |= {f"number{i}": (100 + 10 * (cause + 0.7 * rng.normal(size=size))).round() for i in range(12)}
    values |= {f"flag{i}": pd.Series(np.where(rng.random(size) < 0.03, "yes", "no"), dtype=object) for i in range(12)}
    frame = pd.DataFrame(values)
    features = [
        Feature(name=name, display_name=name, section="", decimals=0,
                kind="datetime" if name.startswith("date") else "number" if name.startswith("number") else "category")
        for name in frame
    ]  # fmt: skip
    assert find(frame, features, value_statistics(frame, features)).empty


def registry(size=300):
    values = table(size, 3)
    columns = [
        RawColumn(name, name.title(), "[Stay]", "", list(values[name]) if KINDS.get(name) else values[name].to_numpy(),
                  kind=KINDS.get(name, "number"))
        for name in values
    ]  # fmt: skip
    raw = RawRegistry(cohort="test", ids=[f"p{i}" for i in range(size)], columns=columns)
    return build(raw, valid_patients=60, seed=1)


def test_no_question_shows_what_its_answer_is_computed_from(tmp_path):
    made = registry()
    store.save(made, tmp_path / "registry")
    kept = store.load(tmp_path / "registry")
    pd.testing.assert_frame_equal(kept.relations, made.relations)
    asked = questions(kept, "train", 400, seed=1)
    parents = {
        "los": ("Admitted", "Discharged"),
        "bmi": ("Height", "Weight"),
        "age": ("Born",),
        "days": ("Ward", "Icu"),
    }
    seen = set()
    for question in asked:
        shown = {line.partition(": ")[0] for line in question.context.split("\n")}
        if question.feature in parents:
            # Of two numbers one may be hidden by itself already, as it tells most: then the other may stay.
            assert not shown.issuperset(parents[question.feature]), question.feature
            seen.add(question.feature)
        assert question.feature not in ("los", "stay") or shown.isdisjoint(parents["los"])
    assert seen == set(parents)
    # Masked together, or one beside the other, it is the same: neither gives the other away.
    together = Denoising(kept, "train", seed=1, masked=3)
    for patient in together.patients()[:40]:
        chosen = set(together.victims(patient, 0, 3))
        assert not ({"bmi"} <= chosen and chosen & {"height", "weight"})


def test_a_registry_without_its_relations_is_prepared_again(tmp_path):
    made = registry(100)
    store.save(made, tmp_path / "registry")
    (tmp_path / "registry" / "relations.parquet").unlink()
    with pytest.raises(InputError, match=r"relations\.parquet: no such file; prepare the registry again"):
        store.load(tmp_path / "registry")


@pytest.mark.parametrize(
    "form",
    ["%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y%m%d", "%d %b %Y", "%b %d, %Y",
     "%Y년 %m월 %d일", "%Y-%m-%dT00:00:00+09:00"],
)  # fmt: skip
def test_dates_are_read_however_they_are_written(form):
    moments = pd.date_range("2024-01-20", periods=30)
    expected = np.arange(19742.0, 19772.0)
    assert days([moment.strftime(form) for moment in moments]).tolist() == expected.tolist()


def test_what_is_no_date_is_none():
    assert days(["2024-01-31 12:00", "2024-1-30", "2024-02-01"]).tolist() == [19753.5, 19752, 19754]
    some = days([f"2024-01-{day:02}" for day in range(1, 20)] + ["unknown"])
    assert some[:2].tolist() == [19723, 19724] and np.isnan(some[-1])  # one that is not known changes nothing
    for texts in (
        ["31 January"],
        ["2024-13-01"],
        ["2024"],
        [""],
        [],
        ["12.5", "13"],
        ["12345678"],
        ["yes"] * 9 + ["2024-01-31"],
    ):
        assert np.isnan(days(texts)).all(), texts


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%m/%d/%Y", "number"])
def test_dates_of_other_forms_hide_what_their_difference_gives(form):
    values = table(300, 4)[["admitted", "los", "noise"]]
    values["discharged"] = values["admitted"] + pd.to_timedelta(values["los"], unit="D")
    for name in ("admitted", "discharged"):
        days_of = values[name].dt.strftime("%Y%m%d" if form == "number" else form)
        values[name] = days_of.astype(float) if form == "number" else days_of
    values.loc[7, "admitted"] = np.nan if form == "number" else "unknown"
    kind = "number" if form == "number" else "text"
    features = [
        Feature(name=name, display_name=name, section="", decimals=2, kind=kind if "ed" in name else "number")
        for name in values
    ]
    found = find(values, features, value_statistics(values, features))
    assert ("los", {"admitted", "discharged"}) in [(row.target, {row.first, row.second}) for row in found.itertuples()]


def test_a_sum_of_several_is_hidden_with_its_parts():
    """A score and its three parts, also where the score is there twice; an unrelated number stays."""
    rng = np.random.default_rng(5)
    eyes, voice, moves = (rng.integers(1, most, 200) * 1.0 for most in (5, 6, 7))
    values = pd.DataFrame({"eyes": eyes, "voice": voice, "moves": moves, "score": eyes + voice + moves,
                           "noise": rng.normal(size=200).round(2)})  # fmt: skip
    values["again"] = values["score"]
    values.loc[rng.random(200) < 0.1, "eyes"] = np.nan
    features = features_of(values)
    statistics = value_statistics(values, features)
    relations = find(values, features, statistics)
    nothing = pd.DataFrame(index=[], columns=[], dtype=float)
    hide = lambda name: hidden_with(  # noqa: E731
        name, 0.5, leakage=nothing, features=features, statistics=statistics, relations=relations
    )
    parts = {"eyes", "voice", "moves"}
    assert hide("score") >= parts and hide("moves") >= {"eyes", "voice"} and hide("moves") & {"score", "again"}
    assert hide("noise") == frozenset() and "noise" not in hide("score") | hide("moves")
    assert set(relations["reason"]) == {SEVERAL}
