"""Reward scores, log-probabilities and entropies of given tokens. Nothing is sampled here."""

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from denserl.data.batching import ResponseBatch, SharedPrompts, response_slots
from denserl.models.gated import GatedHead
from denserl.models.heads import AttributeHead
from denserl.models.logprob import chunked_logprob_entropy
from denserl.models.measured import LogitMap, hooked, logit_map, stock_model
from denserl.models.packing import lay_out


def token_rewards(
    reward_model: nn.Module, input_ids: Tensor, attention_mask: Tensor, shared: SharedPrompts | None = None
) -> Tensor:
    """The score that the reward head gives at every position: (B, S) fp32. Values at padding have no meaning.

    The head is read where the stock class applies it, so that a wrapped model (DeepSpeed engine, DDP, PEFT) runs its own
    forward and its hooks.

    Args:
        reward_model: a sequence classifier whose head is the module named `score`, (..., H) -> (..., C), the score first; may
            be wrapped.
        input_ids: (B, S), padded on either side.
        attention_mask: (B, S), best on the host, where the batch is laid out.
        shared: prompts that rows have in common and a packed model reads once; where they end, a gated head reads its gate.
    """
    return _read_by_score(reward_model, input_ids, attention_mask, shared).outputs[..., 0]


class RewardReading(NamedTuple):
    """Outputs of one forward of a reward model for a batch of B rows with S positions."""

    scores: Tensor  # (B, S) fp32, see `token_rewards`
    logprobs: Tensor | None  # (rows, T) fp32 of the first rows' response tokens, 0 where no token stands
    hidden: Tensor | None  # (B, H) the hidden state that the reward head reads at one position of each row
    label: Tensor | None = None  # (B, K) fp32 log-probability of one token behind K positions of each row
    outputs: Tensor | None = None  # (B, S, C) fp32, all that a head of several outputs gives, the score first
    coefficients: Tensor | None = None  # (B, C - 1) fp32, of a head of attributes: what they weigh in a row's scores


def read_rewards(
    reward_model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    response_start: int | Tensor,
    response_length: int | None = None,
    logprob_rows: int | None = None,
    hidden_at: Tensor | None = None,
    shared: SharedPrompts | None = None,
    label: tuple[Tensor, int] | None = None,
) -> RewardReading:
    """`token_rewards`, and from the same forward log-probabilities of response tokens, and hidden states.

    Both heads read the same hidden states; the language-model head those before the response tokens of the first rows alone.

    Args as those of `token_logprob_entropy`, and
        reward_model: may be wrapped; has the language-model head as `lm_head` where log-probabilities are wanted.
        logprob_rows: of how many rows, from the first on, log-probabilities are wanted; 0: of none; default all.
        hidden_at: (B,) positions whose hidden states are wanted; default none.
        label: (B, K) positions, and the token whose log-probability is wanted behind each; default none.
    """
    stock = stock_model(reward_model)
    hidden, places, outputs, coefficients = _read_by_score(reward_model, input_ids, attention_mask, shared)
    logprobs = states = None
    if logprob_rows != 0:
        start, length = _starts_and_length(input_ids, response_start, response_length)
        rows = slice(logprob_rows)
        tokens = (places[rows], input_ids[rows], attention_mask[rows], start[rows], length)
        logprobs, _ = _of_response_tokens(stock.lm_head, logit_map(stock), hidden, *tokens, 1.0, with_entropy=False)
    if hidden_at is not None:
        states = hidden.flatten(0, 1).index_select(0, places.gather(1, hidden_at.to(places.device)[:, None]).squeeze(1))
    found = None if label is None else _of_label(stock, hidden, places.gather(1, label[0].to(places.device)), label[1])
    others = outputs if outputs.shape[-1] > 1 else None
    return RewardReading(outputs[..., 0], logprobs, states, found, others, coefficients)


def head_inputs(
    reward_model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    shared: SharedPrompts | None = None,
) -> Tensor:
    """The hidden states that the reward head reads at some positions of each row, (B, K) -> (B, K, H).

    Other args as those of `token_rewards`.
    """
    hidden, places, *_ = _read_by_score(reward_model, input_ids, attention_mask, shared)
    return hidden.flatten(0, 1)[places.gather(1, positions.to(places.device))]


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
    shared: SharedPrompts | None = None,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each response token and entropy (nats) of the distribution that predicts it.

    The log-probability is of softmax(logits / temperature), the entropy of softmax(logits), both at the position before the
    token. The language-model head runs at these positions alone, and logits exist for one chunk of them at a time.

    Args:
        model: a causal language model (stock class); may be wrapped, and runs its own forward.
        input_ids: (B, S).
        attention_mask: (B, S), best on the host, where the batch is laid out; so are response_start and shared.
        response_start: index of the first response token, one for all rows or (B,); at least 1.
        response_length: T; default S - min(response_start).
        shared: prompts that rows have in common and a packed model reads once.
        with_entropy: False spares the entropies, and None is returned for them.

    Returns: two (B, T) fp32 tensors, row b counted from its own response start, 0 where no token stands.
    """
    stock = stock_model(model)
    inputs, places = lay_out(stock, input_ids, attention_mask, shared)
    head = stock.get_output_embeddings()
    hidden = _read_by_head(head, model, inputs)
    start, length = _starts_and_length(input_ids, response_start, response_length)
    tokens = (places, input_ids, attention_mask, start, length)
    return _of_response_tokens(head, logit_map(stock), hidden, *tokens, temperature, with_entropy)


def next_logprobs(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Log-probability of each token behind the last one of each row: (B, V) fp32.

    Args:
        model: a causal language model (stock class); may be wrapped, and runs its own forward.
        input_ids: (B, S), padded on the right. attention_mask: (B, S), best on the host.
    """
    stock = stock_model(model)
    inputs, places = lay_out(stock, input_ids, attention_mask, None)
    head = stock.get_output_embeddings()
    hidden = _read_by_head(head, model, inputs)
    last = places.gather(1, attention_mask.sum(1, keepdim=True).to(places.device) - 1).squeeze(1)
    return logit_map(stock)(head(hidden.flatten(0, 1).index_select(0, last)).float()).log_softmax(1)


def response_entropies(model: nn.Module, batch: ResponseBatch) -> Tensor:
    """Entropy (nats) of the distribution that predicts each response token of a batch: (B, T) fp32."""
    return token_logprob_entropy(model, *batch[:3], batch.response_mask.shape[1], shared=batch.shared)[1]


def response_logprobs_entropies(model: nn.Module, batch: ResponseBatch) -> Tensor:
    """Log-probability of each response token of a batch, and entropy (nats) of what predicts it: (B, T, 2) fp32."""
    found = token_logprob_entropy(model, *batch[:3], batch.response_mask.shape[1], shared=batch.shared)
    return torch.stack(found, -1)


def _starts_and_length(input_ids: Tensor, response_start: int | Tensor, response_length: int | None) -> tuple[Tensor, int]:
    """(B,) response starts, on the host, and T."""
    rows, width = input_ids.shape
    start = torch.as_tensor(response_start).cpu().expand(rows)
    return start, response_length if response_length is not None else width - int(start.min())


def _of_response_tokens(
    head: nn.Module,
    adjust: LogitMap,
    hidden: Tensor,
    places: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    start: Tensor,
    length: int,
    temperature: float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """What `token_logprob_entropy` returns, of hidden states as the model gives them, which `places` finds (see `lay_out`)."""
    (rows, width), mask = input_ids.shape, attention_mask.cpu().bool()
    index = start[:, None] + torch.arange(length)
    # Places of the predicted tokens: in the (B, T) result, and in the batch.
    found = (response_slots(mask, start, length) & (index < width)).flatten().nonzero().squeeze(1)
    token = (torch.arange(rows)[:, None] * width + index).flatten()[found].to(input_ids.device, non_blocking=True)
    found = found.to(input_ids.device, non_blocking=True)
    logprob, entropy = chunked_logprob_entropy(
        hidden.flatten(0, 1).index_select(0, places.flatten()[token - 1]),
        input_ids.flatten()[token],
        head,
        adjust,
        temperature,
        with_entropy,
    )

    def in_slots(values: Tensor) -> Tensor:
        return values.new_zeros(rows * length).index_copy(0, found, values).view(rows, length)

    return in_slots(logprob), None if entropy is None else in_slots(entropy)


def _of_label(stock: nn.Module, hidden: Tensor, places: Tensor, token: int) -> Tensor:
    """Log-probability of a token behind (B, K) places: (B, K) fp32."""
    read = hidden.flatten(0, 1).index_select(0, places.flatten())
    wanted = torch.full((len(read),), token, device=read.device)
    found, _ = chunked_logprob_entropy(read, wanted, stock.lm_head, logit_map(stock), 1.0, with_entropy=False)
    return found.view(places.shape)


def _at(places: Tensor, values: Tensor) -> Tensor:
    """C values per token as the model gives them -> (B, S, C) fp32 (see `lay_out`)."""
    return values.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, -1).float()


class _Forward(NamedTuple):
    """One forward of a reward model: hidden states as the model gives them, where padded slots find theirs, and outputs."""

    hidden: Tensor
    places: Tensor  # (B, S) long, see `lay_out`
    outputs: Tensor  # (B, S, C) fp32, the score first
    coefficients: Tensor | None


def _read_by_score(
    reward_model: nn.Module, input_ids: Tensor, attention_mask: Tensor, shared: SharedPrompts | None
) -> _Forward:
    """The hidden states that the reward head reads, and its outputs, all positions."""
    stock, read = stock_model(reward_model), []
    inputs, places = lay_out(stock, input_ids, attention_mask, shared)
    head = score_head(stock)

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # A gate is run here, within the forward of engines, which may have its weights in shares.
        read.append(_Forward(args[0], places, _at(places, output), _coefficients(module, args[0], places, shared)))

    with hooked(head.register_forward_hook(keep)):
        reward_model(**inputs, use_cache=False)
    (found,) = read
    if not isinstance(head, GatedHead):
        return found
    scores = (found.outputs * found.coefficients[:, None]).sum(-1, keepdim=True)
    return found._replace(outputs=torch.cat([scores, found.outputs], -1))


def _coefficients(head: nn.Module, hidden: Tensor, places: Tensor, shared: SharedPrompts | None) -> Tensor | None:
    """What attributes weigh in each row, (B, K) fp32, by one gate for each different prompt; None of other heads."""
    if isinstance(head, AttributeHead):
        return torch.tensor(head.weights, device=places.device).expand(len(places), -1)
    if not isinstance(head, GatedHead):
        return None
    if shared is None:
        raise ValueError("a gated head reads its gate in the prompt: give `shared`, which says where prompts end")
    rows, row_of = shared.row.cpu().unique(return_inverse=True)
    at = head.read_at(shared.length.cpu()[rows])
    states = hidden.flatten(0, 1).index_select(0, places[rows.to(places.device), at.to(places.device)])
    return head.coefficients(states)[row_of.to(places.device)]


def _read_by_head(head: nn.Module, model: nn.Module, inputs: dict) -> Tensor:
    """The hidden states that the head of a language model would read, all positions; it is given the first alone."""
    with head_reads(head, slice(0, 1)) as read:
        model(**inputs, use_cache=False)
    return read[0]


@contextlib.contextmanager
def head_reads(head: nn.Module, positions: Tensor | slice):
    """Within the context, a language model's head is given some positions alone; yields a list of what it was to read."""
    read = []

    def choose(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read.append(args[0])
        return (args[0][:, positions],)

    with hooked(head.register_forward_pre_hook(choose)):
        yield read
