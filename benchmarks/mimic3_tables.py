"""Random tables with the columns of MIMIC-III, without any real patient, for any number of stays; written as CSV.gz files.

They are plausible enough that every stage has work: most stays have a suspected infection, values are missing, out of bounds or
doubled, and drugs go beyond the bounds of windows. Nothing clinical may be concluded from them. Half of the rows of CHARTEVENTS
have items that no stage reads, as in the real table.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from shared.randomness import generator

STAYS = 120  # at multiple 1
DAY, HOUR = 86_400, 3_600
ORIGIN = 4_102_444_800  # 2100-01-01
# Item, mean, standard deviation, hours between measurements.
BEDSIDE = (
    (220045, 90, 15, 1), (220179, 115, 18, 1), (220052, 78, 12, 1), (220180, 60, 10, 1), (220210, 20, 4, 1),
    (220277, 96, 2, 1), (223761, 98.6, 1.2, 4), (198, 12, 3, 4), (223835, 45, 12, 6), (224639, 82, 15, 24),
    (220074, 10, 3, 4), (220339, 6, 2, 6), (224687, 8, 2, 6),
)  # fmt: skip
LABORATORY = (
    (50971, 4.1, 0.5, 8), (50983, 139, 4, 8), (50902, 104, 5, 8), (50931, 130, 30, 8), (51006, 25, 10, 12),
    (50912, 1.3, 0.6, 12), (50960, 2, 0.3, 12), (50893, 8.4, 0.5, 12), (50882, 24, 3, 12), (50878, 60, 30, 24),
    (50861, 55, 30, 24), (50885, 1.5, 1, 24), (51222, 10.5, 1.2, 12), (51301, 12, 4, 12), (51265, 190, 60, 12),
    (51275, 34, 6, 24), (51274, 15, 2, 24), (51237, 1.4, 0.3, 24), (50820, 7.37, 0.05, 8), (50821, 110, 30, 8),
    (50818, 40, 6, 8), (50802, 0, 3, 8), (50813, 2, 1, 8),
)  # fmt: skip
BASE_EXCESS = 50802  # the only item that may be negative
WILD = {220045, 220179, 50885}  # items with a few absurd values
UNREAD = tuple((1_000_000 + i, 10, 3, 1) for i in range(7))


def write(folder: Path, stays: int, *, seed: int = 0) -> dict[str, int]:
    """Write the twelve tables into `folder`; returns table -> number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    random = generator(seed, "mimic3 tables", stays)
    patients = _patients(random, stays)
    tables = _small(patients) | _events(random, patients)
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register("rows", table)
            path = str(folder / f"{name.upper()}.csv.gz").replace("'", "''")
            columns = ", ".join(_as_written(column) for column in table.columns)
            connection.execute(f"COPY (SELECT {columns} FROM rows) TO '{path}' (HEADER, COMPRESSION gzip)")
            connection.unregister("rows")
    return {name: len(table) for name, table in tables.items()}


def _patients(random: np.random.Generator, stays: int) -> pd.DataFrame:
    number = np.arange(stays)
    intime = ORIGIN + random.integers(0, 90 * 365, stays) * DAY + random.integers(0, DAY, stays)
    outtime = intime + random.integers(2 * DAY, 6 * DAY, stays)
    died = random.random(stays) < 0.2
    return pd.DataFrame(
        {
            "subject_id": number + 1,
            "hadm_id": number + 100_000,
            "icustay_id": number + 200_000,
            "intime": intime,
            "outtime": outtime,
            "admittime": intime - random.integers(HOUR, 2 * DAY, stays),
            "dischtime": outtime + random.integers(HOUR, 5 * DAY, stays),
            "dob": intime - random.integers(20 * 365, 85 * 365, stays) * DAY,
            "dod": np.where(died, outtime + random.integers(0, 60 * DAY, stays), np.nan),
            "gender": np.where(random.random(stays) < 0.5, "F", "M"),
            "ill": random.random(stays),
        }
    )


def _small(patients: pd.DataFrame) -> dict[str, pd.DataFrame]:
    stays = patients.assign(
        first_careunit="MICU",
        los=(patients["outtime"] - patients["intime"]) / DAY,
        expire_flag=patients["dod"].notna().astype(int),
    )
    items = [item for item, *_ in (*BEDSIDE, *LABORATORY, *UNREAD)] + [30018, 225158, 30055]
    return {
        "patients": stays[["subject_id", "gender", "dob", "dod", "expire_flag"]],
        "admissions": stays[["subject_id", "hadm_id", "admittime", "dischtime"]],
        "icustays": stays[["subject_id", "hadm_id", "icustay_id", "first_careunit", "intime", "outtime", "los"]],
        "diagnoses_icd": pd.DataFrame({"hadm_id": stays["hadm_id"], "seq_num": 2, "icd9_code": "4280"}),
        "d_items": pd.DataFrame({"itemid": items}),
    }


def _events(random: np.random.Generator, patients: pd.DataFrame) -> dict[str, pd.DataFrame]:
    charted = _measured(random, patients, (*BEDSIDE, *UNREAD))
    charted["value"] = charted["valuenum"]
    infected = random.random(len(patients)) < 0.9
    begun = patients[infected]
    first = begun["intime"].to_numpy() + random.integers(-12 * HOUR, 24 * HOUR, len(begun))
    samples = begun[["subject_id", "hadm_id"]].assign(
        row_id=np.arange(len(begun)), chartdate=first // DAY * DAY, charttime=first
    )
    drugs = begun[["hadm_id", "icustay_id"]].assign(
        startdate=(first + 6 * HOUR) // HOUR * HOUR, enddate=first + 5 * DAY, gsn="009346"
    )
    fluids = _every(random, patients, 2).assign(itemid=225158, rateuom="mL/hour", statusdescription="FinishedRunning")
    fluids["amount"] = random.gamma(2, 60, len(fluids)).round(1)
    fluids["rate"] = np.where(random.random(len(fluids)) < 0.7, fluids["amount"] / 2, np.nan)
    sick = patients[patients["ill"] < 0.4]
    pressors = _every(random, sick, 6).assign(
        itemid=221906, rateuom="mcg/kg/min", statusdescription="Stopped", amount=1.0
    )
    pressors["rate"] = random.gamma(1.5, 0.1, len(pressors)).round(3)
    mv = pd.concat([fluids, pressors], ignore_index=True)
    mv = mv.rename(columns={"charttime": "starttime"}).assign(endtime=lambda table: table["starttime"] + 2 * HOUR)
    cv = _every(random, patients, 6).assign(itemid=30018, rate=np.nan, rateuom="", amount=100.0)
    urine = _every(random, patients, 1).assign(itemid=226559)
    urine["value"] = random.gamma(2, 40, len(urine)).round()
    laboratory = _measured(random, patients, LABORATORY)
    return {
        "chartevents": charted[["subject_id", "hadm_id", "icustay_id", "itemid", "charttime", "value", "valuenum"]],
        "labevents": laboratory[["hadm_id", "itemid", "charttime", "valuenum"]],
        "microbiologyevents": samples,
        "prescriptions": drugs,
        "inputevents_mv": mv[["icustay_id", "starttime", "endtime", "itemid", "amount", "rate", "rateuom",
                              "statusdescription"]],
        "inputevents_cv": cv[["icustay_id", "charttime", "itemid", "amount", "rate", "rateuom"]],
        "outputevents": urine[["icustay_id", "charttime", "itemid", "value"]],
    }  # fmt: skip


def _measured(random: np.random.Generator, patients: pd.DataFrame, items: tuple) -> pd.DataFrame:
    parts = []
    for item, mean, spread, hours in items:
        part = _every(random, patients, hours)
        level = mean + spread * random.standard_normal(len(patients))
        value = level[part["patient"]] + 0.3 * spread * random.standard_normal(len(part))
        value = np.where(item == BASE_EXCESS, value, np.abs(value))
        value[random.random(len(part)) < 0.002] = 999_999 if item in WILD else np.nan
        parts.append(part.assign(itemid=item, valuenum=value.round(2)))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=random, ignore_index=True)


def _every(random: np.random.Generator, patients: pd.DataFrame, hours: int) -> pd.DataFrame:
    """Rows with times of each patient about every `hours` hours of the stay; a tenth of them is missing."""
    count = ((patients["outtime"] - patients["intime"]) // (hours * HOUR) + 1).to_numpy()
    patient = np.repeat(np.arange(len(patients)), count)
    step = np.arange(len(patient)) - np.repeat(np.cumsum(count) - count, count)
    present = random.random(len(patient)) < 0.9
    patient, step = patient[present], step[present]
    rows = patients[["subject_id", "hadm_id", "icustay_id"]].iloc[patient].reset_index(drop=True)
    begin = patients["intime"].to_numpy()[patient]
    minutes = random.integers(0, 60, len(patient)) * (hours > 1)
    return rows.assign(patient=patient, charttime=begin + (step * hours * 60 + minutes) * 60)


def _as_written(column: str) -> str:
    if column in ("dob", "dod") or column.endswith(("time", "date")):
        return f"make_timestamp(CAST({column} AS BIGINT) * 1000000) AS {column.upper()}"
    return f"{column} AS {column.upper()}"
