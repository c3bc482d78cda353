"""The training loop, and what stands beside it: warm-up, stored rollouts, the log of metrics, health."""
