"""How a reward model is read: by the settings stored with it, unless options say otherwise, which is logged."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from denserl.data.chat import end_of_turn_id
from denserl.errors import UserError, require
from denserl.models.reward_settings import StoredSettings
from denserl.plugins import load_named
from denserl.segmentation import BANDIT_THRESHOLD, LEVELS, Segmenter, level_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def new_segmenter(
    level: str, threshold: float | None, segmenter: str | None, tokenizer: "PreTrainedTokenizerBase"
) -> Segmenter:
    """The segmenter that a reward model is trained with."""
    return _segmenter(LEVELS[level] if threshold is None else threshold, segmenter, tokenizer)


def choose_segmenter(
    each: Sequence[StoredSettings],
    paths: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    level: str | None = None,
    threshold: float | None = None,
    segmenter: str | None = None,
) -> Segmenter:
    """The segmenter stored with the reward models of one source, unless options ask for another, which is logged.

    A model whose config names no threshold, a classifier from elsewhere, gives one score a response: the bandit level.

    Args:
        level, threshold, segmenter: what is asked for; a level is the stored threshold where it is of that level.

    Raises:
        UserError: the models are of different thresholds or segmenters and none is asked for; or a stored segmenter, which is
            code, is not asked for by name.
    """
    if threshold is None and level is None:
        thresholds = [BANDIT_THRESHOLD if s.entropy_threshold is None else s.entropy_threshold for s in each]
        threshold = _agreed("entropy_threshold", "entropy thresholds", thresholds, paths)
    elif threshold is None:
        stored = {
            s.entropy_threshold for s in each if s.entropy_threshold is not None and level_of(s.entropy_threshold) == level
        }
        threshold = stored.pop() if len(stored) == 1 else LEVELS[level]
    if segmenter is None and threshold < BANDIT_THRESHOLD:
        own = _agreed("segmenter", "segmenters", [s.segmenter for s in each], paths)
        if own is not None:
            raise UserError(
                f"{', '.join(paths)}: trained with the segmenter {own}, which is code and is not run because a model names it",
                f"add `segmenter` {own} if you trust it",
            )
    chosen = _segmenter(threshold, segmenter, tokenizer)
    for stored, path in zip(each, paths, strict=True):
        if stored.entropy_threshold not in (None, chosen.threshold):
            log.warning("%s: trained at entropy threshold %g; read at %g", path, stored.entropy_threshold, chosen.threshold)
        if stored.entropy_threshold is not None and chosen.reads_entropy and stored.segmenter != segmenter:
            log.warning("%s: trained with segmenter %s; read with %s", path, stored.segmenter or "peak", chosen.name)
    return chosen


def choose_aggregation(stored: StoredSettings, paths: Sequence[str], given: str | None) -> str:
    """The aggregation the reward models were trained with, unless an option asks for another, which is logged."""
    if given not in (None, stored.agg_func):
        names = ", ".join(paths)
        log.warning("%s: trained with aggregation %s; rewards are aggregated with %s", names, stored.agg_func, given)
    return given or stored.agg_func


def require_stored(option: str, value: object, paths: Sequence[str]) -> None:
    """UserError unless an option gives the value, or the reward models' configs agree on it."""
    says = "its config does not say" if len(paths) == 1 else "their configs do not say, or do not agree on,"
    require(value is not None, f"{', '.join(paths)}: {says} the {option.replace('_', ' ')}", f"add `{option}`")


def after_the_turn(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of what the chat template writes after the token that ends the assistant's turn, such as a line break."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], tokenize=False
    )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return ids[len(ids) - ids[::-1].index(end_of_turn_id(tokenizer)) :]


def _segmenter(threshold: float, name: str | None, tokenizer: "PreTrainedTokenizerBase") -> Segmenter:
    if name is None:
        return Segmenter(threshold)
    return Segmenter(threshold, name, load_named(name, "segmenter"), _token_texts(tokenizer))


def _token_texts(tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[int]], list[str]]:
    return lambda ids: tokenizer.batch_decode([[i] for i in ids])


def _agreed(option: str, words: str, values: list, paths: Sequence[str]):
    """The value that all models share. UserError where they differ."""
    if len(set(values)) > 1:
        found = ", ".join(
            f"{path}: {value if value is not None else 'peak'}" for path, value in zip(paths, values, strict=True)
        )
        raise UserError(f"the reward models have different {words} ({found})", f"choose one with `{option}`")
    return values[0]
