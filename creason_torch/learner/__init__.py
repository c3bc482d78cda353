"""The GRPO update: loss, gradients, optimizer, under DeepSpeed."""
