"""What a new tokenizer may learn: no word that one patient alone could have said, and all that the codebook spells."""

from __future__ import annotations

import dataclasses
import random
import stat

import numpy as np
import pytest

from shared.config import DataConfig, validate
from shared.policy.tokenizer import load_tokenizer, train_tokenizer
from shared.preparation import prepare
from shared.preparation.vocabulary import MIN_PATIENTS, question_words, spelled, training_texts
from shared.questions.record import read_questions, read_words, write_questions
from shared.runs.policy import make_initial

SHARED = "pt transferred from ED"  # said of 40 of 120 patients, and yet free text
RARE = "xylophonist"  # a category of a few patients
WORDS = ("transferred", "wheelchair", "Quentin", "mornings", RARE, "HJQ", "Zebra")


def data(folder):
    """A registry of 120 patients with remarks, initials as a category without codes, and lines within a remark."""
    draw = random.Random(3)
    rows = ["id,sex,ward,job,initials,age,lactate,remark"]
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    for number in range(120):
        remark = SHARED if number % 3 == 0 else f"seen by Quentin in mornings {number} wheelchair"
        if number % 7 == 0:
            remark = '"first line\nZebra: HJQ says so"'
        initials = "HJQ" if number < 15 else "".join(draw.choices(letters, k=3))
        job = RARE if number < 4 else draw.choice(["farmer", "teacher"])
        rows.append(f"P{number},{draw.choice('12')},{draw.choice(['North wing', 'South wing'])},{job},{initials},"
                    f"{draw.randint(20, 90)},{draw.randint(5, 90) / 10},{remark}")  # fmt: skip
    (folder / "data.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = ["column,display_name,section,kind,unit,coding", "id,,,id,,", "sex,Sex,Basic,category,,1=Male; 2=Female",
             "ward,Ward,Basic,category,,", "job,Occupation,Basic,category,,", "initials,Initials,Basic,category,,",
             "age,Age,Basic,number,years,", "lactate,Lactate,Lab,number,mmol/L,", "remark,Remark,Notes,text,,"]  # fmt: skip
    (folder / "codebook.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom")
    data(folder)
    options = DataConfig(
        cohort="custom", source=str(folder), valid_patients=20, train_questions=600, valid_questions=20
    )
    prepare.prepare(options, folder / "out", seed=1, progress=False)
    return folder / "out" / "questions" / "train.parquet"


def learned(path, folder, words):
    """The tokens, as texts, of the tokenizer that a run makes for these questions."""
    config = validate({"name": "run", "model": {"vocab_size": 1024}})
    make_initial(config, read_questions(path), folder / "tokenizer", folder / "initial", words=words)
    tokenizer = load_tokenizer(folder / "tokenizer")
    assert (folder / "initial" / "tokenizer.json").is_file()
    return {tokenizer.decode([place]) for place in range(len(tokenizer))}


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False])
def test_no_token_holds_what_a_patient_said(questions, tmp_path, listed):
    asked = read_questions(questions)
    assert any(SHARED in question.context for question in asked) and any("Zebra: HJQ" in q.context for q in asked)
    tokens = learned(questions, tmp_path, read_words(questions) if listed else None)
    longer = [token for token in tokens if len(token) > 2]
    for word in WORDS:
        for size in range(3, len(word) + 1):
            parts = {word[start : start + size] for start in range(len(word) - size + 1)}
            known = {token for token in longer if token.strip() in parts}
            assert not known - {"ing", "in ", " in"}, (word, known)
    assert {"Occupation", "Lactate (mmol/L)", "[Basic]", "North wing", "farmer", "Male"} <= tokens
    assert ("Remark" in tokens) == listed and not any("ED" in token for token in longer)


def test_the_list_says_what_is_no_patients_own(questions):
    words = read_words(questions)
    assert {"Sex", "Remark", "[Notes]", "Male", "Female", "North wing", "teacher", "Age (years)"} <= set(words)
    assert not {SHARED, RARE, "HJQ", "Zebra", "first line"} & set(words)  # HJQ: 15 patients, but of too many values


def test_a_label_of_the_codebook_needs_no_patients(questions, tmp_path):
    few = read_questions(questions)[:5]
    write_questions(tmp_path / "few.parquet", few, words=read_words(questions))
    assert "Female" in read_words(tmp_path / "few.parquet") and "Female" not in question_words(few)
    assert read_questions(tmp_path / "few.parquet") == few
    write_questions(tmp_path / "none.parquet", few)
    assert read_words(tmp_path / "none.parquet") is None


def test_a_value_counts_from_ten_patients_on(questions):
    base = read_questions(questions)[0]

    def sure(count):
        return [
            dataclasses.replace(base, patient=f"p{i}", context=f"[Basic]\nWard: East\n{i}: x\nSex: [MASK]",
                                question="Q1. What would be the masked value of 'Ward' in section [Basic]?",
                                choices=("East", "West"), answer="A", majority="A")
            for i in range(count)
        ]  # fmt: skip

    assert MIN_PATIENTS == 10
    assert "East" not in question_words(sure(9)) and "East" in question_words(sure(10))
    assert "West" not in question_words(sure(10))  # a distractor is nobody's value
    [text] = {spelled(question, {"[Basic]", "Ward", "East"}).context for question in sure(1)}
    assert text == "[Basic]\nWard: East"


@pytest.mark.slow
def test_where_nothing_is_free_text_nothing_is_lost(tmp_path):
    """The synthetic registry's tokenizer is what it is without any rule."""
    small = DataConfig(patients=160, valid_patients=40, train_questions=150, valid_questions=10, context_features=8)
    prepare.prepare(small, tmp_path, seed=42, progress=False)
    path = tmp_path / "questions" / "train.parquet"
    asked = read_questions(path)
    assert list(training_texts(asked, read_words(path))) == asked


def test_a_tokenizers_files_are_their_owners_alone(tmp_path):
    train_tokenizer(["[A]\nAge: 3"], 300, tmp_path / "tokenizer")
    found = [tmp_path / "tokenizer", *(tmp_path / "tokenizer").iterdir()]
    assert len(found) >= 3
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in found), np.array(found)
