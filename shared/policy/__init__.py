"""What a language model is made of before a backend loads it: tokenizer, weight files and their names, initial weights."""
