"""PPO against a reward model, with segment, token or bandit rewards."""

from pathlib import Path

from denserl.cli.launch import launch, suggest
from denserl.trainer.ppo_config import PPOConfig as Options


def run(options: Options) -> None:
    """Load everything, run the loop, save; then draw what PPO maximises, and what it does not, against KL."""
    from denserl import distributed
    from denserl.evaluation.plots import plot_judgements
    from denserl.trainer.ppo_trainer import PPOTrainer
    from denserl.trainer.trackers import read_metrics

    PPOTrainer.from_config(options).run()
    if distributed.rank() == 0:
        folder = Path(options.output_dir)
        plot_judgements(read_metrics(folder / "metrics.jsonl"), folder / "over_optimisation.png")
    judged = f"--reward_model {' '.join(options.reward_model)} " if options.reward_model else "--reward_model REWARD_MODEL "
    suggest(f"bon --model {options.output_dir} --data PROMPTS {judged}--gold_reward_model ANOTHER --output_dir NEW_FOLDER")


def main(argv: list[str] | None = None) -> None:
    launch(Options, "train-ppo", run, argv)


if __name__ == "__main__":
    main()
