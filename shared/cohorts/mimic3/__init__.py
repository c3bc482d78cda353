"""MIMIC-III from PhysioNet's CSV files to the sepsis cohort of the paper (docs/mimic3.md; spec: mimic3).

The modules in the order in which they are used: `tables` (the files), `extracts` (the queries in `sql/`), `patients` and
`onset` (stays, and when infection is suspected), `reading`, `charting` and `cleaning` (one row for each charted time),
`windows` (four hours each), `imputation` with `neighbours` and `introsort`, `scores`, `exclusions`, `final`. `cohort` calls
them; `fixes` lists the errors of the original that can be corrected.
"""
