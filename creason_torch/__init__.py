"""The PyTorch backend: DeepSpeed ZeRO learner, Hugging Face policy, vLLM rollouts.

Files with the same role as in the JAX backend have the same names and the same order of functions, so that both can be read
side by side.
"""
