"""What the names and values of a column suggest: who a patient is, what comes after, which role a column has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SECTION_COLUMNS = 3  # so many columns with one prefix make a section
FEW_INITIALS = 10  # more different texts of two or three capital letters look like initials
SHARE = 0.5  # of a column's texts that look like an address or a number of a person

# Columns with one of these words in their names are never shown by a draft, whatever they hold.
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

# What happens to a patient, or is known only later.
LATER = frozenset(
    "death dead died deceased dth dod dodt mortality expire expired alive survival survive survived surv outcome outcomes event "
    "readmission readmitted relapse recurrence censor censored censoring los discharge discharged disch lenfol fstat fu followup "
    "os pfs dfs efs tte endpoint cod autopsy charge charges cost costs".split()
)
LATER_NAMES = frozenset(
    "status time years days months futime".split()
)  # of numbers and codes, where nothing else is in the name
LATER_PARTS = (
    "death", "dead", "mortal", "surviv", "discharg", "follow_up", "follow.up", "followup", "follow up", "follow-up", "readmi",
    "relaps", "recurr", "censor", "deceas", "outcome", "lenfol", "vital_status", "time_to", "timeto", "days_to", "fstat",
    "length of stay", "사망", "퇴원", "예후",
)  # fmt: skip
_LATER = re.compile(
    r"tot\w*(cst|chg|chrg)s?|\w*(cost|charge|expenditure)s?|\w*[a-z_]\d+(m|mo|mos|months?|y|yr|yrs|years?)|\w+[a-z_](m|mo|y|yr)\d+|"
    r"(hosp|icu|s|h|total)?los|time(dth|to|ap|mi|chd|strk|cvd|hyp)\w*|d[._]?time|surv\d+[dmy]?|\w+_(fu|los)"
)

# What the texts of a column say where it is known only later.
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
    """The words of a name, in lower case: `patientName` has two, and so has `patient_name`."""
    return [word for word in re.split(r"[\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()) if word]


def identifies(name: str, label: str, present: Sequence[Any]) -> str:
    """Why a column may name a patient, "" where nothing looks like it; `label` is what the file says of the column."""
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
    """Whether a column is called like an outcome, or like what comes after it."""
    if kind in ("number", "category") and "".join(words(name)) in LATER_NAMES:
        return True
    return any(
        not LATER.isdisjoint(words(text))
        or any(part in text.lower() for part in LATER_PARTS)
        or _LATER.fullmatch(text.lower()) is not None
        for text in (name, label)
    )


def says_later(texts: Iterable[str]) -> bool:
    """Whether one of the few texts of a column speaks of what comes after: `<2 mo. follow-up`, `died in hospital`."""
    return any(_LATER_TEXT.search(text) for text in texts)


def roles(kinds: Mapping[str, str], values: Mapping[str, Sequence[Any]], fewest_sites: int = 2) -> dict[str, str]:
    """The column of each role that exactly one column, or one called exactly so, looks like. `kinds` are those of the columns."""
    fits = {
        "age": lambda name: kinds[name] == "number",
        "sex": lambda name: kinds[name] == "category" and len(set(map(str, values[name]))) <= 4,
        "site": lambda name: kinds[name] == "category" and len(set(map(str, values[name]))) >= fewest_sites,
        "time": lambda name: kinds[name] == "datetime",
    }
    found = {}
    for role, wanted in ROLE_WORDS.items():
        called = [name for name in kinds if not wanted.isdisjoint((*words(name), name.lower())) and fits[role](name)]
        exact = [name for name in called if name.lower() in wanted]
        chosen = exact or called
        if len(chosen) == 1:
            found[role] = chosen[0]
    dates = [name for name, kind in kinds.items() if kind == "datetime"]
    if "time" not in found and len(dates) == 1:
        found["time"] = dates[0]
    return found


def prefixes(names: Iterable[str]) -> dict[str, str]:
    """The prefix of each name that shares it with two others at least, such as `lab` for `lab_sodium`."""
    cut = {name: match[1] for name in names if (match := re.match(r"([^\W\d_]{2,})[_.]\w", name))}
    count = Counter(prefix.lower() for prefix in cut.values())
    return {name: prefix for name, prefix in cut.items() if count[prefix.lower()] >= SECTION_COLUMNS}


def missing_number(numbers: Sequence[float]) -> str:
    """A number such as 999 that stands apart from all others and so may mean missing; "" where there is none."""
    different = sorted(set(numbers))
    for code in MISSING_NUMBERS:
        others = [number for number in different if number != code]
        if code in different and len(others) > 1 and numbers.count(code) > 1:
            spread = max(others) - min(others)
            if (code < 0 <= min(others)) or code > max(others) + 2 * spread:
                return str(code)
    return ""
