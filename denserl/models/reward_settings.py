"""The settings stored with a reward model that say how it is read: level, segmenter, aggregation, moments, place.

train-rm writes it into config.json; training, evaluation, best-of-n and the fit read it here.
"""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from denserl.data.pair_encoding import LAYOUTS
from denserl.errors import UserError
from denserl.models.folders import wrong_setting

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)

READ_AT = ("end_of_turn", "last_token")
CHOICES: dict[str, tuple[str, ...]] = {
    "read_at": READ_AT,
    "scores": ("logit",),
    "context_signs": ("none", "plus", "true"),
    "input": ("pair",),
    "pair_layout": LAYOUTS,
}
KEY = "segment_reward"
OF_SCORES = (KEY, "mean", "std")  # all that train-rm keeps in a reward model's config


class StoredSettings(NamedTuple):
    """What a reward model's config says; None where it says nothing, but for agg_func: avg, the published way."""

    sft_model: str | None  # where it is now, if it is a folder that is found; else as is stored
    sft_fingerprint: str | None  # precision:hash of its files, as they were when it cut the responses
    entropy_threshold: float | None
    segmenter: str | None  # step, or module:function of a user's own; None: entropy peaks
    agg_func: str | None
    read_at: str | None
    max_length: int | None  # of the sequences that it was trained on, in tokens
    max_prompt_length: int | None
    mean: float | None  # of the scores of whole responses
    std: float | None
    scores: str | None  # logit: of a step's success, as of models that are trained on labels; None: rewards
    step_separator: tuple[str, ...] | None  # of the segmenter step, as the next two
    step_pattern: str | None
    max_steps: int | None
    context_signs: str | None  # whether the labels of earlier steps stand in what the model reads (data/step_encoding.py)
    input: str | None  # pair: two responses in one text, of which it tells the better one; None: a response
    pair_layout: str | None  # how that text is written (data/pair_encoding.py)


def store_settings(config: "PreTrainedConfig", **settings: Any) -> None:
    """Write settings into a reward model's config, beside what it holds of its head."""
    setattr(config, KEY, {**(config.to_dict().get(KEY) or {}), **settings})


def sft_settings(sft_model: str, fingerprint: str, output_dir: str) -> dict[str, str]:
    """What is stored of the SFT model of the reward model that is saved in `output_dir`.

    A folder by its absolute path, and by the way to it from `output_dir`, which holds where both are moved together; a hub
    name as it is. fingerprint: precision:hash of its files.
    """
    if not Path(sft_model).is_dir():
        return {"sft_model": sft_model, "sft_fingerprint": fingerprint}
    whole = os.path.abspath(sft_model)
    return {"sft_model": whole, "sft_from_here": os.path.relpath(whole, output_dir), "sft_fingerprint": fingerprint}


def stored_settings(config: "PreTrainedConfig", path: str) -> StoredSettings:
    """The settings in the config of the reward model at `path`. UserError for one of another type than it should be."""
    return settings_in(config.to_dict(), path)


def settings_in(values: dict[str, Any], path: str) -> StoredSettings:
    """`stored_settings` of what a config.json holds."""
    nested = values.get(KEY) or {}
    if not isinstance(nested, dict):
        raise wrong_setting(path, KEY, nested, "an object")
    values = {"agg_func": "avg", **nested, "mean": values.get("mean"), "std": values.get("std")}
    for name in ("sft_model", "sft_from_here", "sft_fingerprint", "agg_func", "segmenter", "step_pattern", *CHOICES):
        if not isinstance(values.get(name), (str, type(None))):
            raise wrong_setting(path, name, values[name], "a text")
    for name in ("entropy_threshold", "mean", "std"):
        value = values.get(name)
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise wrong_setting(path, name, value, "a finite number")
    for name in ("max_length", "max_prompt_length", "max_steps"):
        if not (values.get(name) is None or (type(values[name]) is int and values[name] > 0)):
            raise wrong_setting(path, name, values[name], "a whole number above 0")
    separators = values.get("step_separator")
    if separators is not None and not (isinstance(separators, list) and all(type(x) is str and x for x in separators)):
        raise wrong_setting(path, "step_separator", separators, "a list of texts that are not empty")
    if (values.get("entropy_threshold") or 0) < 0:
        raise wrong_setting(path, "entropy_threshold", values["entropy_threshold"], "a number of nats >= 0")
    for name, known in CHOICES.items():
        if values.get(name) not in (*known, None):
            raise wrong_setting(path, name, values[name], f"one of {', '.join(known)}")
    values["step_separator"] = tuple(separators) if separators is not None else None
    values["sft_model"] = _present_place(values.get("sft_model"), values.get("sft_from_here"), path)
    return StoredSettings(*map(values.get, StoredSettings._fields))


def read_place(each: Sequence[StoredSettings], paths: Sequence[str], given: str | None = None) -> str:
    """Where the one score of a response is read, one of READ_AT, by reward models that are one source.

    end_of_turn: at the token that closes the response, where denserl and the paper's release train it. last_token: at the
    last token that the chat template writes, as stock classifiers read it; the two differ where a template writes more after
    the end of turn. A model that says neither was trained here if it has an entropy threshold, and elsewhere if it has none.

    Raises:
        UserError: the models are read at different places.
    """
    found = [s.read_at or ("last_token" if s.entropy_threshold is None else "end_of_turn") for s in each]
    if given is not None:
        for path, place in zip(paths, found, strict=True):
            if place != given:
                log.warning("%s: to be read at %s by its config; read at %s", path, place, given)
        return given
    if len(set(found)) > 1:
        shown = ", ".join(f"{path}: {place}" for path, place in zip(paths, found, strict=True))
        raise UserError(f"the reward models are read at different places ({shown})", "choose one with `read_at`")
    return found[0]


def _present_place(sft_model: str | None, from_here: str | None, path: str) -> str | None:
    """The stored path of the SFT model if it is there, else the way to it from the reward model's folder if that is there."""
    if sft_model is None or (os.path.isabs(sft_model) and Path(sft_model).is_dir()):
        return sft_model
    # A relative path that an earlier version stored is of some working folder, or written by hand, of the model's own.
    near = os.path.normpath(Path(path) / (from_here or sft_model))
    return near if Path(near).is_dir() else sft_model
