"""Speed and memory, always as a ratio to a baseline that the same run measures."""
