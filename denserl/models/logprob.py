"""Log-probabilities and entropies of given tokens from hidden states, without ever holding the logits of all positions.

Positions, tokens and changes of the logits by model family come from the caller (denserl/models/scoring.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from denserl import distributed

# Of a block of the vocabulary: few enough for a CPU's cache. On a device, times DEVICE_FACTOR: few launches matter more there.
LOGITS_PER_BLOCK = 2**20
WEIGHTS_PER_BLOCK = 2**22
DEVICE_FACTOR = 16
# Of a chunk of positions: few calls of the head, which ZeRO-3 gathers for each.
LOGITS_PER_CHUNK = 2**24
# Nats below the largest logit at which exp is 0 in fp32.
WEIGHTLESS = -200.0


def chunked_logprob_entropy(
    hidden: Tensor,
    tokens: Tensor,
    head: nn.Module,
    adjust: Callable[[Tensor], Tensor],
    temperature: float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each token under softmax(logits / temperature), and entropy (nats) of softmax(logits).

    A logit may be -inf, as of tokens that a model rules out: it has no probability, and no part in entropy and gradient.

    A bare linear head is read a block of the vocabulary at a time, all positions together, so that its gradient is written
    once and in place. Any other (adapters, hooks, weights that ZeRO-3 gathers) is called, a chunk of positions at a time.
    Both compute logits again in the backward pass. What the head gives is used in fp32, whatever its type.

    Args:
        hidden: (N, H), what the head reads at the position before each token.
        tokens: (N,) long.
        head: the language-model head, H -> V.
        adjust: applied to the logits in fp32, element by element, differentiable.
        temperature: > 0.
        with_entropy: False spares the entropies, and None is returned for them.

    Returns: two (N,) fp32.
    """
    if _is_bare(head):
        return _BlockwiseLogprob.apply(hidden, head.weight, head.bias, tokens, adjust, temperature, with_entropy)

    def of_chunk(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        return _logprob_entropy(adjust(head(hidden).float()), tokens, temperature, with_entropy)

    count = _chunk_count(len(hidden), head)
    keep_graph = torch.is_grad_enabled() and hidden.requires_grad
    # ZeRO-3 lets go of a frozen head's weight after each call, which the check of the recomputation would take for a fault.
    chunks = [
        checkpoint(of_chunk, h, t, use_reentrant=False, determinism_check="none") if keep_graph else of_chunk(h, t)
        for h, t in zip(hidden.tensor_split(count), tokens.tensor_split(count), strict=True)
    ]
    logprobs, entropies = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


def _is_bare(head: nn.Module) -> bool:
    """Whether calling the head is nothing but its matrix product: no subclass, no hook, all of the weight on this rank."""
    hooks = (head._forward_pre_hooks, head._forward_hooks, head._backward_pre_hooks, head._backward_hooks)
    return type(head) is nn.Linear and not any(hooks) and not hasattr(head.weight, "ds_id")


def _chunk_count(positions: int, head: nn.Module) -> int:
    """Chunks of at most LOGITS_PER_CHUNK logits; the same number on every rank where the head is gathered for each (ZeRO-3).

    A rank with fewer positions has smaller chunks, maybe empty ones, but none waits for a gathering that another never joins.
    """
    count = max(1, -(-positions * head.out_features // LOGITS_PER_CHUNK))
    return distributed.all_max(count) if hasattr(head.weight, "ds_id") else count


def _logprob_entropy(logits: Tensor, tokens: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    scaled = _scaled(logits, temperature)
    logprob = scaled.gather(-1, tokens[:, None]).squeeze(-1) - scaled.logsumexp(-1)
    if not with_entropy:
        return logprob, None
    return logprob, _Entropy.apply(logits)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


def _lse_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logsumexp of each row, and the entropy of its softmax; -inf and 0 of a row without any logit above -inf."""
    top = _finite(logits.amax(-1, keepdim=True))
    # So far below, the weight is 0; with -inf in its place, 0 x -inf would be no number.
    below = (logits - top).clamp_(min=WEIGHTLESS)
    weights = below.exp()
    total = weights.sum(-1)
    log = total.log()
    # Of the differences, not of the logits: those may be large beside the entropy, and so would be their rounding.
    entropy = log - weights.mul_(below).sum(-1) / total
    return top.squeeze(-1) + log, torch.where(total > 0, entropy, 0.0)


def _finite(values: Tensor) -> Tensor:
    """-inf as the least number, from which -inf can be subtracted."""
    return values.clamp(min=torch.finfo(values.dtype).min)


class _Entropy(torch.autograd.Function):
    """(N, V) logits -> (N,) entropies, of which neither pass keeps more than the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        lse, entropy = _lse_and_entropy(logits)
        ctx.save_for_backward(logits, lse, entropy)
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        logits, lse, entropy = ctx.saved_tensors
        return _entropy_derivative(logits, lse, entropy, upstream)


class _BlockwiseLogprob(torch.autograd.Function):
    """`chunked_logprob_entropy` of a bare linear head, over blocks of its vocabulary."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        adjust: Callable[[Tensor], Tensor],
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        own, entropy = hidden.new_zeros(2, len(hidden), dtype=torch.float32)
        scaled_lse, lse = hidden.new_full((2, len(hidden)), -torch.inf, dtype=torch.float32)
        for block in _blocks(hidden, len(weight)):
            logits = adjust(_logits(hidden, weight, bias, block))
            place, inside = _within(tokens, block)
            own = torch.where(inside, logits.gather(1, place[:, None]).squeeze(1), own)
            if with_entropy:
                before, (block_lse, block_entropy) = lse, _lse_and_entropy(logits)
                lse = torch.logaddexp(before, block_lse)
                # Shares of the probability. The entropy is that of the choice between the two, and then within the chosen one.
                shares = (torch.stack([before, block_lse]) - _finite(lse)).exp()
                entropy = (shares * torch.stack([entropy, block_entropy]) + torch.special.entr(shares)).sum(0)
            if not with_entropy or temperature != 1.0:
                scaled_lse = torch.logaddexp(scaled_lse, _scaled(logits, temperature).logsumexp(1))
            # Else they would be kept beside the next block's.
            del logits
        if with_entropy and temperature == 1.0:
            scaled_lse = lse
        # None in the backward pass stands for no gradient, whose products are then spared.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, tokens, scaled_lse, lse, entropy)
        ctx.adjust, ctx.temperature = adjust, temperature
        return _scaled(own, temperature) - scaled_lse, entropy if with_entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, scaled_lse, lse, entropy = ctx.saved_tensors
        upstream = torch.zeros_like(lse) if upstream is None else upstream
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        # Every block adds to the first, in fp32 whatever the model's type; each part of the others is written by one block.
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if for_hidden else None
        of_weight = torch.empty_like(weight) if for_weight else None
        of_bias = torch.empty_like(bias) if for_bias else None
        for block in _blocks(hidden, len(weight)):
            raw = _logits(hidden, weight, bias, block).requires_grad_()
            with torch.enable_grad():
                logits = ctx.adjust(raw)
            by_logits = _derivative(logits.detach(), _within(tokens, block), scaled_lse, upstream, ctx.temperature)
            if of_entropy is not None:
                by_logits += _entropy_derivative(logits.detach(), lse, entropy, of_entropy)
            by_logits = torch.autograd.grad(logits, raw, by_logits)[0].to(hidden.dtype)
            if for_hidden:
                of_hidden += by_logits @ weight[block]
            if for_weight:
                torch.mm(by_logits.T, hidden, out=of_weight[block])
            if for_bias:
                of_bias[block] = by_logits.sum(0)
        return None if of_hidden is None else of_hidden.to(hidden.dtype), of_weight, of_bias, None, None, None, None


def _derivative(logits: Tensor, within: tuple[Tensor, Tensor], lse: Tensor, upstream: Tensor, temperature: float) -> Tensor:
    """The loss's derivative by a block of logits: upstream / temperature times (1 at the own token - the probabilities)."""
    (place, inside), factor = within, _scaled(upstream, temperature)[:, None]
    out = (_scaled(logits, temperature) - lse[:, None]).exp_().mul_(-factor)
    return out.scatter_add_(1, place[:, None], torch.where(inside[:, None], factor, 0.0))


def _entropy_derivative(logits: Tensor, lse: Tensor, entropy: Tensor, upstream: Tensor) -> Tensor:
    """The loss's derivative by logits, of entropies H: upstream times -p (ln p + H), 0 where a logit is -inf."""
    log = (logits - lse[:, None]).clamp_(min=WEIGHTLESS)
    return log.exp().mul_(log.add_(entropy[:, None])).mul_(-upstream[:, None])


def _blocks(hidden: Tensor, vocabulary: int) -> list[slice]:
    """Parts of the vocabulary, each with at most LOGITS_PER_BLOCK logits at all positions together, and WEIGHTS_PER_BLOCK."""
    (positions, size), factor = hidden.shape, 1 if hidden.device.type == "cpu" else DEVICE_FACTOR
    width = max(1, min(LOGITS_PER_BLOCK // max(1, positions), WEIGHTS_PER_BLOCK // size) * factor)
    return [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, block: slice) -> Tensor:
    return linear(hidden, weight[block], None if bias is None else bias[block]).float()


def _within(tokens: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Each token's place in the block, 0 where it stands elsewhere, and whether it stands there."""
    inside = (tokens >= block.start) & (tokens < block.stop)
    return torch.where(inside, tokens - block.start, 0), inside
