"""The policy network: Transformers' decoder with this project's attention, and log-probabilities."""
