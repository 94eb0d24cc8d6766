"""How a reward model is read: by the settings stored with it, unless options say otherwise, which is logged."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from denserl.data.chat import as_text, end_of_turn_id
from denserl.data.fingerprints import file_fingerprint
from denserl.errors import UserError, require
from denserl.levels import BANDIT_THRESHOLD, LEVELS, level_of
from denserl.models.loading import local_folder
from denserl.models.reward_settings import StoredSettings
from denserl.plugins import load_named
from denserl.rewards.config import StepConfig
from denserl.segmentation import Segmenter
from denserl.steps import MOST, StepRule, as_typed, step_rule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PEAK = "peak"  # the segmenter that cuts at entropy peaks
STEP = "step"  # the one that cuts the text into steps
AS_STORED = StepConfig()


def new_segmenter(
    level: str,
    threshold: float | None,
    segmenter: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    steps: StepConfig = AS_STORED,
) -> Segmenter:
    """The segmenter that a reward model is trained with. steps: the options of steps."""
    threshold = LEVELS[level] if threshold is None else threshold
    return _segmenter(threshold, segmenter, tokenizer, rule_of(steps, segmenter or PEAK))


def choose_segmenter(
    each: Sequence[StoredSettings],
    paths: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    level: str | None = None,
    threshold: float | None = None,
    segmenter: str | None = None,
    trusted: Sequence[str | None] = (),
    steps: StepConfig = AS_STORED,
) -> Segmenter:
    """The segmenter stored with the reward models of one source, unless options ask for another, which is logged.

    A model whose config names no threshold, a classifier from elsewhere, gives one score a response: the bandit level.

    Args:
        level, threshold, segmenter: what is asked for; a level is the stored threshold where it is of that level. The
            segmenter `peak` cuts at entropy peaks, whatever is stored.
        trusted: names of segmenters that may run because a model names them.
        steps: options of steps; what they do not say is as stored.

    Raises:
        UserError: the models are of different thresholds or segmenters and none is asked for; what is asked for contradicts
            itself; or a stored segmenter, which is code, is not asked for by name.
    """
    check_level(level, threshold)
    if threshold is None:
        thresholds = [stored_threshold(settings) for settings in each]
        stored = [found for found in thresholds if level in (None, level_of(found))]
        own = [path for path, found in zip(paths, thresholds, strict=True) if level in (None, level_of(found))]
        threshold = _agreed("entropy_threshold", "entropy thresholds", stored, own) if stored else LEVELS[level]
    if segmenter is None and threshold < BANDIT_THRESHOLD:
        segmenter = _agreed("segmenter", "segmenters", [s.segmenter for s in each], paths)
        check_trusted(each, paths, trusted)
    chosen = _segmenter(threshold, segmenter, tokenizer, rule_of(steps, segmenter or PEAK, each, paths))
    for settings, path in zip(each, paths, strict=True):
        if settings.entropy_threshold not in (None, chosen.threshold):
            log.warning("%s: trained at entropy threshold %g; read at %g", path, settings.entropy_threshold, chosen.threshold)
        if settings.entropy_threshold is not None and not chosen.cuts_nothing and (settings.segmenter or PEAK) != chosen.name:
            log.warning("%s: trained with segmenter %s; read with %s", path, settings.segmenter or PEAK, chosen.name)
    return chosen


def stored_threshold(settings: StoredSettings) -> float:
    """The entropy threshold that says at which level a reward model is read; steps are segments, whatever the entropies."""
    if settings.entropy_threshold is not None:
        return settings.entropy_threshold
    return LEVELS["segment"] if settings.segmenter == STEP else BANDIT_THRESHOLD


def rule_of(
    steps: StepConfig, segmenter: str, each: Sequence[StoredSettings] = (), paths: Sequence[str] = ()
) -> StepRule | None:
    """How steps are cut: as options say, else as is stored with the reward models; None where another segmenter cuts.

    UserError for options of steps with another segmenter; see `chosen_rule`.
    """
    given = [name for name in ("step_separator", "step_pattern", "max_steps", "skip_cut_step") if getattr(steps, name)]
    if segmenter != STEP:
        shown = f"`{given[0]}` has no effect without `segmenter` {STEP}" if given else ""
        require(not given, shown, f"leave it out, or add `segmenter` {STEP}")
        return None
    return chosen_rule(steps, each, paths)


def chosen_rule(steps: StepConfig, each: Sequence[StoredSettings] = (), paths: Sequence[str] = ()) -> StepRule:
    """How steps are cut: as options say, else as is stored with the reward models.

    Raises:
        UserError: what options leave open differs between the models; or a stored pattern, which may keep a program busy for
            ever, is not asked for.
    """
    separators, pattern = steps.step_separator, steps.step_pattern
    if each and separators is None and pattern is None:
        separators = _agreed("step_separator", "step separators", [s.step_separator for s in each], paths)
        for settings, path in zip(each, paths, strict=True):
            require(
                settings.step_pattern is None,
                f"{path}: trained with the `step_pattern` {settings.step_pattern!r}, which is not run because a model names it",
                "add it with `step_pattern` if you trust it, or give `step_separator`",
            )
    most = steps.max_steps or (each and _agreed("max_steps", "longest lists of steps", [s.max_steps for s in each], paths))
    return step_rule(separators and [as_typed(text) for text in separators], pattern, most or MOST, not steps.skip_cut_step)


def cut_settings(segmenter: Segmenter) -> dict[str, Any]:
    """What is stored with a reward model, beside the threshold, of how its responses are cut; nothing of entropy peaks."""
    if segmenter.rule is None:
        return {"segmenter": segmenter.name} if segmenter.function else {}
    rule = segmenter.rule
    where = {"step_pattern": rule.pattern} if rule.pattern else {"step_separator": list(rule.separators)}
    return {"segmenter": STEP, **where, "max_steps": rule.most}


def check_level(level: str | None, threshold: float | None) -> None:
    """UserError where a level and a threshold are asked for that contradict one another."""
    if level is not None and threshold is not None and level_of(threshold) != level:
        raise UserError(f"`reward_level` {level} with `entropy_threshold` {threshold:g}", "give one of the two")


def check_trusted(each: Sequence[StoredSettings], paths: Sequence[str], trusted: Sequence[str | None]) -> None:
    """UserError where a model names a segmenter, which is code, that the user has not named."""
    for settings, path in zip(each, paths, strict=True):
        own = settings.segmenter
        require(
            own in (None, PEAK, STEP, *trusted),
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


def entropy_model(
    each: Sequence[StoredSettings], paths: Sequence[str], stored: str | None, given: str | None, segmenter: Segmenter
) -> str | None:
    """`choose_sft_model`, where the segmenter cuts by entropies; else None, and UserError where an option names one."""
    if segmenter.reads_entropy:
        return choose_sft_model(each, paths, stored, given)
    why, other = "where steps are cut", "another `segmenter`"
    if segmenter.cuts_nothing:
        why, other = "at the bandit level: nothing is cut", "an `entropy_threshold`"
    require(given is None, f"`sft_model` {given} has no effect {why}", f"leave `sft_model` out, or give {other}")
    return None


def check_sft_model(settings: StoredSettings, path: str, fix: str = "give it with `sft_model`, or correct it there") -> None:
    """UserError unless the SFT model that a reward model names is there, and where a fingerprint is known, the very same."""
    named, known = settings.sft_model, settings.sft_fingerprint
    found = f"{path}/config.json names {named} as the SFT model whose entropies cut responses (sft_model)"
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


def _segmenter(threshold: float, name: str | None, tokenizer: "PreTrainedTokenizerBase", rule: StepRule | None) -> Segmenter:
    if name in (None, PEAK):
        return Segmenter(threshold)
    require(
        threshold < BANDIT_THRESHOLD,
        f"`segmenter` {name} has no effect at the bandit level, which cuts nothing",
        "leave `segmenter` out, or choose another level",
    )
    if rule is not None:
        return Segmenter(threshold, STEP, rule=rule, decode=response_text(tokenizer))
    return Segmenter(threshold, name, load_named(name, "segmenter"), _token_texts(tokenizer))


def _token_texts(tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[int]], list[str]]:
    return lambda ids: tokenizer.batch_decode([[i] for i in ids])


def response_text(tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[int]], str]:
    """Token ids -> text as that of responses is made."""
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)


def _agreed(option: str, words: str, values: list, paths: Sequence[str]):
    """The value that all models share. UserError where they differ."""
    if len(set(values)) > 1:
        usual = PEAK if option == "segmenter" else "the usual ones"
        found = ", ".join(f"{path}: {usual if value is None else value}" for path, value in zip(paths, values, strict=True))
        raise UserError(f"the reward models have different {words} ({found})", f"choose one with `{option}`")
    return values[0]
