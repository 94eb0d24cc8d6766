"""Best-of-n: sample responses, score them by a proxy and by a gold reward, and draw both against KL.

Or label their steps, or sample alone.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from denserl.cli.launch import launch
from denserl.errors import require
from denserl.evaluation.config import BestOfNConfig as Options
from denserl.terminal import say

if TYPE_CHECKING:
    import torch

    from denserl.evaluation.samples import Sample
    from denserl.rewards.sources.function import FunctionSource


def run(options: Options) -> dict:
    """Returns the results that are also written to results.json."""
    from denserl import distributed
    from denserl.evaluation.continuations import label_steps
    from denserl.evaluation.sampling import check_models, sampled
    from denserl.rewards.sources.function import FunctionSource
    from denserl.trainer.start import start_run

    golds = (options.gold_reward_model is not None) + (options.true_reward is not None)
    sampled_alone = options.reward_model is None and not (options.continue_steps or golds)
    require(
        sampled_alone or golds == 1,
        f"`gold_reward_model` {options.gold_reward_model}, `true_reward` {options.true_reward}: one must say the gold reward",
        "give exactly one of the two, or neither and no `reward_model`, to sample alone",
    )
    require(
        options.true_reward or not options.continue_steps,
        "with `continue_steps` a function must say which completions are right",
        "give it with `true_reward`, in place of `gold_reward_model`",
    )
    device, dtype = start_run(options)
    named = options.true_reward
    true_reward = FunctionSource.named(named, "true_reward", lambda ids: "") if named else None
    check_models(options)
    samples = sampled(options, device, dtype)
    results = {
        "prompts": len(samples) // options.samples,
        "samples": options.samples,
        "ended": sum(sample.ended for sample in samples) / len(samples),
    }
    if true_reward is not None and options.continue_steps:
        results |= label_steps(options, samples, true_reward, device, dtype)
    if options.reward_model:
        results |= chosen(options, samples, true_reward, device, dtype)
    if distributed.rank() == 0:
        path = Path(options.output_dir) / "results.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        tell(options, results)
    distributed.barrier()
    return results


def chosen(
    options: Options, samples: list["Sample"], true_reward: "FunctionSource | None", device: "torch.device", dtype: str
) -> dict:
    """What the best by the reward model is worth, for every n; both scores of every sample in scores.jsonl, and the plot."""
    import numpy as np

    from denserl import distributed
    from denserl.evaluation.best_of_n import over_optimisation
    from denserl.evaluation.plots import plot_best_of_n
    from denserl.evaluation.sampling import as_responses, golds_of, proxies_of

    proxy = proxies_of(options, device, dtype, samples)
    if true_reward is not None:
        gold = np.array(true_reward.totals(as_responses(samples))).reshape(-1, options.samples)
    else:
        gold = golds_of(options, device, dtype, samples)
    results = over_optimisation(proxy.scores, gold, proxy.estimators) | ({"rank": proxy.rank} if proxy.rank else {})
    if distributed.rank() == 0:
        folder = Path(options.output_dir)
        with open(folder / "scores.jsonl", "w", encoding="utf-8") as file:
            for sample, by_proxy, by_gold in zip(samples, proxy.scores.ravel().tolist(), gold.ravel().tolist(), strict=True):
                row = {"id": sample.id, "sample": sample.sample, "proxy": by_proxy, "gold": by_gold}
                file.write(json.dumps(row) + "\n")
        plot_best_of_n(results, folder / "bon.png")
    return results


def tell(options: Options, results: dict) -> None:
    """The results in words."""
    count = f"{results['prompts']} prompts x {results['samples']} samples, {results['ended']:.0%} of them ended"
    lines = [f"{options.output_dir}: {count}"]
    if "solutions" in results:
        mean = results["mean_label"]
        of_steps = (
            f"; {results['labelled_steps']} steps, of a mean label of {mean:.3f}, in steps.jsonl" if mean is not None else ""
        )
        lines.append(f"{results['solutions']} solutions, {results['right']:.1%} right{of_steps}")
    if "gold" in results:
        first, last = results["gold"][0], results["gold"][-1]
        lines.append(
            f"gold reward {first:.3f} at n = 1, {last:.3f} at n = {results['samples']} (KL {results['kl'][-1]:.2f} nats); "
            f"highest {results['gold_best']:.3f} at n = {results['best_n']}"
        )
    say("\n  ".join(lines))


def main(argv: list[str] | None = None) -> None:
    launch(Options, "bon", run, argv)


if __name__ == "__main__":
    main()
