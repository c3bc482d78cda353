"""From the raw files of a cohort to the columns of a registry: one folder a cohort, and the tables that they are read from."""
