"""A registry: its features, their statistics and relations, its split by patients, its files."""
