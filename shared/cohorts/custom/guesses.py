"""Guesses from the name and the values of a column: does it identify a patient, is it known only later, what is its role."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SECTION_COLUMNS = 3  # at least so many columns with the same prefix make a section
FEW_INITIALS = 10  # more distinct texts than this, all of two or three capital letters, look like initials
SHARE = 0.5  # a column identifies patients if more than this share of its texts look like addresses or personal numbers

# A draft never shows a column with one of these words in its name, whatever its values are.
IDENTIFYING = frozenset(
    "name names surname firstname lastname forename givenname familyname initial initials phone telephone mobile fax email "
    "mail address street zip zipcode postcode postal ssn mrn passport insurance nric aadhaar nhs nino cpf cnp rrn licence "
    "license account contact spouse guardian kin physician doctor surgeon nurse provider username login url dob birthdate "
    "birthday vorname nachname telefon adresse strasse plz geburtsdatum".split()
)
IDENTIFYING_PARTS = ("환자명", "이름", "성명", "주민", "전화", "연락처", "주소", "생년월일", "date_of_birth", "birth_date",
                     "hospital_no", "national_id", "patient_name")  # fmt: skip
PATTERNS = {
    "e-mail addresses": re.compile(r"[^@\s]+@[^@\s]+\.\w+"),
    "national ids": re.compile(r"\d{6}-\d{7}|\d{3}-\d{2}-\d{4}"),
    "phone numbers": re.compile(r"\+\d[\d ()-]{7,}|0\d{1,3}[- ]\d{3,4}[- ]\d{3,4}"),
}
_INITIALS = re.compile(r"[A-Z]{2,3}|([A-Z]\.){2,3}")

# Words in the names of columns that are outcomes, or are known only later.
LATER = frozenset(
    "death dead died deceased dth dod dodt mortality expire expired alive survival survive survived surv outcome outcomes event "
    "readmission readmitted relapse recurrence censor censored censoring los discharge discharged disch lenfol fstat fu followup "
    "os pfs dfs efs tte endpoint cod autopsy charge charges cost costs".split()
)
# Names of columns of numbers or codes that are known only later, if the name has no other word.
LATER_NAMES = frozenset("status time years days months futime".split())
LATER_PARTS = (
    "death", "dead", "mortal", "surviv", "discharg", "follow_up", "follow.up", "followup", "follow up", "follow-up", "readmi",
    "relaps", "recurr", "censor", "deceas", "outcome", "lenfol", "vital_status", "time_to", "timeto", "days_to", "fstat",
    "length of stay", "사망", "퇴원", "예후",
)  # fmt: skip
_LATER = re.compile(
    r"tot\w*(cst|chg|chrg)s?|\w*(cost|charge|expenditure)s?|\w*[a-z_]\d+(m|mo|mos|months?|y|yr|yrs|years?)|\w+[a-z_](m|mo|y|yr)\d+|"
    r"(hosp|icu|s|h|total)?los|time(dth|to|ap|mi|chd|strk|cvd|hyp)\w*|d[._]?time|surv\d+[dmy]?|\w+_(fu|los)"
)

# Words in the values of a column that is known only later.
_LATER_TEXT = re.compile(
    r"\b(follow[- ]?up|f/u|died|dead|death|deceased|alive|expired|survived|survivor|discharged|readmitted|relapsed?|censored)\b",
    re.IGNORECASE,
)

ROLE_WORDS = {
    "age": frozenset("age agey 나이 연령 alter".split()),
    "sex": frozenset("sex gender 성별 geschlecht".split()),
    "site": frozenset("site center centre hospital hosp institution facility clinic 기관 병원 redcap_data_access_group".split()),
    "time": frozenset("admission admit admitted admdate enrolment enrollment enrolled enrol baseline inclusion arrival "
                      "presentation index 입원일".split()),
}  # fmt: skip
UNSURE_LABELS = frozenset(
    (
        "unknown",
        "missing",
        "not known",
        "n/a",
        "na",
        "refused",
        "not done",
        "not available",
        "not applicable",
        "no answer",
        "모름",
        "미상",
    )
)
MISSING_NUMBERS = (-1, -9, -99, -999, 99, 999, 9999, 99999)


def words(name: str) -> list[str]:
    """The words of a column name in lower case: `patientName` and `patient_name` both give patient, name."""
    return [word for word in re.split(r"[\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()) if word]


def identifies(name: str, label: str, present: Sequence[Any]) -> str:
    """Why a column may identify patients; "" if nothing suggests it. `label` is the file's description of the column."""
    for text in (name, label):
        if not IDENTIFYING.isdisjoint(words(text)) or any(part in text.lower() for part in IDENTIFYING_PARTS):
            return "may name a patient"
    texts = [cell.strip() for cell in present if isinstance(cell, str)]
    for what, pattern in PATTERNS.items():
        if texts and sum(map(bool, map(pattern.fullmatch, texts))) > SHARE * len(texts):
            return f"looks like {what}"
    if len(set(texts)) > FEW_INITIALS and all(map(_INITIALS.fullmatch, texts)):
        return "looks like initials"
    return ""


def is_later(name: str, label: str, kind: str) -> bool:
    """Whether the name or the label of a column suggests an outcome, or something known only after it."""
    if kind in ("number", "category") and "".join(words(name)) in LATER_NAMES:
        return True
    return any(
        not LATER.isdisjoint(words(text))
        or any(part in text.lower() for part in LATER_PARTS)
        or _LATER.fullmatch(text.lower()) is not None
        for text in (name, label)
    )


def says_later(texts: Iterable[str]) -> bool:
    """Whether one of the values suggests that the column is known only later: `<2 mo. follow-up`, `died in hospital`."""
    return any(_LATER_TEXT.search(text) for text in texts)


def roles(kinds: Mapping[str, str], values: Mapping[str, Sequence[Any]], fewest_sites: int = 2) -> dict[str, str]:
    """The column of each role, for roles with exactly one candidate. `kinds` gives the kind of each column.

    A candidate has a word of the role in its name, and suitable values. If exactly one candidate has the word as its whole
    name, it is taken.
    """
    is_suitable = {
        "age": lambda name: kinds[name] == "number",
        "sex": lambda name: kinds[name] == "category" and len(set(map(str, values[name]))) <= 4,
        "site": lambda name: kinds[name] == "category" and len(set(map(str, values[name]))) >= fewest_sites,
        "time": lambda name: kinds[name] == "datetime",
    }
    column_of_role = {}
    for role, role_words in ROLE_WORDS.items():
        candidates = [
            name
            for name in kinds
            if not role_words.isdisjoint((*words(name), name.lower())) and is_suitable[role](name)
        ]
        exact = [name for name in candidates if name.lower() in role_words]
        best = exact or candidates
        if len(best) == 1:
            column_of_role[role] = best[0]
    dates = [name for name, kind in kinds.items() if kind == "datetime"]
    if "time" not in column_of_role and len(dates) == 1:
        column_of_role["time"] = dates[0]
    return column_of_role


def prefixes(names: Iterable[str]) -> dict[str, str]:
    """The prefix of each name whose prefix occurs at least `SECTION_COLUMNS` times, such as `lab` for `lab_sodium`."""
    prefix_of = {name: match[1] for name in names if (match := re.match(r"([^\W\d_]{2,})[_.]\w", name))}
    count = Counter(prefix.lower() for prefix in prefix_of.values())
    return {name: prefix for name, prefix in prefix_of.items() if count[prefix.lower()] >= SECTION_COLUMNS}


def missing_number(numbers: Sequence[float]) -> str:
    """A number such as 999 that is far from all others and so may mean missing, as a text; "" if there is none."""
    distinct = sorted(set(numbers))
    for code in MISSING_NUMBERS:
        others = [number for number in distinct if number != code]
        if code in distinct and len(others) > 1 and numbers.count(code) > 1:
            spread = max(others) - min(others)
            if (code < 0 <= min(others)) or code > max(others) + 2 * spread:
                return str(code)
    return ""
