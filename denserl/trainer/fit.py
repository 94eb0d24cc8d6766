"""The fit of the location-aware normaliser from its config: pairs scored, grouped by place, two lines, stored.

How the lines are fitted is in denserl/rewards/normalizer_fit.py.
"""

import datetime
import logging
from pathlib import Path
from typing import Any, NamedTuple

from denserl import distributed
from denserl.data.config import ScoredPairsConfig
from denserl.data.features import array_of
from denserl.data.order import shuffled
from denserl.data.preferences import load_preferences
from denserl.data.schemas import WEIGHT
from denserl.errors import require
from denserl.ppo_utils.fits import FITS, check_writable, fingerprints, fit_key, fits_beside, store_fit, worse_than_constants
from denserl.rewards import normalizer_fit
from denserl.rewards.pairs import prepare_pairs, score_moments, segment_rewards
from denserl.rewards.sources.build import Members, check_scores, load_members, source_of
from denserl.rewards.sources.reading import choose_aggregation, choose_segmenter, entropy_model, require_stored
from denserl.segmentation import Segmenter
from denserl.streams import Purpose, stream
from denserl.trainer.fit_config import FitConfig
from denserl.trainer.start import start_run

log = logging.getLogger(__name__)

# Where neither an option nor the reward model says them: those of train-rm.
LENGTHS = {"max_length": ScoredPairsConfig.max_length, "max_prompt_length": ScoredPairsConfig.max_prompt_length}


class Fit(NamedTuple):
    """What was fitted, and where it is kept."""

    path: Path
    key: str  # in the file: how rewards are cut and aggregated
    groups: normalizer_fit.Groups
    mean: normalizer_fit.Line
    std: normalizer_fit.Line
    record: dict[str, Any]  # how it came about


def fit_normalizer(config: FitConfig) -> Fit:
    """Score the pairs, fit both lines and store them. UserError for what cannot be had, or does not go together."""
    path = Path(config.fit) if config.fit else fits_beside(config.reward_model) or Path(config.output_dir) / FITS
    check_writable(path)
    check_scores(config.reward_model, config)
    device, dtype = start_run(config)
    members = load_members(config.reward_model, dtype, config, template=config.template())
    for model in members.models:
        model.to(device)
    segmenter, sft_model, agg_func = _read_as(config, members)
    lengths = _lengths(config, members)
    source = source_of(members, segmenter, **config.combination(), read_at=config.read_at)
    pairs = load_preferences(**config.source(), seed=config.seed)
    if (array_of(pairs, WEIGHT) != 1).any():
        log.info("%s: a normaliser is of responses, not of labels; weights of pairs are not read", ", ".join(config.data))
    if config.pairs < len(pairs):
        pairs = pairs.select(shuffled(len(pairs), stream(config.seed, Purpose.FITTED_PAIRS))[: config.pairs])
    as_trained = ScoredPairsConfig(score_tokens=config.score_tokens, cache_dir=config.cache_dir, **lengths)
    pairs = prepare_pairs(
        pairs, as_trained, config, sft_model, members.tokenizer, device, dtype, config.on_bad_row, members.paths
    )
    rewards = segment_rewards(source, pairs, segmenter, members.tokenizer, config.score_tokens, device)
    score_mean, score_std = score_moments(rewards, agg_func)
    groups = normalizer_fit.group_by_place(rewards, config.smallest_group)
    mean, std = normalizer_fit.fit_lines(groups)
    record = {
        "constants": [round(constant, 6) for constant in (mean.slope, std.slope, mean.intercept, std.intercept)],
        "r2_mean": mean.r2,
        "r2_std": std.r2,
        "score_mean": score_mean,
        "score_std": score_std,
        "pairs": len(pairs),
        "segments": int(sum(map(len, rewards))),
        "groups": len(groups.place),
        **lengths,
        "data": config.data,
        **_source(config),
        # Each rank would read all weights.
        "fingerprints": distributed.gather_objects(_fingerprints(config, dtype))[0],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    key = fit_key(segmenter.name, agg_func, segmenter.threshold)
    if distributed.rank() == 0:
        store_fit(path, key, record)
    if poor := worse_than_constants(record):
        log.warning("%s, %s: %s", path, key, poor)
    return Fit(path, key, groups, mean, std, record)


def _fingerprints(config: FitConfig, dtype: str) -> list[str]:
    return fingerprints(config.reward_model, dtype) if distributed.rank() == 0 else []


def _source(config: FitConfig) -> dict[str, Any]:
    """What was fitted, for the record."""
    if len(config.reward_model) == 1:
        return {"reward_model": config.reward_model[0]}
    weight = {"ensemble_weight": config.ensemble_weight} if config.ensemble == "mean_std" else {}
    return {"reward_model": config.reward_model, "ensemble": config.ensemble, **weight}


def _lengths(config: FitConfig, members: Members) -> dict[str, int]:
    """Longest sequence and prompt, in tokens: as the reward models were trained, unless options say otherwise (logged)."""
    found = {}
    for name, usual in LENGTHS.items():
        given, stored = getattr(config, name), getattr(members.stored, name)
        found[name] = given or stored or usual
        if stored and found[name] != stored:
            log.warning("%s: trained with %s %d; fitted at %d", ", ".join(members.paths), name, stored, found[name])
    return found


def _read_as(config: FitConfig, members: Members) -> tuple[Segmenter, str | None, str]:
    """Segmenter, SFT model and aggregation: what is stored with the reward models, unless options say otherwise.

    The SFT model is None where its entropies cut nothing.
    """
    stored, paths = members.stored, members.paths
    require(
        not members.judge_steps,
        f"{', '.join(paths)} judges steps: chances of success are paid as they are, and have no lines to be normalised by",
        "give it to denserl train-ppo as it is",
    )
    threshold = stored.entropy_threshold if config.entropy_threshold is None else config.entropy_threshold
    require_stored("entropy_threshold", threshold, paths)
    cut: dict[str, Any] = {"threshold": config.entropy_threshold, "segmenter": config.segmenter, "steps": config}
    segmenter = choose_segmenter(members.each, paths, members.tokenizer, **cut)
    require(
        not segmenter.cuts_nothing,
        f"{', '.join(paths)} gives one reward per response (threshold {threshold:g}); there is no place to normalise by",
        "use it as it is: denserl train-ppo needs the mean and std alone, of its config or by --reward_mean and --reward_std",
    )
    sft_model = entropy_model(members.each, paths, stored.sft_model, config.sft_model, segmenter)
    return segmenter, sft_model, choose_aggregation(stored, paths, config.agg_func)
