"""MIMIC-III from PhysioNet's CSV files to the sepsis cohort of the paper (docs/mimic3.md; spec: mimic3).

In the order of the work: `tables` (files), `extracts` (fifteen queries in `sql/`), `patients` and `onset` (who, and when
infection is suspected), `reading`, `charting`, `cleaning` (one row for each charted time), `windows` (four hours each),
`imputation` with `neighbours` and `introsort`, `scores`, `exclusions`, `final`; `cohort` joins them, `registry` makes
the registry of it, `fixes` names what may be corrected, `options` what else can be chosen. `stages` keeps finished steps
in the cache, `reference` has the lists of items, `csv_numbers` reads numbers with the rounding errors of the original.
"""
