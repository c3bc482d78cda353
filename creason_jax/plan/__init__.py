"""What a run will need, compiled or counted without the devices."""
