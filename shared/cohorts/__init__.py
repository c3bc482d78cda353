"""Reads the raw files of a cohort into the columns of a registry: one folder for each cohort, and readers of raw tables."""
