"""How much arithmetic and traffic a Llama's passes need at least: the floors that stand beside measured times.

Formulas only; the rates they are divided by are measured in harness.py.
"""

from collections.abc import Sequence


def layer_parameters(config) -> int:
    """Weights of all layers, which every token passes; the embedding and the heads are not among them."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attention = config.hidden_size**2 * (2 + 2 * kv_heads / heads)
    return round(config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size))


def parameters(config) -> int:
    """Weights of layers and embedding (tied)."""
    return layer_parameters(config) + config.vocab_size * config.hidden_size


def forward_flops(config, lengths: Sequence[int], logits: int = 0, prefixes: Sequence[int] | None = None) -> float:
    """FLOP of one forward over sequences without padding: products with weights, causal attention, `logits` output rows.

    prefixes: of each sequence, the first tokens that it shares with an earlier one and that need not be computed again.
    """
    prefixes = [0] * len(lengths) if prefixes is None else prefixes
    tokens = sum(lengths) - sum(prefixes)
    products = 2 * layer_parameters(config) * tokens + 2 * config.vocab_size * config.hidden_size * logits
    # Scores and weighted sums: 2 products of 2 x hidden FLOP for each of n^2 / 2 pairs of positions.
    positions = sum(n * n - p * p for n, p in zip(lengths, prefixes, strict=True))
    return products + 2 * config.hidden_size * config.num_hidden_layers * positions


def step_flops(config, lengths: Sequence[int], logits: int = 0, prefixes: Sequence[int] | None = None) -> float:
    """FLOP of forward and backward: the backward pass needs two products for each one of the forward pass."""
    return 3 * forward_flops(config, lengths, logits, prefixes)


def step_bytes(config, passes: int, steps: int, size: int = 4) -> float:
    """Least bytes of training: each pass (micro-batch) reads the weights twice and adds to the gradients; AdamW runs each step.

    Activations are left out: how much of them leaves the caches is not given by the arithmetic.
    """
    # AdamW reads p, g, m, v and writes p, m, v.
    return parameters(config) * size * (passes * (2 + 2) + steps * 7)


def decoding_bytes(config, prompts: Sequence[int], responses: Sequence[int], size: int = 4) -> float:
    """Least bytes of sampling a batch: the weights for each token of the longest response, and the caches of living rows."""
    cache_per_token = 2 * config.num_hidden_layers * config.hidden_size * config.num_key_value_heads
    cache_per_token = cache_per_token / config.num_attention_heads * size
    read = sum(prompt * n + n * (n + 1) / 2 for prompt, n in zip(prompts, responses, strict=True))
    return max(responses) * parameters(config) * size + cache_per_token * read
