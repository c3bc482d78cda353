"""How much memory a run will need, counted before it starts."""
