"""The PyTorch backend: DeepSpeed ZeRO learner, Hugging Face policy, vLLM rollouts.

Files, functions and their order are those of the Flax backend, so that both can be read side by side.
"""
