"""Weights of 8 or 4 bits for a whole model, and what each scheme costs on text that it was not trained on."""
