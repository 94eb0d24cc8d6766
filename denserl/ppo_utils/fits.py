"""The fits of a reward model's location normaliser, in one file beside it: constants, and how well they fit.

How the lines are fitted is in denserl/rewards/normalizer_fit.py; the published constants are in param.json (normalizer.py).
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from denserl import distributed
from denserl.data.fingerprints import file_fingerprint
from denserl.errors import UserError
from denserl.files import replace_whole
from denserl.models.loading import local_folder
from denserl.ppo_utils.normalizer import (
    PACKAGED_PARAMS,
    LocationNormalizer,
    NormalizerNotFound,
    as_number,
    checked_constants,
    published_names,
)

log = logging.getLogger(__name__)

FITS = "fits.json"
AGAIN = "fit again with denserl fit-normalizer"


def fit_key(segment_method: str, agg_func: str, threshold: float) -> str:
    """How rewards are cut and aggregated, as a fit is found again: `peak/avg/1.75`."""
    return f"{segment_method}/{agg_func}/{as_number(threshold)}"


def fits_beside(reward_models: Sequence[str]) -> Path | None:
    """The file of fits in a reward model's folder; None of an ensemble or of a name on the hub, which have no folder."""
    (first, *others) = map(Path, reward_models)
    return first / FITS if first.is_dir() and not others else None


def choose_fit(
    given: str | None, reward_models: Sequence[str], segment_method: str, agg_func: str, threshold: float
) -> LocationNormalizer:
    """The normaliser by a fit: a file's, a published one by name (MODEL_TYPE/DATASET_TAG), by default the one beside the model.

    What is known of its quality is logged where that is bad.

    Raises:
        NormalizerNotFound: there is no such fit; says what there is, and the command that makes one.
        UserError: the file is malformed.
    """
    key, names = (segment_method, agg_func, threshold), " ".join(reward_models)
    path = fits_beside(reward_models) if given is None else Path(given)
    fix = f"denserl fit-normalizer --reward_model {names} --data PAIRS, or `normalizer` none"
    if given in published_names():
        model_type, dataset_tag = given.split("/")
        return LocationNormalizer.load(model_type, dataset_tag, *key)
    if path is None:
        raise NormalizerNotFound(
            f"{names}: the location normaliser needs a fit, and only a single model's folder has one beside it",
            f"add `fit` FILE, as written by {fix}; or `fit` with a published one: {', '.join(published_names())}",
        )
    if not path.is_file():
        folder = "; there is a folder of that name" if path.exists() else ""
        known = f"; published fits are {', '.join(published_names())}" if given else ""
        raise NormalizerNotFound(f"the location normaliser needs a fit, and {path} does not exist{folder}{known}", fix)
    fits = read_fits(path)
    if fit_key(*key) not in fits:
        raise NormalizerNotFound(f"{path} has no fit for {fit_key(*key)}; it has: {', '.join(fits) or 'none'}", fix)
    fit = fits[fit_key(*key)]
    check_weights(fit, reward_models, path, asked_for=given is not None)
    if poor := worse_than_constants(fit):
        log.warning("%s, %s: %s", path, fit_key(*key), poor)
    return LocationNormalizer(*checked_constants(fit.get("constants"), f"{path}: {fit_key(*key)}"))


def fingerprints(reward_models: Sequence[str], dtype: str) -> list[str]:
    """precision:hash of each model's files."""
    return [f"{dtype}:{file_fingerprint(local_folder(path), dtype)[:32]}" for path in reward_models]


def check_weights(fit: dict[str, Any], reward_models: Sequence[str], path: Path, asked_for: bool) -> None:
    """UserError where a fit that was found beside a model is of other weights; logged of one that was asked for by its file.

    Rank 0 looks, for all.
    """
    known = fit.get("fingerprints")
    if distributed.rank() > 0 or not known or fingerprints(reward_models, known[0].partition(":")[0]) == known:
        return
    found = f"{path}: the fit is of other weights than {' '.join(reward_models)} has now"
    if not asked_for:
        raise UserError(found, f"{AGAIN} `reward_model` {reward_models[0]}, or name the file with `fit`", one_rank=True)
    log.warning("%s", found)


def worse_than_constants(fit: dict[str, Any]) -> str:
    """What is wrong with a fit whose lines explain their points worse than constants would, in words; empty if nothing."""
    found = {name: fit.get(f"r2_{name}") for name in ("mean", "std")}
    poor = {name: r2 for name, r2 in found.items() if isinstance(r2, (int, float)) and r2 < 0}
    if not poor:
        return ""
    shown = " and ".join(f"{name} (R^2 {r2:.3f})" for name, r2 in poor.items())
    return (
        f"the fitted {'lines' if len(poor) > 1 else 'line'} of the {shown} fit worse than a constant: rewards do not depend on "
        "the place as this normaliser has it. Fit more pairs, without places of few rewards (`smallest_group` 30), or use no "
        "fit in PPO: the default `assignment` difference_end, or `normalizer` none"
    )


def read_fits(path: Path) -> dict[str, dict]:
    """The fits in a file, by `fit_key`. UserError where it holds something else."""
    try:
        fits = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _no_fits(path, str(error)) from error
    if not isinstance(fits, dict) or not all(isinstance(fit, dict) for fit in fits.values()):
        raise _no_fits(path, "expected an object of objects")
    if fits and not any("constants" in fit for fit in fits.values()):
        raise _no_fits(path, "no entry has constants; a param.json of version 0.1 is none")
    return fits


def check_writable(path: Path) -> None:
    """UserError unless a fit can be stored in the file, so that this is known before the fit and not after it."""
    fix = "give another file with `fit`"
    if path.resolve() == PACKAGED_PARAMS.resolve():
        raise UserError(f"{path} holds the published constants, which are not written to", fix)
    if path.exists():
        read_fits(path)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"cannot write {path}: {above} is a file; expected a folder", fix)
    if not os.access(above, os.W_OK):
        raise UserError(f"cannot write {path}: {above} is not writable", fix)


def store_fit(path: Path, key: str, fit: dict[str, Any]) -> None:
    """Write one fit, in the place of one under the same key; the file is replaced whole.

    fit: constants [w_mu, w_sigma, b_mu, b_sigma], R^2, counts, date and the like.

    Raises:
        UserError: the file is there but malformed, or cannot be written.
    """
    fits = read_fits(path) if path.exists() else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, json.dumps({**fits, key: fit}, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "give another file with `fit`") from error


def _no_fits(path: Path, why: str) -> UserError:
    return UserError(f"{path} is no file of fits ({why})", f"{AGAIN}, or give another file with `fit`")
