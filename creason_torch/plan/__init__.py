"""What a run will need, counted before it starts."""
