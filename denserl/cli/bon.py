"""Best-of-n: sample responses, score them by a proxy and by a gold reward, and draw both against KL."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from denserl.cli.launch import launch
from denserl.errors import require
from denserl.evaluation.config import BestOfNConfig as Options
from denserl.terminal import say

if TYPE_CHECKING:
    import numpy as np

    from denserl.evaluation.samples import Sample


def run(options: Options) -> dict:
    """Returns the results that are also written to results.json."""
    import numpy as np

    from denserl import distributed
    from denserl.evaluation.best_of_n import over_optimisation
    from denserl.evaluation.sampling import as_responses, check_models, sampled, scores_of
    from denserl.plugins import load_named
    from denserl.rewards.sources.function import FunctionSource
    from denserl.trainer.start import start_run

    require(
        (options.gold_reward_model is None) != (options.true_reward is None),
        f"`gold_reward_model` {options.gold_reward_model}, `true_reward` {options.true_reward}: one must say the gold reward",
        "give exactly one of the two",
    )
    device, dtype = start_run(options)
    true_reward = load_named(options.true_reward, "true_reward") if options.true_reward else None
    check_models(options)
    samples = sampled(options, device, dtype)
    proxy = scores_of(options.reward_model, options, device, dtype, samples, options, options.sft_model, options.aggregate)
    if true_reward is not None:
        source = FunctionSource(true_reward, options.true_reward, "true_reward", lambda ids: "")
        gold = np.array(source.totals(as_responses(samples)))
    else:
        gold = scores_of([options.gold_reward_model], options, device, dtype, samples)
    proxy, gold = (scores.reshape(-1, options.samples) for scores in (proxy, gold))
    results = {
        "prompts": len(proxy),
        "samples": options.samples,
        "ended": sum(sample.ended for sample in samples) / len(samples),
        **over_optimisation(proxy, gold),
    }
    if distributed.rank() == 0:
        write(options, samples, proxy, gold, results)
    distributed.barrier()
    return results


def write(options: Options, samples: list["Sample"], proxy: "np.ndarray", gold: "np.ndarray", results: dict) -> None:
    """results.json, scores.jsonl with both scores of every sample, and the plot; and the result in words."""
    from denserl.evaluation.plots import plot_best_of_n

    folder = Path(options.output_dir)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with open(folder / "scores.jsonl", "w", encoding="utf-8") as file:
        for sample, by_proxy, by_gold in zip(samples, proxy.ravel().tolist(), gold.ravel().tolist(), strict=True):
            row = {"id": sample.id, "sample": sample.sample, "proxy": by_proxy, "gold": by_gold}
            file.write(json.dumps(row) + "\n")
    plot_best_of_n(results, folder / "bon.png")
    first, last = results["gold"][0], results["gold"][-1]
    say(
        f"{folder}: {results['prompts']} prompts x {results['samples']} samples, {results['ended']:.0%} of them ended\n"
        f"  gold reward {first:.3f} at n = 1, {last:.3f} at n = {results['samples']} (KL {results['kl'][-1]:.2f} nats); "
        f"highest {results['gold_best']:.3f} at n = {results['best_n']}"
    )


def main(argv: list[str] | None = None) -> None:
    launch(Options, "bon", run, argv)


if __name__ == "__main__":
    main()
