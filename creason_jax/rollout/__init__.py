"""Completions drawn from the policy, and what checks them."""
