"""Fit the location-aware reward normaliser of a reward model and store it."""

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from denserl.cli.launch import launch
from denserl.config import FIRST, RunConfig
from denserl.data.config import DataConfig, ScoredPairsConfig
from denserl.rewards.config import Aggregation, ReadConfig, RewardModelConfig
from denserl.terminal import say

if TYPE_CHECKING:
    from denserl.rewards.sources.build import Members


@dataclass(kw_only=True)
class Options(RewardModelConfig, ReadConfig, ScoredPairsConfig, DataConfig, RunConfig):
    """Score chosen and rejected responses, fit Mean(p) and Std(p) as lines in ln(p), and write the entry into param.json.

    Prints the mean and std of the responses' scores as well, for --normalizer scalar of a reward model whose config has none.
    """

    group: ClassVar[str] = "fit"

    output_dir: Annotated[str, FIRST] = "runs/fit"
    """Folder for the plot."""
    dataset_tag: Annotated[str, FIRST]
    """Name of the data in param.json, e.g. preference700k_60000."""
    model_type: Annotated[str | None, FIRST] = None
    """Name of the model family in param.json; default: the one in the reward model's config."""
    sft_model: str | None = None
    """Model whose entropies cut the responses; default: the one in the reward model's config."""
    segment_method: Literal["peak"] = "peak"
    """How responses are cut."""
    agg_func: Aggregation | None = None
    """How segment scores make the score of a response, a key of param.json; default: the one in the reward model's config."""
    params: Annotated[str | None, FIRST] = None
    """The param.json to write; default: the one in the package."""
    pairs: Annotated[int, FIRST, Ge(1)] = 60000
    """Pairs to score, drawn by seed; all when there are fewer."""
    smallest_group: Annotated[int, Ge(2)] = 2
    """Places with fewer segment rewards are left out."""


def run(options: Options) -> dict[str, Any]:
    """Returns the record of the fit."""
    from denserl import distributed
    from denserl.data.preferences import load_preferences
    from denserl.evaluation.plots import plot_normalizer
    from denserl.ppo_utils.normalizer import PACKAGED_PARAMS, check_writable, store_fit
    from denserl.rewards.normalizer_fit import fit_lines, group_by_place
    from denserl.rewards.pairs import prepare_pairs, score_moments, segment_rewards
    from denserl.rewards.sources.build import load_members, source_of
    from denserl.trainer.start import start_run

    path = Path(options.params) if options.params else PACKAGED_PARAMS
    check_writable(path)
    device, dtype = start_run(options)
    members = load_members(options.reward_model, dtype, options)
    for model in members.models:
        model.to(device)
    tokenizer = members.tokenizer
    segmenter, model_type, sft_model, agg_func = _read_as(options, members)
    source = source_of(members, segmenter, how=options.ensemble, weight=options.ensemble_weight, read_at=options.read_at)
    pairs = load_preferences(**options.source(), seed=options.seed)
    if options.pairs < len(pairs):
        pairs = pairs.shuffle(seed=options.seed).select(range(options.pairs))
    pairs = prepare_pairs(pairs, options, options, sft_model, tokenizer, device, dtype, options.on_bad_row)
    rewards = segment_rewards(source, pairs, segmenter, tokenizer, options.score_tokens, device)
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
    method = segmenter.name if segmenter.function else options.segment_method
    keys = (model_type, options.dataset_tag, method, agg_func, segmenter.threshold)
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


def _source(options: Options) -> dict[str, Any]:
    """What was fitted, for the record."""
    if len(options.reward_model) == 1:
        return {"reward_model": options.reward_model[0]}
    weight = {"ensemble_weight": options.ensemble_weight} if options.ensemble == "mean_std" else {}
    return {"reward_model": options.reward_model, "ensemble": options.ensemble, **weight}


def _read_as(options: Options, members: "Members"):
    """Segmenter, model type, SFT model and aggregation: what is stored with the reward models, unless options say otherwise."""
    from denserl.errors import require
    from denserl.rewards.sources.reading import choose_aggregation, choose_segmenter, require_stored

    stored, paths = members.stored, members.paths
    model_type, sft_model = options.model_type or stored.model_type, options.sft_model or stored.sft_model
    threshold = stored.entropy_threshold if options.entropy_threshold is None else options.entropy_threshold
    for name, value in (("model_type", model_type), ("sft_model", sft_model), ("entropy_threshold", threshold)):
        require_stored(name, value, paths)
    cut: dict[str, Any] = {"threshold": options.entropy_threshold, "segmenter": options.segmenter}
    segmenter = choose_segmenter(members.each, paths, members.tokenizer, **cut)
    require(
        segmenter.reads_entropy,
        f"{', '.join(paths)} gives one reward per response (threshold {threshold:g}); there is no place to normalise by",
        "use it as it is: the bandit level's mean and std are in the reward model's config",
    )
    return segmenter, model_type, sft_model, choose_aggregation(stored, paths, options.agg_func)


def main(argv: list[str] | None = None) -> None:
    launch(Options, "fit-normalizer", run, argv)


if __name__ == "__main__":
    main()
