"""Reward normalisers: two straight lines in ln(place), or one mean and one standard deviation; and the file of fits.

How the lines are fitted is in denserl/rewards/normalizer_fit.py.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denserl.errors import UserError
from denserl.rewards.aggregation import valid_scores

PACKAGED_PARAMS = Path(__file__).with_name("param.json")
STD_FLOOR = 0.1


class NormalizerNotFound(UserError, KeyError):
    """No fit under the key that was asked for."""


@dataclass(frozen=True)
class LocationNormalizer:
    """Normalise a segment's reward by its place p = k / K: (r - Mean(p)) / Std(p) (arXiv 2501.02790; docs/numerics.md).

    Mean(p) = w_mu ln p + b_mu and Std(p) = w_sigma ln p + b_sigma. Std is floored at a tenth of its value at the end of the
    response, max(Std(p), 0.1 b_sigma): the published token-level lines turn negative for the first tokens of long responses
    and would flip the reward's sign.
    """

    w_mu: float
    w_sigma: float
    b_mu: float
    b_sigma: float

    @classmethod
    def load(
        cls,
        model_type: str,
        dataset_tag: str,
        segment_method: str,
        agg_func: str,
        threshold: float,
        path: str | Path | None = None,
    ) -> "LocationNormalizer":
        """The fit stored in param.json (the package's, or `path`) under these five keys; thresholds compare as numbers.

        Raises:
            NormalizerNotFound (a KeyError): no such entry; says what exists and the command that fits one.
            UserError: the file is missing or malformed, or the entry is not four finite numbers with b_sigma > 0.
        """
        path = Path(path or PACKAGED_PARAMS)
        keys = (str(model_type), str(dataset_tag), str(segment_method), str(agg_func), float(threshold))
        entries = _flatten(read_params(path))
        if keys not in entries:
            raise NormalizerNotFound(
                f"{path} has no normaliser for {_show(keys)}; it has: {'; '.join(map(_show, entries)) or 'none'}",
                f"denserl fit-normalizer --reward_model RM_FOLDER --data PAIRS --model_type {model_type} "
                f"--dataset_tag {dataset_tag} --params {path}, or another `fit_tag`",
            )
        return cls(*_checked(entries[keys], f"{path}: {_show(keys)}"))

    def mean_std(self, log_place: Tensor) -> tuple[Tensor, Tensor]:
        """Mean(p) and the floored Std(p) at places in (0, 1], both shaped like `log_place`, their logarithms."""
        std = (self.w_sigma * log_place).add_(self.b_sigma).clamp_(min=STD_FLOOR * self.b_sigma)
        return (self.w_mu * log_place).add_(self.b_mu), std

    def __call__(self, segment_scores: Tensor, counts: Tensor) -> Tensor:
        """(B, K_max) segment scores of responses with `counts` (B,) segments -> (B, K_max) fp32, 0 past a row's K."""
        mean, std = self.mean_std(log_places(segment_scores.shape[1], counts))
        return valid_scores((segment_scores.float() - mean) / std, counts)


@dataclass(frozen=True)
class ScalarNormalizer:
    """Normalise by the mean and standard deviation of responses' scores: (r - mean) / std. ValueError unless std > 0."""

    mean: float
    std: float

    def __post_init__(self):
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"mean {self.mean}, std {self.std}: both must be finite and std > 0")

    def __call__(self, segment_scores: Tensor, counts: Tensor) -> Tensor:
        """(B, K_max) -> (B, K_max) fp32, 0 past a row's K."""
        return valid_scores((segment_scores.float() - self.mean) / self.std, counts)

    def changes(self, changes: Tensor, counts: Tensor) -> Tensor:
        """What segments change in the normalised score of a response, given what they change in the score itself.

        The score of a response's first segments is normalised like that of a whole one, (m_k - mean) / std, so that the first
        change is (m_1 - mean) / std, and any other d_k / std. (B, K_max) -> (B, K_max) fp32, 0 past a row's K.
        """
        first = torch.arange(changes.shape[1], device=changes.device) == 0
        return valid_scores((changes.float() - self.mean * first) / self.std, counts)


def log_places(width: int, counts: Tensor) -> Tensor:
    """(B, width) fp32: ln p = ln k - ln K of slot k = 1..width, above 0 past a row's K."""
    # B + width logarithms instead of B x width; log1p(k - 1), since on a CPU log would wake all threads for a hundred numbers.
    log_k = torch.arange(width, device=counts.device, dtype=torch.float32).log1p()
    return log_k - (counts[:, None] - 1.0).log1p()


def read_params(path: Path) -> dict:
    """The nested dictionary of a param.json. UserError when it is missing or not JSON of the right depth."""
    if not path.is_file():
        folder = "; there is a folder of that name" if path.exists() else ""
        raise UserError(
            f"the normaliser file {path} does not exist{folder}", "give another `params`, or run denserl fit-normalizer"
        )
    params = _read_json(path)
    try:
        _flatten(params)
    except (AttributeError, TypeError, ValueError) as error:
        raise _not_a_normalizer_file(path, error) from error
    return params


def check_writable(path: Path) -> None:
    """UserError unless a fit can be stored in the file, so that this is known before the fit and not after it."""
    fix = "give another file with `params`"
    if path.exists():
        read_params(path)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"cannot write {path}: {above} is a file; expected a folder", fix)
    if not os.access(above, os.W_OK):
        raise UserError(f"cannot write {path}: {above} is not writable", fix)


def store_fit(path: Path, keys: tuple[str, str, str, str, float], constants: list[float], record: dict) -> None:
    """Write one fit into a param.json, and how it came about into `<name>.fits.json` beside it; both are replaced whole.

    Args:
        keys: model_type, dataset tag, segment method, agg func, threshold; an entry under an equal threshold is replaced.
        constants: [w_mu, w_sigma, b_mu, b_sigma].
        record: R^2, counts, date and the like.

    Raises:
        UserError: the file is there but malformed, or cannot be written.
    """
    params = read_params(path) if path.exists() else {}
    *names, threshold = keys
    level = params
    for name in names:
        level = level.setdefault(name, {})
    for same in [key for key in level if float(key) == threshold]:
        del level[same]
    level[_number(threshold)] = [round(c, 6) for c in constants]
    sidecar = path.with_suffix(".fits.json")
    records = _read_records(sidecar) if sidecar.exists() else {}
    records[_show(keys)] = record
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(sidecar, records)
        _replace(path, params)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "give another file with `params`") from error


def _replace(path: Path, content: dict) -> None:
    """Write beside the file, then rename over it, so that a reader never sees half of it."""
    text = json.dumps(content, indent=2)
    # Lists of numbers stay on one line, as a person would write the table. No string of JSON holds a line break.
    text = re.sub(r"\[\n\s+([^\[\]]+?)\n\s*\]", lambda match: "[" + re.sub(r"\s+", " ", match.group(1)) + "]", text)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(text + "\n", encoding="utf-8")
    os.replace(aside, path)


def _read_records(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})", "delete it; it only records how past fits came about") from error


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _not_a_normalizer_file(path, error) from error


def _not_a_normalizer_file(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is no normaliser file ({error}); expected model_type -> dataset tag -> method -> agg -> threshold -> "
        "[w_mu, w_sigma, b_mu, b_sigma]",
        "restore the file, or start a new one with denserl fit-normalizer --params NEW_FILE",
    )


def _flatten(params: dict) -> dict[tuple, list]:
    return {
        (model_type, tag, method, agg, float(threshold)): constants
        for model_type, tags in params.items()
        for tag, methods in tags.items()
        for method, aggs in methods.items()
        for agg, thresholds in aggs.items()
        for threshold, constants in thresholds.items()
    }


def _checked(constants: Any, where: str) -> list[float]:
    numbers = isinstance(constants, list) and len(constants) == 4 and all(type(c) in (int, float) for c in constants)
    if not numbers or not all(map(math.isfinite, constants)) or constants[3] <= 0:
        raise UserError(
            f"{where}: found {constants}, expected [w_mu, w_sigma, b_mu, b_sigma], four finite numbers with b_sigma > 0",
            "fit the entry again with denserl fit-normalizer",
        )
    return constants


def _show(keys: tuple) -> str:
    return "/".join([*keys[:4], _number(keys[4])])


def _number(threshold: float) -> str:
    """All digits of a threshold, so that it is found again."""
    return repr(float(threshold)).removesuffix(".0")
