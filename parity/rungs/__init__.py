"""The rungs of the ladder, lowest first; each yields its checks."""
