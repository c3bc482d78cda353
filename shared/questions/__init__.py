"""Questions: how they are stored, how prompts are made of them, how answers are rewarded, and whether shortcuts answer them."""
