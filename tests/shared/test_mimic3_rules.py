"""The rules of the MIMIC-III cohort one by one, on values small enough to be checked by hand."""

import numpy as np
import pandas as pd
import pytest

from shared.cohorts.mimic3 import charting, csv_numbers, exclusions, final, imputation, patients, scores, windows
from shared.cohorts.mimic3.charting import Charted
from shared.cohorts.mimic3.cleaning import clean
from shared.cohorts.mimic3.onset import onsets

HOUR = 3600
NAN = np.nan


def charted(times=(0,), stay=None, **columns):
    """Rows at `times` (hours), with the columns named and everything else missing."""
    values = np.full((len(times), 65), NAN)
    for name, column in columns.items():
        values[:, charting.POSITION[name]] = column
    stays = np.zeros(len(times), np.int64) if stay is None else np.array(stay)
    return Charted(stays, np.array([int(time * HOUR) for time in times]), values)


def cleaned(name, *, second=False, fixes=(), **columns):
    return clean(charted(**columns), second=second, fixes=fixes).column(name)[-1]


def nearly(value):
    return pytest.approx(value, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("given", "name", "first", "second"),
    [
        ({"HR": 250}, "HR", 250, 250),
        ({"HR": 250.1}, "HR", NAN, NAN),
        ({"MeanBP": 201}, "MeanBP", NAN, 201),  # the original's wrong column in the second pass
        ({"MeanBP": -1}, "MeanBP", NAN, NAN),
        ({"SpO2": 151}, "SpO2", NAN, NAN),
        ({"SpO2": 120}, "SpO2", 100, 100),
        ({"SpO2": 49}, "SpO2", 49, NAN),
        ({"Temp_C": 24}, "Temp_C", 24, NAN),
        ({"FiO2_100": 0.5}, "FiO2_100", 50, 50),
        ({"FiO2_100": 1}, "FiO2_100", NAN, NAN),
        ({"FiO2_100": 19}, "FiO2_100", NAN, NAN),
        ({"Potassium": 15}, "Potassium", 15, 15),
        ({"Sodium": 94}, "Sodium", NAN, NAN),
        ({"GCS": NAN, "RASS": -4}, "GCS", 6, 6),
        ({"GCS": 9, "RASS": 0}, "GCS", 9, 9),
        ({"RASS": 2}, "GCS", 15, 15),
        ({"RASS": -1.5}, "GCS", NAN, NAN),
        ({"FiO2_100": 40}, "FiO2_1", 0.4, 0.4),
        ({"SysBP": 120, "MeanBP": 90}, "DiaBP", 75, 75),
        ({"SysBP": 120, "DiaBP": 60}, "MeanBP", 80, 80),
        ({"MeanBP": 80, "DiaBP": 60}, "SysBP", 120, 120),
        ({"Hb": 10}, "Ht", 29.836, 29.836),
        ({"Ht": 29.836}, "Hb", 10, 10),
        ({"Direct_bili": 1}, "Total_bili", (1 + 0.1752) / 0.6934, (1 + 0.1752) / 0.6934),
        ({"Total_bili": 2}, "Direct_bili", 2 * 0.6934 - 0.1752, 2 * 0.6934 - 0.1752),
        ({"Temp_F": 98.6}, "Temp_C", 37, NAN),  # Fahrenheit alone never reaches the second pass
        ({"Temp_F": 37}, "Temp_C", 37, (37 * 1.8 + 32 - 32) / 1.8),
        ({"Temp_C": 98.6}, "Temp_F", 98.6, 98.6),
    ],
)
def test_cleaning(given, name, first, second):
    assert cleaned(name, **given) == nearly(first)
    assert cleaned(name, second=True, **given) == nearly(second)


@pytest.mark.parametrize(
    ("device", "flow", "expected"),
    [
        (0, 1, 24), (2, 1.5, 28), (0, 15, 70), (0, 16, NAN), (0, NAN, 21), (1, 4, 36), (10, 7, 58), (3, NAN, NAN),
        (7, 6, 60), (7, 9.9, 80), (7, 10, 90), (7, 14.9, 90), (7, 15, 100), (7, 60, 100), (7, NAN, NAN), (8, 5, NAN),
        (NAN, 5, NAN), (NAN, NAN, NAN),
    ],
)  # fmt: skip
def test_oxygen_is_estimated_by_device_and_flow(device, flow, expected):
    given = {"Interface": device, "O2flow": flow}
    assert cleaned("FiO2_100", **given) == nearly(expected)
    assert cleaned("FiO2_1", **given) == nearly(expected / 100)
    assert cleaned("FiO2_1", **given, FiO2_1=0.33) == nearly(0.33)


def test_corrections_of_cleaning():
    assert cleaned("MeanBP", second=True, fixes={"mean_pressure"}, MeanBP=201) == nearly(NAN)
    assert cleaned("FiO2_1", fixes={"full_oxygen"}, FiO2_100=1) == nearly(1.0)
    assert cleaned("FiO2_1", fixes={"no_device"}, O2flow=NAN) == nearly(0.21)
    assert cleaned("Temp_C", second=True, fixes={"temperature"}, Temp_F=98.6) == nearly(37)
    late = {"times": (0, 20), "Potassium": [4, NAN]}
    assert cleaned("Potassium", **late) == 4
    assert cleaned("Potassium", fixes={"potassium_hold"}, **late) == nearly(NAN)


def test_a_value_is_held_for_its_hours_within_its_stay_only():
    given = charted(
        (0, 2, 2.1, 3, 0), stay=[0, 0, 0, 0, 1], HR=[80, NAN, NAN, NAN, NAN], Weight_kg=[70, NAN, 71, NAN, NAN]
    )
    held = Charted(given.stay, given.time, charting.hold(given))
    np.testing.assert_array_equal(held.column("HR"), [80, 80, NAN, NAN, NAN])
    np.testing.assert_array_equal(held.column("Weight_kg"), [70, 70, 71, 71, NAN])


def test_of_several_values_for_a_cell_the_last_stands():
    rows = {
        "stay": [0, 0, 0, 0],
        "time": [0, 0, 0, 60],
        "itemid": [211, 220045, 220045, 999],
        "valuenum": [80.0, 90, NAN, 5],
    }
    labs = {"stay": [0, 0], "time": [0, 0], "itemid": [807, 50931], "valuenum": [100.0, 110.0]}
    flags = {"stay": [0], "time": [120], "mechvent": [1], "extubated": [0]}
    found = charting.chart(pd.DataFrame(rows), pd.DataFrame(labs), pd.DataFrame(flags))
    np.testing.assert_array_equal(found.time, [0, 60, 120])  # an item of no column makes a time too
    np.testing.assert_array_equal(found.column("HR"), [NAN, NAN, NAN])
    np.testing.assert_array_equal(found.column("Glucose"), [110, NAN, NAN])
    np.testing.assert_array_equal(found.column("mechvent"), [NAN, NAN, 1])


def test_windows_share_their_bounds_and_leave_gaps_out():
    table = windows.aggregate(charted((0, 1, 4, 13, 80, 81), HR=[60, 80, 100, 50, 7, 8]), 1)
    assert table["bloc"].tolist() == [1, 2, 4, 20]
    assert table["HR"].tolist() == [80, 100, 50, 7]  # the row at 4 h counts twice; 81 h lies beyond the last window
    assert table["charttime"].tolist() == [0, 4 * HOUR, 12 * HOUR, 76 * HOUR]


def windows_at(*blocs):
    return pd.DataFrame({"stay": 0, "bloc": blocs, "charttime": [HOUR * (10 + 4 * (bloc - 1)) for bloc in blocs]})


def infusion(start, end, rate=60.0):
    """From `start` to `end` (hours), `rate` in mL/h; no rate: a bolus of 100 mL."""
    return {"stay": 0, "starttime": start * HOUR, "endtime": end * HOUR, "norm_rate": rate, "rate": rate, "tev": 100.0}


NO_BOLUS = pd.DataFrame({"stay": np.array([], np.int64), "charttime": np.array([], np.int64), "tev": np.array([])})


@pytest.mark.parametrize(
    ("event", "steps", "total"),
    [
        (infusion(11, 13), [120, 0], 120),
        (infusion(8, 12), [120, 0], 240),  # two hours before the first window
        (infusion(12, 16), [120, 120], 240),
        (infusion(8, 30), [240, 240], 600),
        (infusion(10, 14), [960, 0], 960),  # both bounds met: all four cases hold
        (infusion(11, 12, NAN), [100, 0], 100),
        (infusion(14, 15, NAN), [100, 100], 200),  # a bolus on the bound is in both windows
        (infusion(3, 4, NAN), [0, 0], 100),
    ],
)
def test_fluids(event, steps, total):
    found = windows.fluids(windows_at(1, 2), pd.DataFrame([event]), NO_BOLUS, pd.Series([7.0]))
    assert found["input_4hourly"].tolist() == pytest.approx(steps)
    assert found["input_total"].iloc[-1] == pytest.approx(7 + total)


@pytest.mark.parametrize("seed", range(8))
def test_sums_are_added_in_the_originals_order(seed):
    """Where a sum lies at a tie, its last digit decides what is printed: `7428.014` or `7428.015`."""
    rng = np.random.default_rng(seed)
    amounts = rng.uniform(0.001, 900, 21).round(3)
    mv = pd.DataFrame([infusion(10.5 + place / 10, 13, float(rate)) for place, rate in enumerate(amounts)])
    mv["tev"] = amounts[::-1]
    mv.loc[5, ["rate", "norm_rate"]] = NAN  # a bolus
    mv.loc[9, ["starttime", "endtime"]] = [
        2 * HOUR,
        3 * HOUR,
    ]  # before the first window, where it counts as 0 among the rest
    cv = pd.DataFrame({"stay": 0, "charttime": np.full(21, 11 * HOUR), "tev": amounts * 1.7})
    found = windows.fluids(windows_at(1, 2), mv, cv, pd.Series([0.1]))
    # The original, in NumPy: infusions, boluses and notes each by one nansum over the stay's rows.
    given = (mv["norm_rate"] * (mv["endtime"] - mv["starttime"]) / HOUR).to_numpy()
    infused = np.nansum(np.where(np.arange(21) == 9, 0, given))
    boluses = np.nansum(mv["tev"].to_numpy()[5:6]) + np.nansum(cv["tev"].to_numpy())
    assert found["input_4hourly"].tolist() == [infused + boluses, 0]
    assert found["input_total"].tolist() == [np.nansum([np.nansum([0.1, given[9]]), infused, boluses])] * 2
    passed = pd.DataFrame({"stay": 0, "charttime": np.full(21, 11 * HOUR), "value": amounts})
    found = windows.urine(windows_at(1), passed, pd.Series([0.0]))
    assert found["output_total"].tolist() == [np.nansum(amounts)]


def test_what_falls_into_a_skipped_window_is_in_no_total():
    passed = pd.DataFrame(
        {"stay": 0, "charttime": [5 * HOUR, 11 * HOUR, 15 * HOUR, 19 * HOUR], "value": [1.0, 2, 4, 8]}
    )
    found = windows.urine(windows_at(1, 3), passed, pd.Series([16.0]))
    assert found["output_4hourly"].tolist() == [2, 8] and found["output_total"].tolist() == [19, 27]


def test_vasopressors_are_those_that_run_or_are_noted_in_the_window():
    mv = pd.DataFrame(
        {"stay": 0, "starttime": [0, 13, 15, 1], "endtime": [30, 14, 40, 10], "rate_std": [0.1, 0.5, 0.3, 0.9]}
    )
    mv[["starttime", "endtime"]] *= HOUR
    cv = pd.DataFrame({"stay": [0, 0], "charttime": [11 * HOUR, 11 * HOUR], "rate_std": [0.2, NAN]})
    found = windows.vasopressors(windows_at(1, 2, 8), mv, cv)
    # 0.9 ends exactly where the first window begins; 0.5 ends where the second begins; at bloc 8 only 0.3 runs.
    np.testing.assert_allclose(found["max_dose_vaso"], [0.9, 0.5, 0.3])
    np.testing.assert_allclose(found["median_dose_vaso"], [0.35, 0.3, 0.3])
    nothing = windows.vasopressors(windows_at(12), mv, cv)
    assert nothing.isna().all().all()


def scored(**changes):
    healthy = {"PaO2_FiO2": 450, "Platelets_count": 200, "Total_bili": 0.5, "MeanBP": 80, "max_dose_vaso": 0, "GCS": 15,
               "Creatinine": 0.8, "output_4hourly": 400}  # fmt: skip
    return scores.sofa(pd.DataFrame([healthy | changes]))[0]


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ({}, 0), ({"PaO2_FiO2": 300}, 1), ({"PaO2_FiO2": 99}, 4), ({"Platelets_count": 49}, 3), ({"Total_bili": 12}, 0),
        ({"Total_bili": 12.1}, 4), ({"MeanBP": 69}, 1), ({"MeanBP": 60}, 2), ({"max_dose_vaso": 0.1}, 3),
        ({"max_dose_vaso": 0.11, "MeanBP": 60}, 4), ({"GCS": 14.5}, 0), ({"GCS": 12.5}, 1), ({"GCS": 5}, 4),
        ({"Creatinine": 5}, 0), ({"Creatinine": 5, "output_4hourly": 80}, 3), ({"output_4hourly": 0}, 4),
        ({"GCS": 3, "Creatinine": 6, "Platelets_count": 10}, 12),
    ],
)  # fmt: skip
def test_sofa(changes, points):
    assert scored(**changes) == points


@pytest.mark.parametrize(
    ("values", "points"),
    [
        ((37, 80, 15, 40, 8), 0), ((38, 80, 15, 40, 8), 1), ((36, 91, 20, 40, 8), 3), ((37, 90, 15, 32, 12), 2),
        ((35, 99, 30, 20, 3), 4),
    ],
)  # fmt: skip
def test_sirs(values, points):
    names = ["Temp_C", "HR", "RR", "paCO2", "WBC_count"]
    assert scores.sirs(pd.DataFrame([values], columns=names))[0] == points


def test_shock_index_is_capped_in_the_second_pass_and_never_infinite():
    table = pd.DataFrame({"HR": [80.0] * 1000 + [300, 90], "SysBP": [100.0] * 1000 + [50, 0]})
    plain, capped = (scores._shock_index(table, capped=capped) for capped in (False, True))
    assert plain.iloc[1000] == 6 and np.isfinite(plain).all() and plain.iloc[1001] == pytest.approx(plain[:1001].mean())
    assert capped.max() < 1.0 and capped.iloc[0] == 0.8


def stay(**changes):
    rows = {"icustayid": 1, "bloc": [1, 2, 3], "mortality_90d": 0.0, "SOFA": [4.0, 6, 3], "SIRS": 1.0, "presumed_onset": 9,
            "output_4hourly": 100.0, "Total_bili": 1.0, "input_4hourly": 50.0, "max_dose_vaso": [0.5, 0.5, 0.0],
            "died_within_48h_of_out_time": 0.0, "delay_end_of_record_and_discharge_or_death": 50.0}  # fmt: skip
    return pd.DataFrame(rows | changes)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, None),
        ({"output_4hourly": [0.0, 12_001, 0]}, "urine above 12 L in 4 hours"),
        ({"Total_bili": 10_001.0}, "bilirubin above 10,000"),
        ({"input_4hourly": 10_001.0}, "fluids above 10 L in 4 hours"),
        ({"mortality_90d": 1.0}, "treatment probably withdrawn"),
        ({"mortality_90d": 1.0, "SOFA": [4.0, 6, 2]}, None),
        ({"mortality_90d": 1.0, "bloc": [1, 2, 4]}, None),  # after a gap no row has the number of rows for its bloc
        ({"died_within_48h_of_out_time": 1.0}, None),
        ({"died_within_48h_of_out_time": 1.0, "delay_end_of_record_and_discharge_or_death": 23.0},
         "died at the end of the record"),
        ({"SOFA": 1.0}, "SOFA below 2"),
    ],
)  # fmt: skip
def test_exclusions(changes, rule):
    kept, lost = exclusions.retained(stay(**changes))
    assert {name for name, count in lost.items() if count} == ({rule} if rule else set())
    assert len(kept) == (rule is None)


def test_first_stays_and_readmissions():
    day = 86_400
    demog = pd.DataFrame(
        {
            "subject_id": [1, 1, 1, 2], "icustay_id": [10, 11, 12, 20], "hadm_id": [5, 5, 6, 7],
            "admittime": [0, 0, 35 * day, 0], "dischtime": [5 * day, 5 * day, 40 * day, 5 * day],
            "morta_90": [1, 1, NAN, 0], "morta_hosp": [NAN] * 4, "elixhauser": [NAN] * 4,
        }
    )  # fmt: skip
    reduced = patients.reduce_demog(demog)
    assert reduced["icustay_id"].tolist() == [10, 12]  # the second patient has the first one's times and is lost
    assert reduced["re_admission"].tolist() == [0, 1] and reduced["morta_90"].tolist() == [1, 0]


def test_evidence_is_given_to_the_stay_it_lies_near_or_to_the_only_one():
    demog = pd.DataFrame({"subject_id": [1, 1, 2], "hadm_id": [5, 6, 7], "icustay_id": [10, 11, 20],
                          "intime": [0, 1000 * HOUR, 0], "outtime": [100 * HOUR, 1100 * HOUR, HOUR]})  # fmt: skip
    samples = pd.DataFrame({"subject_id": [1.0, 1, 1, 2, 3, 1], "hadm_id": [NAN, NAN, 6, NAN, NAN, NAN],
                            "icustay_id": [NAN, NAN, NAN, NAN, NAN, 10],
                            "charttime": np.array([140, 960, 500, 9999, 0, 1000]) * HOUR})  # fmt: skip
    found = patients.assign_cultures(samples, demog)["icustay_id"].tolist()
    np.testing.assert_array_equal(found, [10, 11, 11, 20, NAN, 10])
    abx = pd.DataFrame({"hadm_id": [7, 7], "icustay_id": [NAN, 21], "startdate": [NAN, 0.0]})
    np.testing.assert_array_equal(patients.assign_antibiotics(abx, demog)["icustay_id"], [20, 21])


@pytest.mark.parametrize(
    ("drugs", "cultures", "expected"),
    [
        ([10], [34], 10), ([10], [35], None), ([100], [28], 28), ([100], [27], None), ([10], [10], 10),
        ([50], [80, 10], None),  # only the nearest culture is looked at
        ([50, 90], [80, 10], 80), ([NAN, 10], [20], 10), ([10], [NAN], None), ([20], [16, 24], 16), ([20], [24, 16], 20),
    ],
)  # fmt: skip
def test_onset(drugs, cultures, expected):
    abx = pd.DataFrame({"icustay_id": 1.0, "startdate": np.array(drugs) * HOUR})
    samples = pd.DataFrame({"icustay_id": 1.0, "charttime": np.array(cultures) * HOUR})
    found = onsets(abx, samples, pd.Series([1])).tolist()
    assert found == ([] if expected is None else [expected * HOUR])


def test_rare_columns_are_interpolated_or_dropped():
    column = np.array([NAN, *np.arange(1.0, 99), NAN])
    column[50] = NAN
    before = column.copy()
    imputation._interpolate(column)
    assert column[50] == 50 and np.isnan(column[[0, -1]]).all()
    before[40:60] = NAN
    untouched = before.copy()
    imputation._interpolate(untouched)
    np.testing.assert_array_equal(untouched, before)
    table = pd.DataFrame({name: [1.0, 1, 1, 1] for name in imputation.MEASURED}).assign(
        CVP=[1, NAN, NAN, NAN], Albumin=[1, 1, NAN, NAN], paO2=NAN
    )
    kept, rare = imputation.frequent(table)
    assert "CVP" not in kept and "Albumin" in kept and rare == ["paO2"]


def test_actions_and_rewards():
    rows = 8
    table = pd.DataFrame({name: np.zeros(rows) for name in final.FEATURES}).assign(
        icustayid=[5] * 4 + [7] * 4, presumed_onset=0, charttime=range(rows), died_within_48h_of_out_time=[0] * 4 + [1] * 4,
        input_4hourly=[0, 1, 2, 3, 4, 0, 0, 0], max_dose_vaso=[0, 0, 0, 0, 0, 0.1, 0.2, 0],
    )  # fmt: skip
    found = final.final_table(table)
    assert found["traj"].tolist() == [1] * 4 + [2] * 4 and found["step"].tolist() == [0, 1, 2, 3] * 2
    assert found["r:reward"].tolist() == [0, 0, 0, 1, 0, 0, 0, -1]
    assert found["a:action"].tolist() == [0, 5, 10, 15, 20, 2, 4, 0]


@pytest.mark.parametrize(
    ("written", "early"),
    [
        (0.097, 0.09699999999999999),  # 97 / 10 / 100
        (29412.68795138889, 29412.687951388885),
        (7.38, 7.38),
        (250.125, 250.125),
        (-0.097, -0.09699999999999999),
        (1e22, 1e22),
    ],
)
def test_numbers_as_the_originals_first_reader_had_them(written, early):
    """Pairs of what an extract of the original says and what its cohort script printed."""
    assert csv_numbers.early(written) == early
    table = csv_numbers.reread(pd.DataFrame({"x": [written, NAN, np.inf], "n": 1}), csv_numbers.early)
    assert table["x"].tolist()[0] == early and np.isnan(table["x"][1]) and table["x"][2] == np.inf
    assert table["n"].dtype == np.int64


def test_numbers_as_the_originals_reader_has_them():
    values = [0.097, 0.09699999999999999, 12.0, -3.5, 1e-7, np.inf, NAN, 123456789.123456789]
    found = final.reread(pd.DataFrame({"x": values, "n": 1}))["x"].to_numpy()
    assert found[0] == 0.097 and found[1] == 0.0969999999999999 and found[2] == 12 and found[3] == -3.5
    np.testing.assert_allclose(found, values, rtol=1e-13)
