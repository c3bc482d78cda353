"""The parts of a language model that need no backend: tokenizer, weight files, names of weights, random initial weights."""
