"""The GRPO update: loss, gradients, optimizer."""
