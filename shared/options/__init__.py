"""How values become a section of a run's configuration, how a section refuses one, and what its fields mean."""
