"""How arrays are split over devices, and how much memory the devices have."""
