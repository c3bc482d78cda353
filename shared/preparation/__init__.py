"""From raw files to a registry and its questions, the same way for every cohort."""
