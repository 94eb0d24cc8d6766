"""Several reward models score the same pairs, each those that it has not seen: what strengths are made of.

What is made of the scores is in data/strength_file.py and strength.py. Source: arXiv 2401.06080.
"""

import gc
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from datasets import Dataset

from denserl import distributed
from denserl.config import ModelSourceConfig
from denserl.data.bad_rows import BadRow
from denserl.data.fingerprints import reading_fingerprint, rows_fingerprint
from denserl.data.schemas import SIDES
from denserl.errors import UserError, require
from denserl.models.loading import load_config, local_folder
from denserl.models.reward_settings import stored_settings
from denserl.rewards.members import read_members
from denserl.rewards.sources.pair_model import PairModel

log = logging.getLogger(__name__)

_READ_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model")


class Scorer(Protocol):
    """What scores single responses, such as `RewardScorer`."""

    def encode(self, prompt: list[dict], response: Any) -> Any: ...

    def score(self, encoded: Sequence) -> np.ndarray: ...


class Voter(NamedTuple):
    """A reward model and the pairs that it has not seen."""

    path: str
    may_score: np.ndarray  # (N,) bool


class Votes(NamedTuple):
    """The scores of N pairs by M members on one scale, (M, N) fp64; NaN where a member has no say."""

    chosen: np.ndarray
    rejected: np.ndarray
    voters: list[Voter]
    stds: list[float]  # by which each member's own scores are divided
    are_stored: list[bool]  # whether that stands in its config; else it is of these scores
    unit: float  # what is then multiplied with all of them


def measure_strength(
    models: Sequence[str],
    pairs: Dataset,
    load: Callable[[str], Scorer | PairModel],
    source: ModelSourceConfig,
    dtype: str = "fp32",
    keep: Path | None = None,
    how: str = "",
) -> Votes:
    """The members' scores of the pairs, one member in memory at a time; ranks share the work.

    A member's scores are divided by their std, as its training stored it, or else the one over the pairs that it scores, and
    multiplied by the members' mean std: no member counts for more because its scores are larger, and means have the size of
    a usual difference of scores. What compares two responses is asked in both orders, and of its mean log-odds l the
    responses have l / 2 and -l / 2.

    Args:
        models: folders or hub names; a folder of several members stands for these, each of which scores, where they were
            trained with folds, the pairs that it has not seen.
        pairs: rows as `load_preferences` gives them.
        load: path -> the member, on its device. source, dtype: how it is loaded.
        keep: folder of each member's scores, which are found there when the same are asked for again; of rank 0.
        how: what else the scores depend on, for that.

    Raises:
        UserError: a model cannot be loaded or a pair not written for it, or no member may score a pair.
    """
    voters = voters_of(models, pairs)
    stored = [_stored_std(voter.path, source) for voter in voters]
    texts = pairs.select_columns(["prompt", *SIDES])
    each = np.stack([_scores_of(voter, pairs, texts, load, source, dtype, keep, how) for voter in voters])
    stds = [float(np.nanstd(scores)) if std is None else std for std, scores in zip(stored, each, strict=True)]
    for voter, std, known in zip(voters, stds, stored, strict=True):
        require(std > 0, f"{voter.path}: all of its scores are equal, and say nothing of pairs", "leave it out")
        if known is None and len(voters) > 1:
            log.info("%s: its config has no std of its scores; that of these is %.4g", voter.path, std)
    unit = float(np.mean(stds))
    scaled = each / np.array(stds)[:, None, None] * unit
    return Votes(scaled[:, 0], scaled[:, 1], voters, stds, [std is not None for std in stored], unit)


def voters_of(models: Sequence[str], pairs: Dataset) -> list[Voter]:
    """The members that the models are, and what each may score. UserError where none may score a pair, or one stands twice."""
    voters = []
    for model in models:
        members = read_members(model)
        if members is None:
            voters.append(Voter(model, np.ones(len(pairs), dtype=bool)))
        else:
            may = members.may_score(pairs["prompt"])
            voters += [Voter(str(folder), row) for folder, row in zip(members.folders, may, strict=True)]
    paths = [os.path.realpath(voter.path) for voter in voters]
    twice = next((path for number, path in enumerate(paths) if path in paths[:number]), None)
    require(twice is None, f"{twice} stands twice among the models, and its votes would count double", "name each once")
    unseen = np.flatnonzero(~np.any([voter.may_score for voter in voters], axis=0))
    require(
        not len(unseen),
        f"{len(unseen)} of {len(pairs)} pairs, the first {len(unseen) and pairs[int(unseen[0])]['place']}, are of folds that "
        f"all members of {', '.join(models)} were trained on",
        "train as many members as there are folds, or more, or give models that have not seen these pairs",
    )
    silent = [voter.path for voter in voters if not voter.may_score.any()]
    if silent:
        log.info("%s: trained on all folds that these pairs are of, and not asked", ", ".join(silent))
    return [voter for voter in voters if voter.may_score.any()]


def _scores_of(
    voter: Voter,
    pairs: Dataset,
    texts: Dataset,
    load: Callable[[str], Scorer | PairModel],
    source: ModelSourceConfig,
    dtype: str,
    keep: Path | None,
    how: str,
) -> np.ndarray:
    """(2, N) scores as the member gives them, of chosen and rejected responses; NaN of pairs that it has seen."""
    numbers, found = np.flatnonzero(voter.may_score), np.full((len(SIDES), len(pairs)), np.nan)
    file, known = None, None
    if keep is not None and distributed.rank() == 0:
        file = keep / f"{_fingerprint(voter.path, texts.select(numbers), source, dtype, how)}.npy"
        known = np.load(file, allow_pickle=False) if file.is_file() else None
    known = distributed.gather_objects(known)[0]
    if known is not None:
        log.info("%s: its scores are found in %s", voter.path, keep)
        found[:, numbers] = known
        return found
    scores = _ask(load(voter.path), pairs.select(numbers))
    # Not two members at a time on the device.
    gc.collect()
    if file is not None:
        _write(file, scores)
    found[:, numbers] = scores
    return found


def _ask(member: Scorer | PairModel, pairs: Dataset) -> np.ndarray:
    """(2, n) scores of chosen and rejected responses."""
    encoded = []
    for pair in pairs:
        try:
            if isinstance(member, PairModel):
                encoded.append(member.encode(pair["prompt"], pair["chosen"], pair["rejected"]))
            else:
                encoded += [member.encode(pair["prompt"], pair[side]) for side in SIDES]
        except BadRow as error:
            raise UserError(f"{pair['place']}: {error}", error.fix or "leave the row out") from error
    scores = member.score(encoded)
    if isinstance(member, PairModel):
        half = (scores[:, 0] - scores[:, 1]) / 4
        return np.stack([half, -half])
    return scores.reshape(-1, len(SIDES)).T


def _stored_std(path: str, source: ModelSourceConfig) -> float | None:
    """The std of a member's scores of responses as its training stored it; None where there is none of these."""
    stored = stored_settings(load_config(path, **source.tokenizer_source()), path)
    if stored.scores == "logit" or not stored.std or stored.std < 0:
        return None  # of logits of steps, of which their chances are the scores
    # That of log-odds, which are differences of two responses.
    return stored.std / 2**0.5 if stored.input == "pair" else stored.std


def _fingerprint(path: str, texts: Dataset, source: ModelSourceConfig, dtype: str, how: str) -> str:
    """A hash of all that a member's scores of the pairs depend on."""
    folder = Path(local_folder(path))
    reading = reading_fingerprint(folder, dtype, source.attention, source.trust_remote_code)
    digest = hashlib.sha256(f"{reading} {how} {rows_fingerprint(texts)}".encode())
    for file in sorted(file for pattern in _READ_BESIDE_WEIGHTS for file in folder.glob(pattern)):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:32]


def _write(file: Path, scores: np.ndarray) -> None:
    """The scores, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.partial")
    with open(aside, "wb") as opened:
        np.save(opened, scores)
    os.replace(aside, file)
