"""Models as stock Hugging Face classes: loading them, and computing scores, log-probabilities and entropies."""
