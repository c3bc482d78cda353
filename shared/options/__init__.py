"""The sections of a run's configuration, one dataclass each, and what is checked of them; `shared.config` composes them."""
