"""What the models say of given tokens: reward scores, log-probabilities and entropies. Nothing is sampled here."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from denserl import distributed
from denserl.data.batching import response_slots

LOGITS_PER_CHUNK = 2**24


def token_rewards(reward_model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The reward head's output at every position: (B, S) fp32. What padding positions hold has no meaning.

    The head is read where the stock class applies it, so that a wrapped model (DeepSpeed engine, DDP, PEFT) runs its own
    forward and its hooks.

    Args:
        reward_model: a sequence classifier with one label, whose head is the module named `score`; may be wrapped.
        input_ids, attention_mask: (B, S), padded on either side.
    """
    captured = []
    handle = score_head(reward_model).register_forward_hook(lambda module, args, output: captured.append(output))
    try:
        reward_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids(attention_mask),
            use_cache=False,
        )
    finally:
        handle.remove()
    return captured[0].squeeze(-1).float()


def score_head(reward_model: nn.Module) -> nn.Module:
    """The module named `score` of a (wrapped) sequence classifier."""
    return next(module for name, module in reward_model.named_modules() if name.rpartition(".")[2] == "score")


def token_logprob_entropy(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    response_start: int | Tensor,
    response_length: int | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each response token and entropy (nats) of the distribution that predicts it.

    The log-probability is of softmax(logits / temperature), the entropy of softmax(logits), both at the position before the
    token. Logits exist for one chunk of positions at a time, in the backward pass too, where each chunk is computed again.

    Args:
        model: a causal language model (stock class).
        input_ids, attention_mask: (B, S).
        response_start: index of the first response token, one for all rows or (B,); at least 1.
        response_length: T; default S - min(response_start).

    Returns: two (B, T) fp32 tensors, row b counted from its own response start; what stands past a row's response has no
        meaning. The entropy carries no gradient.
    """
    start = torch.as_tensor(response_start, device=input_ids.device).expand(len(input_ids))
    length = response_length if response_length is not None else input_ids.shape[1] - int(start.min())
    hidden = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids(attention_mask), use_cache=False
    ).last_hidden_state
    hidden = response_slots(hidden, start - 1, length).flatten(0, 1)
    tokens = response_slots(input_ids, start, length).flatten()
    head, adjust = model.get_output_embeddings(), logit_adjustment(model.config)

    def of_chunk(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return _logprob_entropy(adjust(head(hidden).float()), tokens, temperature)

    count = _chunk_count(len(hidden), head)
    keep_graph = torch.is_grad_enabled() and hidden.requires_grad
    chunks = [
        checkpoint(of_chunk, h, t, use_reentrant=False) if keep_graph else of_chunk(h, t)
        for h, t in zip(hidden.tensor_split(count), tokens.tensor_split(count), strict=True)
    ]
    logprob, entropy = (torch.cat(parts).view(len(input_ids), length) for parts in zip(*chunks, strict=True))
    return logprob, entropy


def _chunk_count(positions: int, head: nn.Module) -> int:
    """Chunks of at most LOGITS_PER_CHUNK logits; the same number on every rank where the head is gathered for each (ZeRO-3).

    A rank with fewer positions has smaller chunks, maybe empty ones, but none waits for a gathering that another never joins.
    """
    count = max(1, -(-positions * head.out_features // LOGITS_PER_CHUNK))
    return distributed.all_max(count) if hasattr(head.weight, "ds_id") else count


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions counted from each row's first real token, so that padding on the left changes nothing. (B, S) long."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def logit_adjustment(config) -> Callable[[Tensor], Tensor]:
    """What some families do to the head's output before the softmax: soft cap (Gemma), scale (Cohere), divisor (Granite)."""
    settings = config.get_text_config().to_dict()
    cap = settings.get("final_logit_softcapping")
    factor = (settings.get("logit_scale") or 1.0) / (settings.get("logits_scaling") or 1.0)
    if cap:
        return lambda logits: torch.tanh(logits / cap) * cap
    if factor != 1.0:
        return lambda logits: logits * factor
    return lambda logits: logits


def _logprob_entropy(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scaled = logits if temperature == 1.0 else logits / temperature
    logprob = scaled.gather(-1, tokens[:, None]).squeeze(-1) - scaled.logsumexp(-1)
    with torch.no_grad():
        probabilities = torch.softmax(logits, -1)
        entropy = logits.logsumexp(-1) - (probabilities * logits).sum(-1)
    return logprob, entropy
