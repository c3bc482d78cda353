"""The synthetic registry: raw files, drawing, and above all the exactness of its oracle."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import stat

import numpy as np
import openpyxl
import pandas as pd
import pytest

from shared.cohorts.sepsis.cleaning import clean
from shared.cohorts.sepsis.reader import read
from shared.cohorts.synthetic import (
    FEATURES,
    LATENTS,
    SHAPE,
    Oracle,
    draw,
    draw_complete,
    prior,
    states_table,
    table,
    write_raw,
)
from shared.cohorts.synthetic.registry import METADATA_COLUMNS, as_read
from shared.errors import InputError

PATIENTS, SEED, SHOWN = 4000, 11, 24
MODELLED = [name for name, feature in FEATURES.items() if feature.base]
ACTIVE_UNITS = (
    "cm kg kg/m2 mmHg /min ℃ mmol/L ∙103/uL % /uL g/dL mg/dL U/L INR mg/L ng/mL mcg/mL pg/mL 103/uL mL Days Minutes"
)


@pytest.fixture(scope="module")
def registry() -> pd.DataFrame:
    return draw(PATIENTS, SEED)


@pytest.fixture(scope="module")
def complete() -> tuple[pd.DataFrame, pd.DataFrame]:
    return draw_complete(PATIENTS, SEED)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "registry"
    write_raw(folder, patients=60, seed=SEED)
    return folder


def rows(path) -> list[tuple]:
    return list(openpyxl.load_workbook(path, read_only=True).worksheets[0].iter_rows(values_only=True))


def shown_texts(row: pd.Series, names) -> dict[str, str]:
    return {
        name: str(row[name]) if FEATURES[name].kind == "moment" else FEATURES[name].text(row[name])
        for name in names
        if not pd.isna(row[name])
    }


# ---------------------------------------------------------------------------------------------------- the table


def test_there_are_enough_features_of_every_kind_in_every_section():
    assert len(FEATURES) >= 100
    sections = {(feature.domain, feature.section) for feature in FEATURES.values()}
    assert len(sections) == 12
    assert sum(bool(feature.cuts) for feature in FEATURES.values()) >= 12
    assert sum(feature.kind == "moment" for feature in FEATURES.values()) >= 4
    assert {feature.unit for feature in FEATURES.values() if feature.unit} <= set(ACTIVE_UNITS.split())


def test_names_and_titles_do_not_trip_the_reader():
    for name, feature in FEATURES.items():
        if feature.kind != "moment":
            assert not re.search("date|time|dat_ou", f"{name} {feature.title}".lower()), name
        assert not name.startswith("na_") and not name.endswith("desc") and "_icud" not in name
        for label in feature.outcomes if feature.kind == "category" else ():
            assert label not in ("NA", "None", "nan", "") and "," not in label and "=" not in label


def test_tables_are_laws_for_every_state():
    assert prior().sum() == pytest.approx(1) and (prior() > 0).all()
    for name in MODELLED:
        law = states_table(name)
        assert law.shape == (math.prod(SHAPE), len(FEATURES[name].outcomes))
        assert (law >= 0).all()
        np.testing.assert_allclose(law.sum(axis=1), 1, atol=1e-12)


def test_grid_values_are_written_with_the_stated_decimals():
    for feature in FEATURES.values():
        if feature.kind == "number":
            assert [float(feature.text(value)) for value in feature.outcomes] == list(feature.outcomes)


def test_few_pairs_of_unrelated_features_share_more_than_the_leakage_threshold():
    """Otherwise the filter would hide what a question is to be answered from."""
    weights = prior().ravel()
    coarse = {}
    for name in MODELLED:
        if FEATURES[name].base == name:
            law = states_table(name)
            bins = np.minimum((np.cumsum(weights @ law) * 16).astype(int), 15) if law.shape[1] > 16 else None
            coarse[name] = law if bins is None else np.stack([law[:, bins == k].sum(axis=1) for k in range(16)], axis=1)

    def entropy(mass: np.ndarray) -> float:
        mass = mass[mass > 0]
        return float(-(mass * np.log(mass)).sum())

    shared = []
    for first, second in itertools.combinations(coarse.values(), 2):
        joint = (first * weights[:, None]).T @ second
        shared.append(entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1)) - entropy(joint.ravel()))
    assert np.mean(np.array(shared) > 0.5) < 0.003
    assert np.mean(shared) > 0.05


# ---------------------------------------------------------------------------------------------------- drawing


def test_a_seed_gives_one_registry(registry):
    pd.testing.assert_frame_equal(registry, draw(PATIENTS, SEED))
    other = draw(PATIENTS, SEED + 1)
    assert (registry["lactate"] != other["lactate"]).mean() > 0.9
    with pytest.raises(InputError, match="patients=0"):
        draw(0, SEED)


def test_drawn_values_follow_the_tables(complete):
    """The count of every label is within 6 standard deviations of what the marginal law expects."""
    _, columns = complete
    for name in MODELLED:
        feature = FEATURES[name]
        if feature.kind != "category":
            continue
        expected = PATIENTS * (prior().ravel() @ states_table(name))
        found = np.array([(columns[name].str.lower() == str(label).lower()).sum() for label in feature.outcomes])
        assert found.sum() == PATIENTS
        sigma = np.sqrt(expected * (1 - expected / PATIENTS))
        assert (np.abs(found - expected) < 6 * sigma).all(), name


@pytest.mark.slow
def test_numbers_follow_their_class(complete):
    latents, columns = complete
    states = np.ravel_multi_index(tuple(latents[name] for name in LATENTS), SHAPE)
    for name in MODELLED:
        feature = FEATURES[name]
        if feature.law is not None and feature.kind == "number":
            values = np.array(feature.outcomes)
            mean = states_table(name) @ values
            variance = states_table(name) @ values**2 - mean**2
            scores = (columns[name] - mean[states]) / np.sqrt(variance[states])
            assert abs(scores.mean()) < 5 / np.sqrt(PATIENTS), name
            assert 0.9 < scores.std() < 1.1, name


def test_derived_features_are_functions_of_their_base(complete):
    _, columns = complete
    for name, feature in FEATURES.items():
        if feature.cuts:
            pairs = columns[[feature.base, name]].drop_duplicates()
            assert not pairs[feature.base].duplicated().any(), name
            shares = columns[name].value_counts(normalize=True)
            assert len(shares) >= 2 and shares.max() < 0.62, name
    assert (columns.loc[columns["pltcnt"] < 50, "sofacoag"] >= 3).all()
    assert (columns.loc[columns["sbp"] <= 100, "qsofasbp"] == "yes").all()
    assert (columns.loc[columns["sbp"] > 100, "qsofasbp"] == "no").all()
    assert set(columns.loc[columns["creatinine"] == 1.2, "sofarenal"]) == {1.0}
    assert set(columns.loc[columns["lactate"] == 4.0, "lactatecat"]) == {"4 or above"}


def test_blanks_and_moments_say_nothing_about_the_state(complete, registry):
    latents, _ = complete
    for name, feature in FEATURES.items():
        absent = registry[name].isna()
        assert abs(absent.mean() - feature.missing) < 5 * math.sqrt(0.25 / PATIENTS)
        for level in range(SHAPE[0]):
            inside = absent[latents["severity"] == level]
            assert abs(inside.mean() - feature.missing) < 5 * math.sqrt(0.25 / len(inside))
    delay = (registry["abxdate"] - registry["tzdt"]).dt.total_seconds() / 60
    means = delay.groupby(latents["severity"]).mean()
    assert means.max() - means.min() < 25  # minutes; 5 standard errors of the uniform delay
    assert delay.min() >= 5 and delay.max() <= 360


# ---------------------------------------------------------------------------------------------------- raw files


def test_metadata_describes_every_data_column_in_order(raw):
    metadata, data = rows(raw / "metadata.xlsx"), rows(raw / "data.xlsx")
    assert metadata[0] == METADATA_COLUMNS
    names = [row[2] for row in metadata[1:]]
    assert list(data[0]) == names and len(set(names)) == len(names)
    assert names[-1] == "DATANO" and len(data) == 61
    assert {"SUBJECTNO", "CENTER", "HSPT_CD", "HOSADMNA", "TZDT", "TZTM"} <= set(names)
    titles = [row[3].lower() for row in metadata[1:]]
    pairs = [i for i in range(len(titles) - 1) if "date" in titles[i] and "time" in titles[i + 1]]
    assert len(pairs) == sum(feature.kind == "moment" for feature in FEATURES.values())


def test_raw_cells_give_the_registry_back(raw):
    registry = draw(60, SEED)
    metadata, data = rows(raw / "metadata.xlsx"), rows(raw / "data.xlsx")
    korean = json.loads((raw / "kor_to_eng.json").read_text(encoding="utf-8"))
    cells = {name.lower(): [row[i] for row in data[1:]] for i, name in enumerate(data[0])}
    ranges = {row[2].lower(): row[5] for row in metadata[1:] if len(row) > 5}
    translated = 0
    for name, feature in FEATURES.items():
        if feature.kind == "moment":
            times = cells[time_name(metadata, name)]
            for day, time, truth in zip(cells[name], times, registry[name], strict=True):
                assert (day is None and time is None) if pd.isna(truth) else str(truth) == f"{day:%Y-%m-%d} {time}"
        elif feature.kind == "number":
            found = [math.nan if cell is None else float(cell) for cell in cells[name]]
            np.testing.assert_array_equal(found, registry[name].to_numpy())
        else:
            lines = ranges[name].split("\n")
            tick = len(lines) == 1
            labels = dict(re.match(r"\[?(\d)\]?(?: =)? (.*)", line).groups() for line in lines)
            translated += sum(label in korean for label in labels.values())
            labels = {code: korean.get(label, label) for code, label in labels.items()} | ({"0": "No"} if tick else {})
            found = [None if cell is None else as_read(labels[str(cell)]) for cell in cells[name]]
            truth = [None if pd.isna(value) else value for value in registry[name]]
            assert found == truth, name
    assert translated >= 8


def time_name(metadata: list[tuple], name: str) -> str:
    """The column after `name` in the codebook."""
    names = [row[2].lower() for row in metadata]
    return names[names.index(name) + 1]


def test_the_reader_of_the_sepsis_registry_gives_the_registry_back(raw):
    registry = draw(60, SEED)
    ids, columns, _ = clean(read(raw))
    assert list(ids) == list(registry["subjectno"])
    assert [column.name for column in columns] == list(FEATURES)
    for column in columns:
        feature = FEATURES[column.name]
        assert column.display_name == feature.display
        for cell, truth in zip(column.values, registry[column.name], strict=True):
            if pd.isna(truth):
                assert cell in (None, ""), column.name
            else:
                assert (float(cell) if feature.kind == "number" else str(cell)) == (
                    truth if feature.kind == "number" else str(truth)
                ), column.name


def test_the_same_seed_writes_the_same_bytes(raw, tmp_path):
    write_raw(tmp_path, patients=60, seed=SEED)
    for path in raw.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_raw_files_are_readable_by_their_owner_only(raw):
    for path in raw.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in raw.iterdir()) == ["data.xlsx", "kor_to_eng.json", "metadata.xlsx"]


# ---------------------------------------------------------------------------------------------------- the oracle


def by_enumeration(shown: dict[str, str], victim: str, choice: str) -> float:
    """P(victim = choice | shown) by walking over every state and every value of every base, with no cleverness."""

    def matches(name: str, outcome: int, text: str) -> bool:
        feature = FEATURES[name]
        value = feature.outcomes[feature.of_base[outcome]]
        if feature.kind == "number":
            return abs(float(value) - float(text)) < 1e-9
        return str(value).lower() == text.lower()

    bases = {FEATURES[name].base for name in [*shown, victim]}
    above = below = 0.0
    for state in np.ndindex(*SHAPE):
        inside, inside_choice = prior()[state], 1.0
        for base in bases:
            law = table(base)[tuple(i if size > 1 else 0 for i, size in zip(state, table(base).shape, strict=False))]
            given = [(name, text) for name, text in shown.items() if FEATURES[name].base == base]
            kept = [k for k in range(len(law)) if all(matches(name, k, text) for name, text in given)]
            mass = sum(law[k] for k in kept)
            inside *= mass
            if base == FEATURES[victim].base:
                chosen = sum(law[k] for k in kept if matches(victim, k, choice))
                inside_choice = chosen / mass if mass else 0.0
        below += inside
        above += inside * inside_choice
    return above / below


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shown", "victim", "choices"),
    [
        ({}, "infectsite", ["Lung", "abdomen"]),
        ({"gcs": "9", "rr": "31"}, "septicshock", ["yes", "no"]),
        ({"alertness": "drowsy"}, "gcs", ["12", "13", "14", "13.0"]),
        ({"gcs": "7", "rr": "20"}, "alertness", ["stupor to coma", "Alert"]),
        ({"qsofarr": "yes", "spo2": "85"}, "rr", ["21", "22", "30"]),
        ({"sofaresp": "3.0", "frailscale": "Fit", "organism": "S. aureus"}, "icudays", ["4", "9"]),
    ],
)
def test_oracle_equals_enumeration(shown, victim, choices):
    found = Oracle().posterior(shown, victim, choices)
    np.testing.assert_allclose(found, [by_enumeration(shown, victim, choice) for choice in choices], rtol=1e-9)


def test_oracle_sums_to_one_over_all_outcomes_and_ignores_what_says_nothing(registry):
    oracle = Oracle()
    for victim in ("creatinine", "organism", "sofaliver"):
        shown = shown_texts(registry.iloc[0], [name for name in FEATURES if name != victim])
        choices = [FEATURES[victim].text(value) for value in FEATURES[victim].outcomes]
        found = oracle.posterior(shown, victim, choices)
        assert found.sum() == pytest.approx(1)
        silent = shown | {"unheard": "of", "tzdt": "2021-01-01 00:00:00", "lactate": shown.get("lactate", "")}
        without = {name: text for name, text in silent.items() if FEATURES.get(name) and FEATURES[name].base}
        np.testing.assert_array_equal(found, oracle.posterior(silent | {victim: "7"}, victim, choices))
        np.testing.assert_array_equal(found, oracle.posterior(without, victim, choices))


def test_choices_that_cannot_occur_have_probability_zero():
    found = Oracle().posterior({"sbp": "88"}, "bt", ["38.25", "55.0", "-1", "warm", "nan", "38.2"])
    assert (found[:-1] == 0).all() and found[-1] > 0
    assert Oracle().posterior({"gcs": "15"}, "alertness", ["Obtunded"])[0] == 0


def test_impossible_records_and_columns_without_a_law_are_refused():
    with pytest.raises(InputError, match="unheard"):
        Oracle().posterior({}, "unheard", ["of"])
    with pytest.raises(InputError, match="tzdt"):
        Oracle().posterior({}, "tzdt", ["2021-01-01"])
    with pytest.raises(InputError, match="probability 0"):
        Oracle().posterior({"gcs": "15", "alertness": "Obtunded"}, "rr", ["20"])
    with pytest.raises(InputError, match="probability 0"):
        Oracle().posterior({"bt": "38.25"}, "rr", ["20"])


@pytest.mark.slow
def test_posterior_matches_frequencies_in_a_large_sample():
    """Among patients with the same two values shown, a third value is as frequent as the oracle says."""
    _, columns = draw_complete(60_000, 3)
    shown = {"pressor": "Two agents", "infectsite": "Abdomen", "frailscale": "Fit"}
    alike = columns[np.logical_and.reduce([columns[name] == text for name, text in shown.items()])]
    assert len(alike) > 300
    for victim in ("respsupport", "abxclass", "sofacoag", "outcome"):
        choices = [FEATURES[victim].text(value) for value in FEATURES[victim].outcomes]
        expected = Oracle().posterior(shown, victim, choices)
        found = np.array([(alike[victim].astype(str).str.lower() == str(value).lower()).mean()
                          for value in FEATURES[victim].outcomes])  # fmt: skip
        assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / len(alike)) + 1e-9).all(), victim


@functools.cache
def deviation(name: str) -> float:
    """Standard deviation of a number over all patients."""
    law, values = prior().ravel() @ states_table(name), np.array(FEATURES[name].outcomes)
    return math.sqrt(law @ values**2 - (law @ values) ** 2)


def ask(row: pd.Series, random: np.random.Generator) -> tuple[dict[str, str], str, list[str], int]:
    """A question of the test's own: all labels, or for a number the truth at a random place on a ladder of 5 values.

    The place does not depend on the truth, so the posterior over the options is the normalised one. Relatives of the
    masked feature are not shown, as the leakage filter would have it.
    """
    present = [name for name in FEATURES if not pd.isna(row[name])]
    victim = str(random.choice([name for name in present if FEATURES[name].base]))
    feature = FEATURES[victim]
    visible = [name for name in present if FEATURES[name].base != feature.base or not feature.base]
    shown = shown_texts(row, random.choice(visible, SHOWN, replace=False))
    if feature.kind == "category" or len(feature.outcomes) <= 5:
        truth = [str(value).lower() for value in feature.outcomes].index(str(row[victim]).lower())
        return shown, victim, [feature.text(value) for value in feature.outcomes], truth
    step = max(round(0.7 * deviation(victim), feature.decimals), 10.0**-feature.decimals)
    place = int(random.integers(5))
    return shown, victim, [feature.text(row[victim] + step * (k - place)) for k in range(5)], place


@pytest.mark.slow
def test_best_accuracy_is_what_the_oracle_says_and_leaves_much_to_learn(registry):
    oracle, random = Oracle(), np.random.default_rng(5)
    promised, right, majority = [], [], []
    for index in range(1500):
        shown, victim, choices, truth = ask(registry.iloc[index], random)
        chances = oracle.posterior(shown, victim, choices)
        chances = chances / chances.sum()
        promised.append(chances.max())
        right.append(int(chances.argmax()) == truth)
        majority.append(int(oracle.posterior({}, victim, choices).argmax()) == truth)
    error = math.sqrt(sum(p * (1 - p) for p in promised)) / len(promised)
    assert abs(np.mean(right) - np.mean(promised)) < 3 * error
    assert 0.65 < np.mean(promised) < 0.77
    assert 0.38 < np.mean(majority) < 0.47
