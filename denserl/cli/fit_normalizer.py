"""Fit the location-aware reward normaliser of a reward model and store it."""

import json
from pathlib import Path
from typing import Any

from denserl.cli.launch import launch, suggest
from denserl.terminal import say
from denserl.trainer.fit_config import FitConfig as Options


def run(options: Options) -> dict[str, Any]:
    """Returns the record of the fit."""
    from denserl import distributed
    from denserl.evaluation.plots import plot_normalizer
    from denserl.ppo_utils.fits import fits_beside
    from denserl.trainer.fit import fit_normalizer

    path, key, groups, mean, std, record = fit_normalizer(options)
    if distributed.rank() == 0:
        plot_normalizer(groups, mean, std, Path(options.output_dir) / "normalizer.png")
        constants = [round(c, 4) for c in record["constants"]]
        say(f"{path}: {key}\n  [w_mu, w_sigma, b_mu, b_sigma] = {json.dumps(constants)}")
        fitted_on = f"{record['segments']} segments at {record['groups']} places"
        say(f"  R^2 of the mean {mean.r2:.3f}, of the std {std.r2:.3f}; {fitted_on}")
        moments = f"--reward_mean {record['score_mean']:.4f} --reward_std {record['score_std']:.4f}"
        say(f"  scores of responses, for train-ppo: {moments}")
        named = "" if path == fits_beside(options.reward_model) else f" --fit {path}"
        models = " ".join(options.reward_model)
        suggest(
            f"train-ppo --model POLICY --reward_model {models} --assignment even{named} --data PROMPTS --output_dir NEW_FOLDER"
        )
    distributed.barrier()
    return record


def main(argv: list[str] | None = None) -> None:
    launch(Options, "fit-normalizer", run, argv)


if __name__ == "__main__":
    main()
