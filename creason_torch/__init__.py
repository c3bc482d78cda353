"""The PyTorch backend: DeepSpeed ZeRO learner, Hugging Face policy, vLLM rollouts. Twin of `creason_jax`, file by file."""
