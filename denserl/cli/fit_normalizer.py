"""Fit the location-aware reward normaliser of a reward model and store it."""

import datetime
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from denserl.cli.common import Aggregation, DataOptions, RunOptions, launch, require
from denserl.cli.reward_models import RewardModelOptions, load_reward_models, require_common
from denserl.terminal import say

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(RewardModelOptions, DataOptions, RunOptions):
    """Score chosen and rejected responses, fit Mean(p) and Std(p) as lines in ln(p), and write the entry into param.json.

    Prints the mean and std of the responses' scores as well, for --normalizer scalar of a reward model whose config has none.
    """

    output_dir: str = "runs/fit"
    """Folder for the plot."""
    dataset_tag: str
    """Name of the data in param.json, e.g. preference700k_60000."""
    model_type: str | None = None
    """Name of the model family in param.json; default: the one in the reward model's config."""
    sft_model: str | None = None
    """Model whose entropies cut the responses; default: the one in the reward model's config."""
    entropy_threshold: float | None = None
    """Entropy threshold in nats; default: the one in the reward model's config."""
    segment_method: Literal["peak"] = "peak"
    """How responses are cut."""
    agg_func: Aggregation | None = None
    """How segment scores make the score of a response, a key of param.json; default: the one in the reward model's config."""
    params: str | None = None
    """The param.json to write; default: the one in the package."""
    pairs: int = 60000
    """Pairs to score, drawn by seed; all when there are fewer."""
    smallest_group: int = 2
    """Places with fewer segment rewards are left out."""
    max_length: int = 2048
    """Longest sequence in tokens."""
    max_prompt_length: int = 1728
    """Prompt tokens kept when a sequence is over max_length."""
    score_tokens: int = 16384
    """Padded tokens per batch."""
    cache_dir: str = "~/.cache/denserl"
    """Where reference entropies are kept between runs."""


def run(options: Options) -> dict:
    """Returns the record of the fit."""
    from denserl import distributed
    from denserl.cli.train_rm import prepare_pairs
    from denserl.cli.training import start
    from denserl.data.preferences import load_preferences
    from denserl.evaluation.plots import plot_normalizer
    from denserl.models.loading import load_tokenizer
    from denserl.ppo_utils.normalizer import PACKAGED_PARAMS, check_writable, store_fit
    from denserl.rewards.ensemble import RewardSource, stored_moments
    from denserl.rewards.fit import fit_lines, group_by_place

    path = Path(options.params) if options.params else PACKAGED_PARAMS
    check_writable(path)
    device, dtype = start(options)
    models = [model.eval().to(device) for model in load_reward_models(options.reward_model, dtype, options)]
    configs = [model.config for model in models]
    tokenizer = load_tokenizer(options.reward_model[0], **options.tokenizer_source())
    model_type, sft_model, threshold, agg_func = _settings(options, configs)
    scores = RewardSource(models, stored_moments(configs, options.reward_model), options.ensemble, options.ensemble_weight)
    pairs = load_preferences(**options.source(), seed=options.seed)
    if options.pairs < len(pairs):
        pairs = pairs.shuffle(seed=options.seed).select(range(options.pairs))
    pairs = prepare_pairs(pairs, options, sft_model, tokenizer, device, dtype)
    rewards = segment_rewards(scores, pairs, threshold, tokenizer.pad_token_id, options.score_tokens, device)
    score_mean, score_std = score_moments(rewards, agg_func)
    groups = group_by_place(rewards, options.smallest_group)
    mean, std = fit_lines(groups)
    constants = [mean.slope, std.slope, mean.intercept, std.intercept]
    record = {
        "constants": constants,
        "r2_mean": mean.r2,
        "r2_std": std.r2,
        "score_mean": score_mean,
        "score_std": score_std,
        "pairs": len(pairs),
        "segments": int(sum(map(len, rewards))),
        "groups": len(groups.place),
        **_source(options),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    keys = (model_type, options.dataset_tag, options.segment_method, agg_func, threshold)
    if distributed.rank() == 0:
        store_fit(path, keys, constants, record)
        plot_normalizer(groups, mean, std, Path(options.output_dir) / "normalizer.png")
        shown = "/".join(map(str, keys))
        say(f"{path}: {shown}\n  [w_mu, w_sigma, b_mu, b_sigma] = {json.dumps([round(c, 4) for c in constants])}")
        fitted_on = f"{record['segments']} segments at {record['groups']} places"
        say(f"  R^2 of the mean {mean.r2:.3f}, of the std {std.r2:.3f}; {fitted_on}")
        say(f"  scores of responses, for train-ppo: --reward_mean {score_mean:.4f} --reward_std {score_std:.4f}")
    distributed.barrier()
    return record


def segment_rewards(scores, pairs, threshold: float, pad_id: int, max_tokens: int, device) -> list:
    """The raw segment rewards of every chosen and rejected response, as one fp32 array a response.

    scores: batch -> (B, T) token scores.
    """
    import numpy as np
    import torch

    from denserl import distributed
    from denserl.data.batching import map_responses, pad_rows
    from denserl.data.entropies import SIDES
    from denserl.segmentation import segment_by_entropy

    responses = [row for side in SIDES for row in pairs[f"{side}_ids"]]
    found = map_responses(
        list(pairs["prompt_ids"]) * len(SIDES),
        responses,
        scores,
        pad_id=pad_id,
        max_tokens=max_tokens,
        device=device,
        progress="segment rewards",
    )
    entropies = [row for side in SIDES for row in pairs[f"{side}_entropy"]]
    mine = {}
    for row, values in found.items():
        entropy = pad_rows([entropies[row]], 0.0, torch.float32)
        segments = segment_by_entropy(entropy, torch.ones_like(entropy), threshold)
        mine[row] = values[segments.ends[0].numpy()]
    merged = {row: values for share in distributed.gather_objects(mine) for row, values in share.items()}
    return [np.asarray(merged[row]) for row in range(len(responses))]


def score_moments(rewards: list, agg_func: str, rows: int = 1024) -> tuple[float, float]:
    """Mean and (biased) standard deviation of the scores of responses, given the segment rewards of each; so many at a time."""
    import torch

    from denserl.data.batching import pad_rows
    from denserl.rewards.aggregation import aggregate

    parts = [rewards[first : first + rows] for first in range(0, len(rewards), rows)]
    scores = [aggregate(pad_rows(p, 0.0, torch.float32), torch.tensor([len(r) for r in p]), agg_func) for p in parts]
    scores = torch.cat(scores).double()
    return scores.mean().item(), scores.std(correction=0).item()


def _source(options: Options) -> dict:
    """What was fitted, for the record."""
    if len(options.reward_model) == 1:
        return {"reward_model": options.reward_model[0]}
    weight = {"ensemble_weight": options.ensemble_weight} if options.ensemble == "mean_std" else {}
    return {"reward_model": options.reward_model, "ensemble": options.ensemble, **weight}


def _settings(options: Options, configs: list) -> tuple[str, str, float, str]:
    """Model type, SFT model, threshold and aggregation: from the flags, else what train-rm stored in the models' configs."""
    from denserl.rewards.ensemble import common_settings
    from denserl.segmentation import BANDIT_THRESHOLD

    stored = common_settings(configs, options.reward_model)
    model_type = options.model_type or stored.model_type
    sft_model = options.sft_model or stored.sft_model
    threshold = options.entropy_threshold if options.entropy_threshold is not None else stored.entropy_threshold
    for flag, value in (("model_type", model_type), ("sft_model", sft_model), ("entropy_threshold", threshold)):
        require_common(flag, flag, value, options.reward_model)
    names = ", ".join(options.reward_model)
    require(
        threshold < BANDIT_THRESHOLD,
        f"{names} gives one reward per response (threshold {threshold:g}); there is no place to normalise by",
        "use it as it is: the bandit level's mean and std are in the reward model's config",
    )
    return model_type, sft_model, threshold, options.agg_func or stored.agg_func


def main(argv: list[str] | None = None) -> None:
    launch(Options, "fit-normalizer", run, argv)


if __name__ == "__main__":
    main()
