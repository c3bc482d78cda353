"""Pages with figures and plots, for people."""
