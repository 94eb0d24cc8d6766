"""Train a reward model on preferences, at segment, token or bandit level."""

from denserl.cli.launch import launch
from denserl.trainer.reward_config import RewardConfig as Options


def run(options: Options) -> dict[str, float]:
    """Returns the evaluation metrics of the model that was saved."""
    from denserl.trainer.reward_trainer import RewardTrainer

    return RewardTrainer.from_config(options).run()


def main(argv: list[str] | None = None) -> None:
    launch(Options, "train-rm", run, argv)


if __name__ == "__main__":
    main()
