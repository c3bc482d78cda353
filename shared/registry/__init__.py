"""A registry: its features, their statistics, which features reveal others, the split by patients, and the files."""
