"""How a reward model is read: by the settings stored with it, unless options say otherwise, which is logged."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from denserl.data.chat import as_text, end_of_turn_id
from denserl.data.reference_cache import file_fingerprint
from denserl.errors import UserError, require
from denserl.models.loading import local_folder
from denserl.models.reward_settings import StoredSettings
from denserl.plugins import load_named
from denserl.segmentation import BANDIT_THRESHOLD, LEVELS, Segmenter, level_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PEAK = "peak"  # the segmenter that cuts at entropy peaks


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
    trusted: Sequence[str | None] = (),
) -> Segmenter:
    """The segmenter stored with the reward models of one source, unless options ask for another, which is logged.

    A model whose config names no threshold, a classifier from elsewhere, gives one score a response: the bandit level.

    Args:
        level, threshold, segmenter: what is asked for; a level is the stored threshold where it is of that level. The
            segmenter `peak` cuts at entropy peaks, whatever is stored.
        trusted: names of segmenters that may run because a model names them.

    Raises:
        UserError: the models are of different thresholds or segmenters and none is asked for; what is asked for contradicts
            itself; or a stored segmenter, which is code, is not asked for by name.
    """
    if level is not None and threshold is not None and level_of(threshold) != level:
        raise UserError(f"`reward_level` {level} with `entropy_threshold` {threshold:g}", "give one of the two")
    if threshold is None:
        thresholds = [BANDIT_THRESHOLD if s.entropy_threshold is None else s.entropy_threshold for s in each]
        stored = [found for found in thresholds if level in (None, level_of(found))]
        own = [path for path, found in zip(paths, thresholds, strict=True) if level in (None, level_of(found))]
        threshold = _agreed("entropy_threshold", "entropy thresholds", stored, own) if stored else LEVELS[level]
    if segmenter is None and threshold < BANDIT_THRESHOLD:
        segmenter = _agreed("segmenter", "segmenters", [s.segmenter for s in each], paths)
        check_trusted(each, paths, trusted)
    chosen = _segmenter(threshold, segmenter, tokenizer)
    for settings, path in zip(each, paths, strict=True):
        if settings.entropy_threshold not in (None, chosen.threshold):
            log.warning("%s: trained at entropy threshold %g; read at %g", path, settings.entropy_threshold, chosen.threshold)
        if settings.entropy_threshold is not None and chosen.reads_entropy and (settings.segmenter or PEAK) != chosen.name:
            log.warning("%s: trained with segmenter %s; read with %s", path, settings.segmenter or PEAK, chosen.name)
    return chosen


def check_trusted(each: Sequence[StoredSettings], paths: Sequence[str], trusted: Sequence[str | None]) -> None:
    """UserError where a model names a segmenter, which is code, that the user has not named."""
    for settings, path in zip(each, paths, strict=True):
        own = settings.segmenter
        require(
            own is None or own in trusted,
            f"{path}: trained with the segmenter {own}, which is code and is not run because a model names it",
            f"add `segmenter` {own} if you trust it, or `segmenter` {PEAK} to cut at entropy peaks",
        )


def choose_aggregation(stored: StoredSettings, paths: Sequence[str], given: str | None) -> str:
    """The aggregation the reward models were trained with, unless an option asks for another, which is logged."""
    if given not in (None, stored.agg_func):
        names = ", ".join(paths)
        log.warning("%s: trained with aggregation %s; rewards are aggregated with %s", names, stored.agg_func, given)
    return given or stored.agg_func


def sft_fingerprint(sft_model: str, dtype: str) -> str:
    """precision:hash of the SFT model's files, which is stored with the reward models whose responses it cuts."""
    return f"{dtype}:{file_fingerprint(local_folder(sft_model), dtype)[:32]}"


def choose_sft_model(each: Sequence[StoredSettings], paths: Sequence[str], stored: str | None, given: str | None) -> str:
    """The SFT model that the reward models were trained with, unless an option asks for another, which is logged.

    stored: what the models agree on.

    Raises:
        UserError: neither the models nor an option say it; the stored one is not there, or has other weights.
    """
    if given is None:
        require_stored("sft_model", stored, paths)
    for settings, path in zip(each, paths, strict=True):
        if given is None:
            check_sft_model(settings, path)
        elif settings.sft_fingerprint and not _is_sft_model(given, settings.sft_fingerprint):
            log.warning("%s: trained with an SFT model of other weights than %s", path, given)
    return given or stored


def check_sft_model(settings: StoredSettings, path: str) -> None:
    """UserError unless the SFT model that a reward model names is there, and where a fingerprint is known, the very same."""
    named, known = settings.sft_model, settings.sft_fingerprint
    found = f"{path}/config.json names {named} as the SFT model whose entropies cut responses (sft_model)"
    fix = "give it with `sft_model`, or correct it there"
    try:
        local_folder(named)
    except UserError as error:
        raise UserError(f"{found}: {error.found}", fix) from error
    if known is None and os.path.exists(named) and not os.path.isabs(named):
        log.warning("%s, which is found in the working folder; whether it is the same model is not known", found)
    elif known is not None and not _is_sft_model(named, known):
        raise UserError(f"{found}; it is there, with other weights than those of the training", fix)


def _is_sft_model(path: str, fingerprint: str) -> bool:
    return sft_fingerprint(path, fingerprint.partition(":")[0]) == fingerprint


def require_stored(option: str, value: object, paths: Sequence[str]) -> None:
    """UserError unless an option gives the value, or the reward models' configs agree on it."""
    says = "its config does not say" if len(paths) == 1 else "their configs do not say, or do not agree on,"
    require(value is not None, f"{', '.join(paths)}: {says} the {option.replace('_', ' ')}", f"add `{option}`")


def after_the_turn(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of what the chat template writes after the token that ends the assistant's turn, such as a line break."""
    text = as_text(tokenizer, [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return ids[len(ids) - ids[::-1].index(end_of_turn_id(tokenizer)) :]


def _segmenter(threshold: float, name: str | None, tokenizer: "PreTrainedTokenizerBase") -> Segmenter:
    if name in (None, PEAK):
        return Segmenter(threshold)
    require(
        threshold < BANDIT_THRESHOLD,
        f"`segmenter` {name} has no effect at the bandit level, which cuts nothing",
        "leave `segmenter` out, or choose another level",
    )
    return Segmenter(threshold, name, load_named(name, "segmenter"), _token_texts(tokenizer))


def _token_texts(tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[int]], list[str]]:
    return lambda ids: tokenizer.batch_decode([[i] for i in ids])


def _agreed(option: str, words: str, values: list, paths: Sequence[str]):
    """The value that all models share. UserError where they differ."""
    if len(set(values)) > 1:
        found = ", ".join(f"{path}: {PEAK if value is None else value}" for path, value in zip(paths, values, strict=True))
        raise UserError(f"the reward models have different {words} ({found})", f"choose one with `{option}`")
    return values[0]
