"""Models as stock Hugging Face classes: loading them, and reading scores, log-probabilities and entropies from them."""
