"""A way of cutting of one's own: denserl train-rm --segmenter examples/my_segmenter.py:sentences ..."""


def sentences(tokens: list[str], entropies: list[float]) -> list[int]:
    """A segment opens at each token that follows the end of a sentence."""
    return [i for i in range(1, len(tokens)) if tokens[i - 1].rstrip().endswith((".", "!", "?", ":"))]


def surprises(tokens: list[str], entropies: list[float]) -> list[int]:
    """A segment opens where the entropy is twice the response's mean, whatever the language model's own scale."""
    mean = sum(entropies) / max(len(entropies), 1)
    return [i for i, entropy in enumerate(entropies) if entropy > 2 * mean]
