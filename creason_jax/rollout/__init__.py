"""Rollouts: drawing completions from the policy, and checking them."""
