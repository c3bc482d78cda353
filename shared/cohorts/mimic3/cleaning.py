"""Removes impossible values, and fills values that can be computed from others (spec: mimic3, 6). All changes are in place."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from shared.cohorts.mimic3.charting import Charted, hold

# Values below the first or above the second number are removed.
BOUNDS: dict[str, tuple[float, float]] = {
    "Weight_kg": (-np.inf, 300), "HR": (-np.inf, 250), "SysBP": (-np.inf, 300), "MeanBP": (0, 200), "DiaBP": (0, 200),
    "RR": (-np.inf, 80), "SpO2": (-np.inf, 150), "Temp_C": (-np.inf, 90), "FiO2_100": (-np.inf, 100),
    "FiO2_1": (-np.inf, 1.5), "O2flow": (-np.inf, 70), "PEEP": (0, 40), "TidalVolume": (-np.inf, 1800),
    "MinuteVentil": (-np.inf, 50), "Potassium": (1, 15), "Sodium": (95, 178), "Chloride": (70, 150),
    "Glucose": (1, 1000), "Creatinine": (-np.inf, 150), "Magnesium": (-np.inf, 10), "Calcium": (-np.inf, 20),
    "Ionised_Ca": (-np.inf, 5), "CO2_mEqL": (-np.inf, 120), "SGOT": (-np.inf, 10000), "SGPT": (-np.inf, 10000),
    "Hb": (-np.inf, 20), "Ht": (-np.inf, 65), "WBC_count": (-np.inf, 500), "Platelets_count": (-np.inf, 2000),
    "INR": (-np.inf, 20), "Arterial_pH": (6.7, 8), "paO2": (-np.inf, 700), "paCO2": (-np.inf, 200),
    "Arterial_BE": (-50, np.inf), "Arterial_lactate": (-np.inf, 30),
}  # fmt: skip
GCS_OF_RASS = {-1: 14, -2: 12, -3: 11, -4: 6, -5: 3}  # the Glasgow coma scale that belongs to a RASS sedation level
# For groups of oxygen devices: their codes, upper limits of the flow in L/min (included), the FiO2 in percent up to each
# limit, and the FiO2 if the flow is unknown.
DEVICES = (
    ((0, 2), (1, 2, 3, 4, 5, 6, 8, 10, 12, 15), (24, 28, 32, 36, 40, 44, 50, 55, 62, 70), 21.0),
    ((1, 3, 4, 5, 6, 9, 10), (4, 6, 8, 10, 12, 15), (36, 40, 58, 66, 69, 75), np.nan),
    ((7,), (6, 8, np.nextafter(10, 0), np.nextafter(15, 0), np.inf), (60, 70, 80, 90, 100), np.nan),
)


def clean(charted: Charted, *, second: bool, fixes: Collection[str] = ()) -> Charted:
    """The cleaned rows, with valid earlier values held. `second` is the second pass, which has a few different rules.

    `charted` is changed in place. `fixes` are corrections of the original, see `fixes.FIXES`.
    """
    with np.errstate(invalid="ignore"):
        _bound(charted, second, fixes)
        _gcs(charted)
        _oxygen(charted, second, fixes)
        _pressure(charted)
        _temperature(charted, second and "temperature" not in fixes)
        _laboratory(charted)
    return Charted(charted.stay, charted.time, _held(charted, fixes))


def _held(charted: Charted, fixes: Collection[str]) -> np.ndarray:
    return hold(charted, potassium_hours=14 if "potassium_hold" in fixes else None)


def _bound(charted: Charted, second: bool, fixes: Collection[str]) -> None:
    celsius, fahrenheit = charted.column("Temp_C"), charted.column("Temp_F")
    _copy(celsius, fahrenheit, (celsius > 90) & np.isnan(fahrenheit))
    for name, (low, high) in BOUNDS.items():
        if name == "MeanBP" and second and "mean_pressure" not in fixes:
            high = np.inf
        values = charted.column(name)
        values[(values < low) | (values > high)] = np.nan
    saturation = charted.column("SpO2")
    saturation[saturation > 100] = 100
    if second:
        saturation[saturation < 50] = np.nan
        celsius[celsius < 25] = np.nan
    oxygen = charted.column("FiO2_100")
    share = oxygen <= 1 if "full_oxygen" in fixes else oxygen < 1
    oxygen[share] *= 100
    oxygen[oxygen < 20] = np.nan


def _gcs(charted: Charted) -> None:
    gcs, rass = charted.column("GCS"), charted.column("RASS")
    missing = np.isnan(gcs)
    gcs[missing & (rass >= 0)] = 15
    for level, score in GCS_OF_RASS.items():
        gcs[missing & (rass == level)] = score


def _oxygen(charted: Charted, second: bool, fixes: Collection[str]) -> None:
    percent, share = charted.column("FiO2_100"), charted.column("FiO2_1")
    _copy(percent / 100, share, np.isnan(share))
    _copy(share * 100, percent, np.isnan(percent))
    held = Charted(charted.stay, charted.time, _held(charted, fixes))
    device, flow = held.column("Interface"), held.column("O2flow")
    if "no_device" in fixes:
        device = np.where(np.isnan(device), 0, device)
    estimate = np.full(len(device), np.nan)
    for devices, limits, values, unknown in DEVICES:
        bracket = np.searchsorted(
            limits, flow
        )  # a flow above the last limit, or an unknown one, gets the last index + 1
        percents = np.where(np.isnan(flow), unknown, np.array([*values, np.nan])[bracket])
        _copy(percents, estimate, np.isin(device, devices))
    _copy(estimate, percent, np.isnan(held.column("FiO2_100")) & ~np.isnan(estimate))
    _copy(percent / 100, share, np.isnan(share))
    if not second:
        _copy(share * 100, percent, np.isnan(percent))


def _pressure(charted: Charted) -> None:
    systolic, mean, diastolic = (charted.column(name) for name in ("SysBP", "MeanBP", "DiaBP"))
    _copy((3 * mean - systolic) / 2, diastolic, np.isnan(diastolic))
    _copy((systolic + 2 * diastolic) / 3, mean, np.isnan(mean))
    _copy(3 * mean - 2 * diastolic, systolic, np.isnan(systolic))


def _temperature(charted: Charted, wrong_column: bool) -> None:
    celsius, fahrenheit = charted.column("Temp_C"), charted.column("Temp_F")
    swapped = (fahrenheit > 25) & (fahrenheit < 45)
    _copy(fahrenheit, celsius, swapped)
    fahrenheit[swapped] = np.nan
    swapped = celsius > 70
    _copy(celsius, fahrenheit, swapped)
    celsius[swapped] = np.nan
    _copy(celsius * 1.8 + 32, fahrenheit, np.isnan(fahrenheit))
    if wrong_column:
        where = ~np.isnan(celsius) & np.isnan(charted.column("SpO2"))
    else:
        where = ~np.isnan(fahrenheit) & np.isnan(celsius)
    _copy((fahrenheit - 32) / 1.8, celsius, where)


def _laboratory(charted: Charted) -> None:
    haemoglobin, haematocrit = charted.column("Hb"), charted.column("Ht")
    _copy(haemoglobin * 2.862 + 1.216, haematocrit, np.isnan(haematocrit))
    _copy((haematocrit - 1.216) / 2.862, haemoglobin, np.isnan(haemoglobin))
    total, direct = charted.column("Total_bili"), charted.column("Direct_bili")
    _copy(total * 0.6934 - 0.1752, direct, np.isnan(direct))
    _copy((direct + 0.1752) / 0.6934, total, np.isnan(total))


def _copy(source: np.ndarray, target: np.ndarray, where: np.ndarray) -> None:
    target[where] = source[where]
