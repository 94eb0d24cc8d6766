"""Models that read two responses in one text and say which is the better one: texts -> log-odds, in both orders.

They are given text, so that they may have a tokenizer of their own. How probabilities rank several responses is in
rewards/ranking.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.config import ModelSourceConfig
from denserl.data.batching import map_rows_in_batches, pad_responses
from denserl.data.pair_encoding import Answer, PairIds, PairLayout, encode_orders
from denserl.data.responses import Messages
from denserl.errors import UserError, require
from denserl.models.measured import measured
from denserl.models.positions import positions_of
from denserl.rewards.pair_metrics import response_token_rewards
from denserl.rewards.ranking import chances
from denserl.rewards.sources.build import Members, load_members

# Tokens of a text where neither positions nor an option bound it.
UNBOUNDED = 2**31


class PairOrders(NamedTuple):
    """Two responses to one prompt as they are judged, in both orders, which begin with the same ids."""

    given: PairIds
    turned: PairIds  # the second response stands first

    @property
    def is_cut(self) -> bool:
        """Whether the text lost something."""
        return bool(self.given.prompt_cut or self.given.response_cut)


@dataclass(frozen=True)
class PairModel:
    """Says how likely one response is better than another to the same prompt.

    model: a sequence classifier in evaluation mode whose score is the logit of the response that stands first being the better
    one, less that of the second; may be wrapped (DeepSpeed).
    layout: how the responses are written for it. max_length: tokens of the whole text (`pair_encoding.encode_orders`).
    score_tokens: padded tokens per batch. together: ranks compute together (ZeRO-3 on several), as of `in_halves`.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    layout: PairLayout = "denserl"
    max_length: int = UNBOUNDED
    device: torch.device | str = "cpu"
    score_tokens: int = 16384
    together: bool = False

    @classmethod
    def load(
        cls,
        path: str,
        dtype: str = "fp32",
        config: ModelSourceConfig | None = None,
        device: torch.device | str = "cpu",
        **how: Any,
    ) -> "PairModel":
        """The model at the path, a folder or hub name. how: see `pair_model_of`.

        Raises:
            UserError: it cannot be loaded, or does not compare responses.
        """
        members = load_members([path], dtype, config or ModelSourceConfig())
        members.models[0].to(device)
        return pair_model_of(members, device=device, **how)

    def __call__(self, prompts: Sequence[Messages], firsts: Sequence[Answer], seconds: Sequence[Answer]) -> np.ndarray:
        """The probability that the first of two responses is better: (n,) fp64; see `log_odds`."""
        return chances(self.log_odds(prompts, firsts, seconds))

    def log_odds(self, prompts: Sequence[Messages], firsts: Sequence[Answer], seconds: Sequence[Answer]) -> np.ndarray:
        """Log-odds that the response that stands first is the better one, (n, 2) fp64: as given, and the second one first.

        By all ranks together, which are given the same.

        Raises:
            BadRow: the chat template or the layout refuses a prompt or a response. UserError: as of `score`.
        """
        return self.score([self.encode(*row) for row in zip(prompts, firsts, seconds, strict=True)])

    def encode(self, prompt: Messages, first: Answer, second: Answer, ended: tuple[bool, bool] = (True, True)) -> PairOrders:
        """Two responses as they are judged. BadRow where the chat template or the layout refuses them, or they do not fit."""
        return PairOrders(
            *encode_orders(self.tokenizer, prompt, first, second, self.layout, max_length=self.max_length, ended=ended)
        )

    def score(self, pairs: Sequence[PairOrders], progress: str = "pairs") -> np.ndarray:
        """`log_odds` of encoded pairs; ranks share the work.

        Pairs of one prompt stand in one batch as far as they fit, which reads their context once, and both orders of a pair
        always do. What is read beside a pair depends on which pairs there are, not on their order, nor on which response of
        each is called the first: with all exchanged, the log-odds are the same to the bit, in the other order.

        Args:
            progress: the label of the progress bar; empty: none.

        Raises:
            UserError: one is not finite.
        """
        keys = [_key(pair) for pair in pairs]
        distinct = sorted(set(keys))
        found = dict(zip(distinct, self._read(distinct, progress), strict=True)) if pairs else {}
        turned = [key[1] != tuple(pair.given.response_ids) for key, pair in zip(keys, pairs, strict=True)]
        rows = [found[key][::-1] if turn else found[key] for key, turn in zip(keys, turned, strict=True)]
        scores = np.array(rows, dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(scores).all():
            count = int((~np.isfinite(scores)).any(1).sum())
            fix = "try `dtype` fp32, or another model"
            raise UserError(f"the model that compares responses gives {count} of {len(scores)} pairs no finite log-odds", fix)
        return scores

    def _read(self, keys: "Sequence[Key]", progress: str) -> list[np.ndarray]:
        """(2,) log-odds of each pair, in the order of its key."""
        prompts, longer = [key[0] for key in keys], [max(key[1:], key=len) for key in keys]
        # A pair takes the room of two rows.
        room = max(self.score_tokens // 2, 1)
        mine = map_rows_in_batches(
            prompts, longer, lambda rows: self._of_rows([keys[row] for row in rows]), room, progress, self.together
        )
        own = {row: values[:2] for row, values in mine.items()}
        merged = {row: values for share in distributed.gather_objects(own) for row, values in share.items()}
        return [merged[row] for row in range(len(keys))]

    def _of_rows(self, keys: "Sequence[Key]") -> Tensor:
        """(B, 2) fp32: the score at the last token of both orders of some pairs, in one forward."""
        prompts, orders = [key[0] for key in keys for _ in range(2)], [order for key in keys for order in key[1:]]
        batch = pad_responses(prompts, orders, self.tokenizer.pad_token_id).to(self.device)
        last = batch.response_mask.sum(1, keepdim=True) - 1
        found = response_token_rewards(self.model, batch).gather(1, last).view(-1, 2)
        # Of equal responses both orders are one text, and rounding is not to tell them apart.
        same = torch.tensor([key[1] == key[2] for key in keys], device=found.device)
        return torch.where(same[:, None], found[:, :1], found)


# What both orders begin with, and the rest of each; in the same order whichever response is called the first.
Key = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _key(pair: PairOrders) -> Key:
    one, other = sorted((tuple(pair.given.response_ids), tuple(pair.turned.response_ids)))
    return tuple(pair.given.prompt_ids), one, other


def pair_model_of(
    members: Members,
    *,
    model: nn.Module | None = None,
    max_length: int | None = None,
    device: torch.device | str = "cpu",
    score_tokens: int = 16384,
    together: bool = False,
) -> PairModel:
    """A member as it compares responses, and is stored.

    model: the member wrapped, if it is. max_length: tokens, as far as there are positions for them. The others: as of
    `PairModel`.

    Raises:
        UserError: it does not compare responses; or there are several.
    """
    names = ", ".join(members.paths)
    require(
        members.judges_pairs,
        f"{names} scores responses one by one, and does not compare them",
        "give a model that denserl train-rm --input pair has trained",
    )
    require(len(members.paths) == 1, f"{names}: models that compare responses are no ensemble", "give one of them")
    own = members.models[0]
    longest = min(filter(None, (max_length, positions_of(own.config), measured(own).longest)), default=UNBOUNDED)
    layout: Any = members.stored.pair_layout or "denserl"
    return PairModel(model or own, members.tokenizer, layout, longest, device, score_tokens, together)
