"""Random padded batches, and brute-force loops over rows and tokens in Python floats, written from the specification.

They share no code with denserl: a segmentation is a list of rows, a row a list of segments, a segment a list of places.
"""

import math
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from denserl.segmentation import Segments

THRESHOLDS = (0.0, 0.5, 1.75, 999.5, 1000.0, 1e4)
MASK_TYPES = (torch.bool, torch.long, torch.float32)


class Batch(NamedTuple):
    """Right-padded responses: what segmentation takes, and a generator for anything else."""

    mask: Tensor
    entropy: Tensor
    has_end_of_turn: Tensor | None
    generator: torch.Generator

    def normal(self) -> Tensor:
        """(B, T) standard normal, anything but numbers off the mask: nothing may be read there."""
        return spoil(torch.randn(self.mask.shape, generator=self.generator), self.mask)


@st.composite
def batches(draw, max_rows: int = 5, max_tokens: int = 12) -> Batch:
    """Batches of 0.. rows of 0.. tokens with 0..2 more columns than needed; entropies are quarters, so ties happen."""
    lengths = draw(st.lists(st.integers(0, max_tokens), max_size=max_rows))
    width = max(lengths, default=0) + draw(st.integers(0, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    mask = torch.tensor([[t < n for t in range(width)] for n in lengths], dtype=torch.bool).reshape(len(lengths), width)
    entropy = torch.randint(0, 12, mask.shape, generator=generator) / 4
    entropy[torch.rand(mask.shape, generator=generator) < 0.02] = 2000.0
    ended = torch.rand(len(lengths), generator=generator) < 0.5 if draw(st.booleans()) else None
    return Batch(mask.to(draw(st.sampled_from(MASK_TYPES))), spoil(entropy, mask), ended, generator)


def spoil(x: Tensor, mask: Tensor) -> Tensor:
    """x with NaN, infinities and huge numbers in turn off the mask."""
    junk = torch.tensor([math.nan, math.inf, 1e30, -math.inf])
    return torch.where(mask.bool(), x, junk[torch.arange(x.numel()) % 4].reshape(x.shape))


def spoil_past(x: Tensor, counts: Tensor) -> Tensor:
    """(B, K) x with the same past each row's count."""
    return spoil(x, torch.arange(x.shape[1]) < counts[:, None])


def places(mask: Tensor) -> list[list[int]]:
    """The places of each row's response tokens."""
    return [[t for t, on in enumerate(row) if on] for row in mask.tolist()]


def segment(entropy: Tensor, mask: Tensor, threshold: float, has_end_of_turn: Tensor | None = None):
    """Section 2, one row and one token at a time, reading each entropy from the tensor."""
    rows = []
    for b, tokens in enumerate(places(mask)):
        if threshold >= 1000:
            rows.append([tokens] if tokens else [])
            continue
        ended = has_end_of_turn is None or has_end_of_turn[b].item()
        if ended and len(tokens) > 1:
            tokens = tokens[:-1]
        row = []
        for t in tokens:
            if t == 0 or entropy[b, t].item() > threshold:
                row.append([t])
            else:
                row[-1].append(t)
        rows.append(row)
    return rows


def segment_at(openings: list[list[int]], contents: list[list[int]]):
    """Segments that open at given places of each row's content, and at its first place."""
    rows = []
    for opened, tokens in zip(openings, contents):
        row = []
        for t in tokens:
            if not row or t in opened:
                row.append([])
            row[-1].append(t)
        rows.append(row)
    return rows


def to_segments(rows, width: int) -> Segments:
    """The tensors that stand for a segmentation."""
    most = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), -1)
    ends = torch.zeros(len(rows), width, dtype=torch.bool)
    lengths = torch.zeros(len(rows), most, dtype=torch.long)
    for b, row in enumerate(rows):
        for k, tokens in enumerate(row):
            for t in tokens:
                ids[b, t] = k
            ends[b, tokens[-1]] = True
            lengths[b, k] = len(tokens)
    return Segments(ids, ends, lengths, torch.tensor([len(row) for row in rows], dtype=torch.long))


def normalise(scores: list[float], w_mu: float, w_sigma: float, b_mu: float, b_sigma: float) -> list[float]:
    """Section 4 for the K segment rewards of one response, Std held at or above a tenth of b_sigma."""
    out = []
    for k, score in enumerate(scores, start=1):
        log = math.log(k / len(scores))
        out.append((score - (w_mu * log + b_mu)) / max(w_sigma * log + b_sigma, b_sigma / 10))
    return out


def aggregate(scores: list[float], how: str) -> float:
    """The score of a response with these segment scores; 0 without any."""
    if not scores:
        return 0.0
    if how == "logsumexp":
        top = max(scores)
        return top + math.log(math.fsum(math.exp(score - top) for score in scores))
    return {"avg": math.fsum(scores) / len(scores), "sum": math.fsum(scores), "min": min(scores), "last": scores[-1]}[how]


def assign(
    rewards, rows, lasts: list[int], width: int, kind: str, tau: float = 1.0, agg_func: str = "avg"
) -> list[list[float]]:
    """Section 5: the token rewards of each row; lasts[b] is the place of row b's last response token."""
    out = [[0.0] * width for _ in rows]
    for b, row in enumerate(rows):
        for k, tokens in enumerate(row):
            before, now = (aggregate(rewards[b][:n], agg_func) for n in (k, k + 1))
            for t in tokens:
                if kind == "even":
                    out[b][t] = rewards[b][k] / len(tokens)
                if kind == "even_mean":
                    out[b][t] = rewards[b][k] / len(tokens) / len(row)
                if kind == "difference":
                    out[b][t] = (now - before) / len(tokens)
                if kind == "difference_end" and t == tokens[-1]:
                    out[b][t] = now - before
                if kind == "repeat" or (kind == "end" and t == tokens[-1]):
                    out[b][t] = rewards[b][k]
        own = [rewards[b][k] for k in range(len(row))]
        if own and kind == "mean_last":
            out[b][lasts[b]] = sum(own) / len(own)
        if own and kind == "score_last":
            out[b][lasts[b]] = aggregate(own, agg_func)
        if own and kind == "logsumexp_last":
            out[b][lasts[b]] = tau * math.log(sum(math.exp(r / tau) for r in own))
    return out


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float):
    """The backward recurrence A_t = delta_t + gamma lam A_{t+1}; the value after the last response token is 0."""
    advantages = [[0.0] * mask.shape[1] for _ in mask]
    returns = [[0.0] * mask.shape[1] for _ in mask]
    rewards, values = rewards.tolist(), values.tolist()
    for b, tokens in enumerate(places(mask)):
        next_value = next_advantage = 0.0
        for t in reversed(tokens):
            delta = rewards[b][t] + gamma * next_value - values[b][t]
            next_advantage = delta + gamma * lam * next_advantage
            next_value = values[b][t]
            advantages[b][t], returns[b][t] = next_advantage, next_advantage + next_value
    return advantages, returns


def returns(rewards: Tensor, mask: Tensor, gamma: float) -> list[list[float]]:
    """G_t = r_t + gamma G_(t+1) of each row's tokens."""
    rows = []
    for b, tokens in enumerate(places(mask)):
        to_go, row = 0.0, []
        for t in reversed(tokens):
            to_go = rewards[b, t].item() + gamma * to_go
            row.insert(0, to_go)
        rows.append(row)
    return rows


def against_group(returns: list[list[float]], groups: list[int], kind: str, group_std: bool = True) -> list[list[float]]:
    """Advantages without a critic, one response and one token at a time, of each row's returns."""
    members = {g: [b for b, other in enumerate(groups) if other == g and returns[b]] for g in groups}

    def at(b: int, t: int) -> float:
        return returns[b][min(t, len(returns[b]) - 1)]

    def centred(b: int, t: int) -> float:
        everyone = members[groups[b]]
        return at(b, t) - sum(at(j, t) for j in everyone) / len(everyone)

    found = []
    for b, row in enumerate(returns):
        others = [j for j in members[groups[b]] if j != b]
        if kind == "reinforce":
            found.append(row)
        elif not others:
            found.append([0.0] * len(row))
        elif kind == "rloo":
            found.append([at(b, t) - sum(at(j, t) for j in others) / len(others) for t in range(len(row))])
        else:
            squares = [sum(centred(j, t) ** 2 for t in range(len(returns[j]))) / len(returns[j]) for j in members[groups[b]]]
            std = math.sqrt(sum(squares) / len(others))
            found.append([centred(b, t) / (std + 1e-6 if group_std else 1) for t in range(len(row))])
    return found


def whiten(x: Tensor, mask: Tensor) -> list[list[float]]:
    """Mean 0 and (biased) variance 1 over the response tokens of all rows."""
    x = x.tolist()
    own = [x[b][t] for b, tokens in enumerate(places(mask)) for t in tokens]
    out = [[0.0] * mask.shape[1] for _ in mask]
    if own:
        mean = math.fsum(own) / len(own)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in own) / len(own) + 1e-8)
        for b, tokens in enumerate(places(mask)):
            for t in tokens:
                out[b][t] = (x[b][t] - mean) / std
    return out


def average(terms: list[list[float]], how: str) -> float:
    """Mean (constant: sum) over a response's tokens, then over responses; or over all tokens. Empty rows do not count."""
    groups = [[x for row in terms for x in row]] if how == "token_mean" else terms
    means = [sum(group) / (1 if how == "constant" else len(group)) for group in groups if group]
    return sum(means) / len(means) if means else 0.0


def policy_terms(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float, dual: float = math.inf):
    """Per response token: the clipped surrogate, whether clipping decided it, and its derivative by logprobs."""
    logprobs, old, advantages = logprobs.tolist(), old.tolist(), advantages.tolist()

    def term(b, t):
        ratio, a = math.exp(logprobs[b][t] - old[b][t]), advantages[b][t]
        # min(rho A, clip(rho) A) differs from rho A where the ratio has gone too far the way the advantage pulls.
        if a > 0 and ratio > 1 + clip:
            return -(1 + clip) * a, 1.0, 0.0
        if a < 0 and ratio < 1 - clip:
            return -(1 - clip) * a, 1.0, 0.0
        if a < 0 and ratio > dual:
            return dual * abs(a), 1.0, 0.0
        return -ratio * a, 0.0, -ratio * a

    return [[term(b, t) for t in tokens] for b, tokens in enumerate(places(mask))]


def value_terms(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float):
    """Per response token: half the larger squared error, whether that is the clipped one, its derivative by values."""
    values, old, returns = values.tolist(), old.tolist(), returns.tolist()

    def term(b, t):
        v, target = values[b][t], returns[b][t]
        near = min(max(v, old[b][t] - clip), old[b][t] + clip)
        if abs(near - target) > abs(v - target):
            return 0.5 * (near - target) ** 2, 1.0, 0.0
        return 0.5 * (v - target) ** 2, 0.0, v - target

    return [[term(b, t) for t in tokens] for b, tokens in enumerate(places(mask))]
