"""Where a response is cut: entropies of the frozen language model -> segments, and scores read at their ends.

Pure tensor code over a padded batch, on any device. `Segmenter` puts every way of cutting,
a user's own included, behind one call.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from denserl.errors import UserError
from denserl.levels import BANDIT_THRESHOLD, level_of
from denserl.steps import StepRule, step_spans


class Segments(NamedTuple):
    """The segments of a padded batch of B responses with T token slots; K_max is the largest count of the batch."""

    ids: Tensor  # (B, T) long: 0..K-1 inside a segment, -1 elsewhere (padding, end-of-turn token)
    ends: Tensor  # (B, T) bool: True at the token whose score is the segment's reward
    lengths: Tensor  # (B, K_max) long: tokens in each segment, 0 past a row's K
    counts: Tensor  # (B,) long: K of each row


def segment_by_entropy(
    entropy: Tensor, response_mask: Tensor, threshold: float, has_end_of_turn: Tensor | None = None
) -> Segments:
    """Cut every response before each token whose entropy is above the threshold (arXiv 2501.02790, section 3.2).

    The first token opens segment 0; a later token t opens a new one when entropy[t] > threshold, strictly. The
    end-of-turn token belongs to no segment, unless it is the only token. A threshold of 1000 or more is the bandit
    level: one segment over all response tokens, read at the last of them.

    Args:
        entropy: (B, T) nats, of the distribution that predicts each response token; ignored off the mask.
        response_mask: (B, T) bool or 0/1, 1 on response tokens (end-of-turn included), contiguous from t = 0.
        threshold: nats, >= 0.
        has_end_of_turn: (B,) bool, whether the last response token closes the turn; default all True.

    Raises:
        ValueError: the threshold is negative or NaN, or the shapes differ.
    """
    if math.isnan(threshold) or threshold < 0:
        raise ValueError(f"the entropy threshold is {threshold}; it must be a number of nats >= 0")
    if entropy.shape != response_mask.shape or entropy.ndim != 2:
        raise ValueError(f"entropy {tuple(entropy.shape)} and response_mask {tuple(response_mask.shape)}: want (B, T)")
    mask = response_mask.bool()
    if threshold >= BANDIT_THRESHOLD:
        content, starts = mask, torch.zeros_like(mask)
    else:
        content = _content(mask, has_end_of_turn)
        starts = content & (entropy > threshold)
    return segments_from_starts(starts, content)


def segments_from_starts(starts: Tensor, content: Tensor) -> Segments:
    """The segments that open at given tokens, each as long as to the next opening or the end of the content.

    Args:
        starts: (B, T) bool; changed in place: the first token of the content opens a segment in any case.
        content: (B, T) bool, the tokens that lie in segments, contiguous from t = 0.
    """
    starts[:, :1] = content[:, :1]
    inside = content.long()
    number = starts.cumsum(1).mul_(inside)  # 1..K inside a segment, 0 elsewhere
    counts = starts.sum(1)
    # The only read-back: the width of `lengths`, once per batch.
    lengths = inside.new_zeros(len(inside), 1 + max(counts.tolist(), default=0)).scatter_add_(1, number, inside)
    # A segment ends before a start or outside slot. The first slot, which rolls to the end, is one of the two.
    ends = content & (starts | ~content).roll(-1, 1)
    return Segments(number.sub_(1), ends, lengths[:, 1:], counts)


def segments_up_to(ends: Sequence[Sequence[int]], width: int, device: torch.device | str) -> Segments:
    """The segments of responses of which each row of `ends` says, ascending, up to which token, exclusive, each one goes.

    width: T. What is behind a row's last end lies in no segment.
    """
    starts, inside = torch.zeros(len(ends), width, dtype=torch.bool), torch.zeros(len(ends), width, dtype=torch.bool)
    for row, of_row in enumerate(ends):
        if of_row:
            starts[row, list(of_row[:-1])], inside[row, : of_row[-1]] = True, True
    return segments_from_starts(starts.to(device), inside.to(device))


def mean_segment_length(entropies: Sequence[Sequence[float]], threshold: float) -> float:
    """Tokens a segment at a threshold, in responses of which each has its entropies (nats), end-of-turn token included."""
    rows = [row[:-1] for row in entropies if len(row) > 1]
    tokens = sum(map(len, rows))
    return tokens / max(len(rows) + sum(int((torch.as_tensor(row[1:]) > threshold).sum()) for row in rows), 1)


def threshold_of_length(entropies: Sequence[Sequence[float]], length: float) -> float:
    """The least threshold at which segments have at least so many tokens on average, where any has (`mean_segment_length`).

    Of N tokens in R responses N / length segments open, R of them with the responses, the others at the tokens of most entropy.
    """
    rows = [row[:-1] for row in entropies if len(row) > 1]
    later = torch.cat([torch.zeros(1), *(torch.as_tensor(row[1:], dtype=torch.float32) for row in rows)])[1:]
    opened = max(0, math.floor(sum(map(len, rows)) / length) - len(rows))
    return later.sort(descending=True).values[opened].item() if opened < len(later) else 0.0


def segment_scores(token_scores: Tensor, segments: Segments) -> Tensor:
    """Read each segment's score at its end: (B, T) token scores -> (B, K_max) fp32, 0 past a row's K."""
    # Segments lie side by side from slot 0 on, so the running sum of their lengths counts the tokens up to each end.
    scores = pad(token_scores.float(), (1, 0)).gather(1, segments.lengths.cumsum(1))
    return torch.where(segments.lengths > 0, scores, 0.0)


def segment_sums(token_scores: Tensor, segments: Segments) -> Tensor:
    """Add up each segment's scores over its tokens: (B, T) token scores -> (B, K_max) fp32, 0 past a row's K."""
    inside = segments.ids >= 0
    scores = torch.where(inside, token_scores.float(), 0.0)
    sums = scores.new_zeros(len(scores), 1 + segments.lengths.shape[1]).scatter_add_(1, segments.ids + 1, scores)
    return sums[:, 1:]


def join_segments(parts: Sequence[Segments]) -> Segments:
    """The segments of several batches under one another, padded to the widest."""
    slots, most = max(part.ids.shape[1] for part in parts), max(part.lengths.shape[1] for part in parts)

    def padded(x: Tensor, width: int, value: int) -> Tensor:
        return pad(x, (0, width - x.shape[1]), value=value)

    return Segments(
        torch.cat([padded(part.ids, slots, -1) for part in parts]),
        torch.cat([padded(part.ends, slots, 0) for part in parts]),
        torch.cat([padded(part.lengths, most, 0) for part in parts]),
        torch.cat([part.counts for part in parts]),
    )


# A user's own way of cutting: the texts of a response's tokens and their entropies (nats) -> numbers of the tokens that open
# a segment. The first token opens one in any case; the end-of-turn token is not among them.
CutFunction = Callable[[list[str], list[float]], Sequence[int]]


@dataclass(frozen=True)
class Segmenter:
    """Cuts responses: at entropy peaks above a threshold, into steps of the text, or where a user's function says.

    threshold: entropy (nats), see `segment_by_entropy`; at the bandit level nothing is cut.
    name: its name in files of fits and in models' configs: peak, step, or the function's module:name.
    function, token_texts: a user's own way, which takes the place of the threshold below the bandit level, and token ids ->
    the texts of single tokens.
    rule, decode: the same of steps, and token ids -> their text as that of responses is made, special tokens left out.
    """

    threshold: float
    name: str = "peak"
    function: CutFunction | None = field(default=None, repr=False)
    token_texts: Callable[[list[int]], list[str]] | None = field(default=None, repr=False)
    rule: StepRule | None = None
    decode: Callable[[list[int]], str] | None = field(default=None, repr=False, compare=False)

    @property
    def level(self) -> str:
        """segment, token or bandit."""
        return level_of(self.threshold)

    @property
    def reads_entropy(self) -> bool:
        """Whether entropies are needed; the bandit level and steps need none."""
        return self.rule is None and not self.cuts_nothing

    @property
    def cuts_nothing(self) -> bool:
        """Whether a response is one segment, read where `read_place` says."""
        return self.threshold >= BANDIT_THRESHOLD

    def __call__(
        self, entropy: Tensor, response_mask: Tensor, response_ids: Tensor, has_end_of_turn: Tensor | None = None
    ) -> Segments:
        """Args as those of `segment_by_entropy`, and response_ids (B, T), which steps and a user's function read."""
        if self.cuts_nothing or (self.function is None and self.rule is None):
            return segment_by_entropy(entropy, response_mask, self.threshold, has_end_of_turn)
        content = _content(response_mask.bool(), has_end_of_turn)
        if self.rule is not None:
            return self._steps(content, response_ids, has_end_of_turn)
        starts = torch.zeros_like(content)
        lengths = content.sum(1).tolist()
        for row, (length, ids, values) in enumerate(zip(lengths, response_ids.tolist(), entropy.tolist(), strict=True)):
            starts[row, self._openings(ids[:length], values[:length])] = True
        return segments_from_starts(starts, content)

    def _steps(self, content: Tensor, response_ids: Tensor, has_end_of_turn: Tensor | None) -> Segments:
        """The steps of each response; one that was cut off in a step has none there, where such are not scored."""
        lengths, rows = content.sum(1).tolist(), response_ids.tolist()
        ended = [True] * len(rows) if has_end_of_turn is None else has_end_of_turn.tolist()
        spans = [step_spans(row[:length], self.decode, self.rule, end) for row, length, end in zip(rows, lengths, ended)]
        return segments_up_to([tokens for _, tokens in spans], content.shape[1], content.device)

    def _openings(self, ids: list[int], entropies: list[float]) -> list[int]:
        """Where the user's function opens segments. UserError where it raises, or names tokens that are not there."""
        tokens = self.token_texts(ids)
        try:
            found = [int(place) for place in self.function(tokens, entropies)]
        except Exception as error:  # a user's function may raise anything
            message = (
                f"`segmenter` {self.name} raised {type(error).__name__}: {error} for the response {''.join(tokens)[:80]!r}"
            )
            raise UserError(message, "mend the function", one_rank=True) from error
        wrong = [place for place in found if not 0 <= place < len(ids)]
        if wrong:
            found_at = f"`segmenter` {self.name} opens a segment at token {wrong[0]} of a response of {len(ids)} tokens"
            raise UserError(found_at, "let it return numbers from 0 up to the number of tokens", one_rank=True)
        return found


def _content(mask: Tensor, has_end_of_turn: Tensor | None) -> Tensor:
    """The mask without the end-of-turn token of rows that have one; a lone token always stays."""
    content = mask.roll(-1, 1)
    content[:, -1:] = False
    content[:, :1] = mask[:, :1]
    return content if has_end_of_turn is None else torch.where(has_end_of_turn.bool()[:, None], content, mask)
