"""Denoising questions: what they show, what they offer, and that neither gives the answer away."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.cohorts import sepsis, synthetic
from shared.errors import InputError
from shared.questions import shortcuts
from shared.questions.record import LETTERS
from shared.randomness import generator
from shared.registry.build import RawColumn, RawRegistry, build
from shared.registry.features import Feature
from shared.registry.statistics import ValueStatistics
from shared.tasks.balanced import WindowLaw, category_law, number_law
from shared.tasks.choices import CategoryLaw, LadderLaw, heap, ladder_steps
from shared.tasks.denoising import MASK, Denoising, later_features, questions, render

HOSPITAL = "[Derived variable/Hospital factor]"


@pytest.fixture(scope="module")
def registry():
    rng = np.random.default_rng(5)
    size = 300
    severity = rng.normal(size=size)
    lactate = np.exp(0.5 + 0.5 * severity).round(1)
    volumes = (rng.integers(20, 300, size) * 10).astype(float)
    values = {
        "age": rng.integers(20, 99, size).astype(float),
        "lactate": lactate,
        "twin": (lactate * 2).round(1),
        "volume": volumes,
        "sofa": np.clip(np.round(4 + 2 * severity), 0, 9),
        "sex": rng.choice(["Male", "Female"], size),
        "site": rng.choice(list("abcdefghij"), size, p=np.arange(1, 11) / 55),
        "died": np.where(severity > 1, "yes", "no"),
        "beds": rng.choice(["few", "many"], size),
        "note": [f"free text {i}" for i in range(size)],
    }
    columns = []
    for place, (name, column) in enumerate(values.items()):
        cells = [
            None if (i + 3 * place) % 13 == 7 else value
            for i, value in enumerate(column.tolist() if name != "note" else column)
        ]
        section = {"age": "[P/basic]", "beds": HOSPITAL}.get(name, "[V/lab]")
        coded = tuple(sorted(set(column))) if name in ("sex", "site", "died", "beds") else None
        columns.append(RawColumn("odesc" if name == "note" else name, name.title(), section, "", cells, coded))
    ids = [f"patient-{i}" for i in range(size)]
    return build(RawRegistry(cohort="test", ids=ids, columns=columns), valid_patients=100, seed=1, salt="pepper")


@pytest.fixture(scope="module")
def asked(registry):
    return questions(registry, "train", 2000, seed=9, balance=False)


@pytest.fixture(scope="module")
def balanced(registry):
    return questions(registry, "train", 2000, seed=9)


def test_a_question_reads_as_the_original_wrote_it(registry):
    maker = Denoising(registry, "train", seed=1, balance=False)
    patient = next(p for p in maker.patients() if len(maker.records[p]) == len(registry.features))
    record = maker.records[patient]
    question = maker.ask(patient, "died", 0)
    assert question.question == "Q1. What would be the masked value of 'Died' in section [V/lab]?"
    assert question.context == "\n".join(
        [
            "[Baseline Characteristics/Hospital Information]",
            f"Beds: {record['beds']}",
            "",
            "[P/basic]",
            f"Age: {record['age']}",
            "",
            "[V/lab]",
            f"Volume: {record['volume']}",
            f"Sex: {record['sex']}",
            f"Site: {record['site']}",
            "Died: [MASK]",
            f"Note: {record['odesc']}",
        ]
    )  # lactate, its twin and sofa tell too much about death here
    assert set(question.choices) == {"yes", "no"} and question.choices[LETTERS.index(question.answer)] == record["died"]
    assert maker.ask(patient, "beds", 0).section == "[Baseline Characteristics/Hospital Information]"
    assert question.id.startswith(f"test-denoising-{question.patient}-died-0")


def test_what_tells_the_answer_is_hidden(asked):
    for question in asked:
        assert question.context.count(MASK) == 1
        if question.feature == "lactate":
            assert "Twin" not in question.context and "Sofa" not in question.context
        if question.feature == "age":
            assert question.context.count("Age") == 1


def test_no_raw_id_and_a_salted_pseudonym(registry, asked):
    for question in asked[:200]:
        assert not any("patient-" in str(value) for value in dataclasses.astuple(question))
        assert len(question.patient) == 16
    assert len({q.patient for q in asked}) == 200
    other = dataclasses.replace(registry, provenance={"salt": "salt"})
    assert not {q.patient for q in questions(other, "train", 300, seed=9)} & {q.patient for q in asked}


def test_the_same_question_whatever_else_is_asked(registry, asked):
    assert questions(registry, "train", 350, seed=9, balance=False) == asked[:350]
    maker = Denoising(registry, "train", seed=9, balance=False)
    chosen = [(p, d) for p in maker.patients()[::-7] for d in (3, 0)]
    by_id = {question.id: question for question in asked}
    for patient, draw in chosen:
        question = maker.ask(patient, maker.victim(patient, draw), draw)
        assert by_id[question.id] == question
    alone = dataclasses.replace(registry, train=registry.train.sample(60, random_state=1))
    alone_maker = Denoising(alone, "train", seed=9, balance=False)
    assert [f.name for f in alone_maker.registry.features] == [f.name for f in registry.features]
    for patient in alone_maker.patients()[:10]:
        assert alone_maker.records[patient] == maker.records[patient]
    assert questions(registry, "train", 50, seed=10, balance=False) != asked[:50]


def test_rounds_ask_each_patient_once_and_each_feature_before_any_again(registry, asked):
    for start in range(0, 1000, 200):
        assert len({question.patient for question in asked[start : start + 200]}) == 200
    pairs = [(question.patient, question.feature) for question in asked[: 200 * 6]]
    assert len(set(pairs)) == len(pairs)
    assert len({question.id for question in asked}) == len(asked)
    texts = {(q.context, q.question, q.choices) for q in asked}
    assert len(texts) == len(asked)


def test_it_ends_when_nothing_new_is_possible(registry):
    few = dataclasses.replace(
        registry,
        statistics={name: registry.statistics[name] for name in ("sex", "beds")},
        valid=registry.valid.iloc[:3],
    )
    made = questions(few, "valid", 10_000, seed=1)
    assert 3 <= len(made) <= 3 * 2 * 2  # patients x features x orders of two options
    with pytest.raises(InputError, match="no question is possible"):
        questions(dataclasses.replace(registry, statistics={}), "valid", 1, seed=1)
    with pytest.raises(InputError, match="num_choices"):
        questions(registry, "valid", 1, seed=1, num_choices=6)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("balance", [True, False])
def test_options_are_alike(registry, size, balance):
    for question in questions(registry, "valid", 600, seed=2, num_choices=size, balance=balance):
        feature = registry.feature(question.feature)
        vocabulary = registry.statistics[question.feature].vocab
        expected = min(size, len(vocabulary)) if registry.statistics[question.feature].finite else size
        assert len(question.choices) == len(set(question.choices)) == expected
        assert "nan" not in question.choices and "-0" not in question.choices
        if feature.kind == "number":
            assert len({len(text.partition(".")[2]) for text in question.choices}) == 1
            assert all(float(text) >= 0 for text in question.choices)


def test_a_value_that_training_never_saw_is_not_asked_for(registry):
    valid = registry.valid.copy()
    patient = valid.index[0]
    valid.loc[patient, "site"] = "elsewhere"
    valid.loc[patient, "age"] = 400.0
    maker = Denoising(dataclasses.replace(registry, valid=valid), "valid", seed=1)
    victims = {maker.victim(patient, draw) for draw in range(40)}
    assert "sex" in victims and not victims & {"site", "age", "odesc"}


def test_shown_features_can_be_limited(registry):
    for question in questions(registry, "train", 300, seed=3, context_features=3):
        shown = [line for line in question.context.split("\n") if line and not line.startswith("[")]
        assert len(shown) == 3 and MASK in question.context
    whole = Denoising(registry, "train", seed=3, balance=False)
    part = Denoising(registry, "train", seed=3, context_features=3, balance=False)
    for patient in [p for p in whole.patients() if "site" in whole.records[p]][:30]:
        first, second = whole.ask(patient, "site", 0), part.ask(patient, "site", 0)
        assert first.choices == second.choices  # options do not depend on what is shown
        assert set(second.context.split("\n")) <= set(first.context.split("\n"))


def test_letters_are_uniform_and_round_values_do_not_stand_out(registry, asked):
    five = [q for q in asked if len(q.choices) == 5]
    counts = np.bincount([LETTERS.index(q.answer) for q in five], minlength=5)
    spread = math.sqrt(len(five) * 0.2 * 0.8)
    assert np.abs(counts - len(five) / 5).max() < 4 * spread
    round_ones = [text for question in asked if question.feature == "volume" for text in question.choices]
    assert round_ones and all(text.endswith("0") for text in round_ones)


def test_majority_is_the_option_most_frequent_in_training(registry, asked):
    for question in asked:
        statistics = registry.statistics[question.feature]
        best = question.choices[LETTERS.index(question.majority)]
        if statistics.finite:
            weights = dict(zip(statistics.vocab, statistics.weights, strict=True))
            assert weights[best] == max(weights[text] for text in question.choices)
        else:
            assert statistics.density(float(best)) == max(statistics.density(float(t)) for t in question.choices)


def ladder(low, high, steps, decimals=1, choices=5):
    flat = ValueStatistics((), np.zeros(0), 1.0, (), np.zeros(3), np.ones(3), np.ones(3) / 3)
    return LadderLaw(decimals, low, high, tuple(steps), tuple(1 / len(steps) for _ in steps), choices, flat)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), decimals=st.integers(0, 3), choices=st.integers(2, 5), seed=st.integers(0, 99))
def test_ladders(data, decimals, choices, seed):
    low = data.draw(st.integers(-500, 500))
    high = data.draw(st.integers(low + choices, low + 1000))
    step = data.draw(st.integers(1, (high - low) // choices))
    law = ladder(low, high, [step], decimals, choices)
    label = f"{data.draw(st.integers(low, high)) / 10**decimals:.{decimals}f}"
    label = label.removeprefix("-") if float(label) == 0 else label
    assert law.can_ask(label)
    options = law.draw(label, generator(seed))
    units = sorted(round(float(text) * 10**decimals) for text in options)
    assert len(options) == choices and label in options
    assert set(np.diff(units)) == {step} and low <= units[0] and units[-1] <= high
    assert not any(float(text) == 0 and text.startswith("-") for text in options)
    # exactly: each admissible rung is equally likely, and each gives another set of options
    for text in options:
        mine = round(float(text) * 10**decimals)
        rungs = [k for k in range(choices) if mine - k * step >= low and mine + (choices - 1 - k) * step <= high]
        assert law.option_log_likelihood(text, options) == pytest.approx(-math.log(len(rungs)))


def test_large_categories_are_drawn_by_the_stated_law():
    weights = dict(zip("abcdef", (0.4, 0.25, 0.15, 0.1, 0.06, 0.04), strict=True))
    law = CategoryLaw(weights, 4)
    drawn = Counter(frozenset(law.draw("c", generator(i))) for i in range(4000))
    expected = {}
    for others in itertools.combinations("abdef", 3):
        expected[frozenset((*others, "c"))] = math.exp(law.option_log_likelihood("c", ("c", *others)))
    assert sum(expected.values()) == pytest.approx(1)
    for options, chance in expected.items():
        assert drawn[options] / 4000 == pytest.approx(chance, abs=4 * math.sqrt(chance / 4000))
    small = CategoryLaw({"x": 0.9, "y": 0.1}, 5)
    assert set(small.draw("x", generator(1))) == {"x", "y"}
    assert small.option_log_likelihood("x", ("x", "y")) == small.option_log_likelihood("y", ("x", "y"))
    assert not small.can_ask("z") and not CategoryLaw({"x": 1.0}, 5).can_ask("x")


def test_steps():
    weights = np.array([0.5, 0.3, 0.2])
    assert ladder_steps(np.array([0.2, 4.4, 90.0]), weights, 1, 50) == {4: pytest.approx(1.0)}
    assert ladder_steps(np.array([7.0, 12.0, 31.0]), weights, 10, 50) == pytest.approx({10: 0.8, 30: 0.2})
    assert ladder_steps(np.array([0.0, 0.0, 90.0]), weights, 1, 50) == {50: 1.0}
    assert ladder_steps(np.array([0.0, 0.0, 0.0]), weights, 1, 0) == {}


@pytest.mark.parametrize(
    "values, grain",
    [
        (range(1, 400), 1),
        (range(0, 4000, 10), 10),
        ([*range(0, 4000, 50), 3, 7, 1001], 50),
        ([0] * 90 + list(range(1, 200, 2)), 1),
        ([], 1),
    ],
)
def test_heaps(values, grain):
    assert heap(list(values)) == grain


def test_a_narrow_range_offers_training_values():
    column = [round(0.001 * (i % 21), 4) + 0.0001 * (i % 3) for i in range(400)]
    columns = [RawColumn("x", "X", "[a/b]", "", column), RawColumn("y", "Y", "[a/b]", "", ["u", "v"] * 200)]
    raw = RawRegistry(cohort="test", ids=[str(i) for i in range(400)], columns=columns)
    registry = build(raw, valid_patients=100, seed=1)
    made = [q for q in questions(registry, "valid", 200, seed=1, difficulty=50, balance=False) if q.feature == "x"]
    assert made
    for question in made:
        assert len(set(question.choices)) == 5 and all(len(text) == 5 for text in question.choices)
    maker = Denoising(registry, "valid", seed=1)
    with pytest.raises(InputError, match="z: this patient has no value"):
        maker.ask(maker.patients()[0], "z", 0)


def test_render_orders_sections_and_gathers_them():
    features = [
        Feature(name=name, display_name=name.upper(), section=section, kind="text")
        for name, section in (("a", "[x]"), ("b", "[y]"), ("h", HOSPITAL), ("c", "[x]"), ("i", HOSPITAL))
    ]
    texts = {"a": "1", "b": "2", "c": "3", "h": "4", "i": "5"}
    first = "[Baseline Characteristics/Hospital Information]\nH: 4\nI: 5"
    assert render(features, texts) == f"{first}\n\n[x]\nA: 1\nC: 3\n\n[y]\nB: 2"
    assert render(features, texts, sections=["[y]", "[gone]"]) == f"[y]\nB: 2\n\n{first}\n\n[x]\nA: 1\nC: 3"
    assert render(features, {"b": "2"}, masked=("a",)) == "[x]\nA: [MASK]\n\n[y]\nB: 2"
    assert render(features, {}) == ""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "raw"
    synthetic.write_raw(folder, patients=500, seed=4)
    return sepsis.prepare(folder, valid_patients=250, seed=4, salt="s", cohort="synthetic")


@pytest.mark.slow
@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("shown", [0, 8])
def test_the_stated_best_accuracy_is_reached_and_not_exceeded(drawn, shown, balance):
    """The best answer by the known law is right as often as it says, also among the sure and among the unsure."""
    made = questions(drawn, "valid", 1500, seed=4, context_features=shown, balance=balance, oracle=synthetic.Oracle())
    stated = np.array([q.bayes_accuracy for q in made])
    right = np.array([q.bayes_answer == q.answer for q in made])
    middle = np.median(stated)
    for part in (stated > 0, stated <= middle, stated > middle):
        error = math.sqrt((stated[part] * (1 - stated[part])).sum()) / part.sum()
        assert abs(right[part].mean() - stated[part].mean()) < 3.5 * error
    majority = np.mean([q.majority == q.answer for q in made])
    chance = np.mean([q.chance for q in made])
    assert majority < stated.mean() - 0.1 and (majority < chance + 0.03 if balance else majority > chance + 0.03)


@pytest.mark.slow
def test_balanced_options_tell_nothing(registry, balanced):
    """Every guesser is at chance, where the natural law lets the most frequent value win."""
    found = shortcuts.audit(balanced)
    assert found["passed"] and found["guessers"]["most frequent value"]["excess"] < 0.05
    natural = shortcuts.audit(questions(registry, "train", 2000, seed=9, balance=False))
    assert not natural["passed"] and natural["guessers"]["most frequent value"]["interval"][0] > 0.1


@pytest.mark.slow
def test_balanced_labels_are_uniform_given_the_options():
    weights = {"a": 50, "b": 30, "c": 10, "d": 5, "e": 3, "f": 2}
    law = category_law(weights, num_choices=3)
    labels = np.random.default_rng(3).choice(list(weights), 40_000, p=np.array(list(weights.values())) / 100)
    asked = Counter()
    for i, label in enumerate(labels):
        rng = generator(i)
        options = law.draw(label, rng)
        assert label in options and len(set(options)) == 3
        if rng.random() < law.accept(label, options):
            asked[tuple(sorted(options)), label] += 1
    for options in {options for options, _ in asked}:
        counts = [asked[options, label] for label in options]
        assert max(counts) - min(counts) < 5 * math.sqrt(np.mean(counts))


@pytest.mark.parametrize("difficulty, blocks", [(2.0, 1), (1.0, 2), (0.5, 4)])
def test_numbers_stand_at_equal_steps_of_probability(difficulty, blocks):
    values = np.random.default_rng(0).lognormal(4, 1, 2000).round().astype(int).tolist()
    law = number_law(values, 0, num_choices=5, difficulty=difficulty)
    assert law.blocks == blocks
    places = Counter()
    for i, value in enumerate(values):
        options = law.draw(str(value), generator(i))
        if options:
            assert [float(option) for option in options] == sorted(map(float, options)) and str(value) in options
            assert {int(option) for option in options} <= set(values)
            places[options.index(str(value))] += 1
    assert sum(places.values()) > 1900 and max(places.values()) - min(places.values()) < 5 * math.sqrt(400)


def test_numbers_that_pile_up_become_categories():
    values = [0] * 700 + list(range(1, 301))
    law = number_law(values, 1, num_choices=4, difficulty=2.0)
    assert isinstance(law, WindowLaw) and law.draw("0.0", generator(1))[0] == "0.0"
    assert not law.can_ask("31.0")  # in no patient


def test_several_values_masked_together(registry):
    made = questions(registry, "train", 600, seed=4, masked=3, balance=False)
    contexts = Counter(question.context.count(MASK) for question in made)
    assert contexts[3] > 300 and set(contexts) <= {1, 2, 3}
    together = {}
    for question in made:
        together.setdefault((question.patient, question.context), []).append(question.feature)
    assert Counter(len(set(features)) for features in together.values())[3] > 100
    for question in made:  # none of the values masked together gives another away
        if "Lactate: [MASK]" in question.context:
            assert "Twin" not in question.context


def test_every_value_of_held_out_patients(registry):
    made = questions(registry, "valid", 10_000, seed=4, all_victims=True, balance=False)
    maker = Denoising(registry, "valid", seed=4, balance=False)
    assert {(q.patient, q.feature) for q in made} == {
        (maker.pseudonym(patient), name) for patient in maker.patients() for name in maker.possible(patient)
    }
    part = questions(registry, "valid", 12, seed=4, all_victims=True, balance=False)
    assert part == made[:12] and len({q.patient for q in part}) < 4


def test_causal_records_show_nothing_later(registry):
    for question in questions(registry, "train", 200, seed=4, causal=True, balance=False):
        if question.feature == "age":  # its section comes first
            assert "[V/lab]" not in question.context and "[P/basic]" in question.context


def test_causal_follows_the_order_in_which_sections_are_shown(registry):
    """The hospital's factors come last in the registry and first in a record: they must not show what comes after them."""
    made = questions(registry, "train", 300, seed=4, causal=True)
    assert list(dict.fromkeys(feature.section for feature in registry.features))[-1] == HOSPITAL
    asked = [question for question in made if question.feature == "beds"]
    assert asked and all(question.context.split("\n")[1:] == ["Beds: [MASK]"] for question in asked)
    later = [question for question in made if question.feature == "died"]
    assert later and any(
        "Beds: " in question.context for question in later
    )  # and what comes first is shown to the others
    for question in made:
        shown = [line for line in question.context.split("\n") if line.startswith("[")]
        assert shown[-1] == question.section or (question.section == "[V/lab]" and "[V/lab]" in shown)
    dropped = later_features(registry.features)
    assert dropped["beds"] == {f.name for f in registry.features if f.name != "beds"} and not dropped["died"]
    plain = [dataclasses.replace(feature, section="[V/lab]") for feature in registry.features]
    with pytest.raises(InputError, match="stand in one section, so nothing comes later"):
        questions(dataclasses.replace(registry, features=plain), "train", 5, seed=4, causal=True)


def test_a_registry_without_sections_reads_without_headers(registry):
    plain = [dataclasses.replace(feature, section="") for feature in registry.features]
    made = questions(dataclasses.replace(registry, features=plain), "train", 50, seed=4)
    for question in made:
        assert not any(line.startswith("[") for line in question.context.split("\n"))
        assert (
            question.question.startswith("Q1. What would be the masked value of '")
            and "section" not in question.question
        )
