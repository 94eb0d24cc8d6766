"""Reward normalisers: two straight lines in ln(place), one mean and one standard deviation, or moments of what has been paid;
and the published constants.

How the lines are fitted is in denserl/rewards/normalizer_fit.py, where fits of one's own are kept in fits.py, and how moments
run along in moments.py.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from denserl.errors import UserError
from denserl.ppo_utils.moments import Moments
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
        """The fit stored in a param.json (the package's, or `path`) under these five keys; thresholds compare as numbers.

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
                "fit one of your own: denserl fit-normalizer --reward_model RM_FOLDER --data PAIRS",
            )
        return cls(*checked_constants(entries[keys], f"{path}: {_show(keys)}"))

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


@dataclass(frozen=True)
class RunningNormalizer:
    """Normalise what is paid by the moments of all that has been paid: (x - mean) / std, or x / std (arXiv 2307.04964).

    It acts on numbers as they are paid (`assignment.payments`), the others of this file on scores. The moments are kept beside
    it (moments.RunningMoments).
    """

    centre: bool = True

    def __call__(self, paid: Tensor, moments: Moments) -> Tensor:
        """Any shape in, the same shape out, fp32."""
        mean, std = (moment.to(paid.device) for moment in moments)
        return ((paid.double() - mean if self.centre else paid.double()) / std).float()


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
            f"the normaliser file {path} does not exist{folder}", "give another file, or run denserl fit-normalizer"
        )
    params = _read_json(path)
    try:
        _flatten(params)
    except (AttributeError, TypeError, ValueError) as error:
        raise _not_a_normalizer_file(path, error) from error
    return params


@functools.cache
def published_names() -> tuple[str, ...]:
    """The names of the fits in the package, MODEL_TYPE/DATASET_TAG."""
    return tuple(dict.fromkeys("/".join(keys[:2]) for keys in _flatten(read_params(PACKAGED_PARAMS))))


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _not_a_normalizer_file(path, error) from error


def _not_a_normalizer_file(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is no normaliser file ({error}); expected model_type -> dataset tag -> method -> agg -> threshold -> "
        "[w_mu, w_sigma, b_mu, b_sigma]",
        "restore the file, or fit one of your own with denserl fit-normalizer",
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


def checked_constants(constants: Any, where: str) -> list[float]:
    """[w_mu, w_sigma, b_mu, b_sigma] as read from a file. UserError unless they are four finite numbers with b_sigma > 0."""
    numbers = isinstance(constants, list) and len(constants) == 4 and all(type(c) in (int, float) for c in constants)
    if not numbers or not all(map(math.isfinite, constants)) or constants[3] <= 0:
        raise UserError(
            f"{where}: found {constants}, expected [w_mu, w_sigma, b_mu, b_sigma], four finite numbers with b_sigma > 0",
            "fit the entry again with denserl fit-normalizer",
        )
    return constants


def _show(keys: tuple) -> str:
    return "/".join([*keys[:4], as_number(keys[4])])


def as_number(threshold: float) -> str:
    """All digits of a threshold, so that it is found again."""
    return repr(float(threshold)).removesuffix(".0")
