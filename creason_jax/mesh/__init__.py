"""How arrays lie over devices, and how much memory those have."""
