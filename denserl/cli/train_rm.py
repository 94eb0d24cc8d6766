"""Train a reward model on preferences, at segment, token or bandit level, or on labelled steps or outcomes of solutions."""

from denserl.cli.launch import launch, suggest
from denserl.trainer.reward_config import RewardConfig as Options


def run(options: Options) -> dict[str, float]:
    """Returns the evaluation metrics of the model that was saved."""
    from denserl.trainer.reward_trainer import RewardTrainer

    metrics = RewardTrainer.from_config(options).run()
    judged = {"pairs": "pairs HELD_OUT", "steps": "processbench SOLUTIONS", "response": "bon_answers ANSWERS"}[options.input]
    suggest(
        f"evaluate {judged} --scorer {options.output_dir} --output_dir NEW_FOLDER",
        f"train-ppo --model {options.model} --reward_model {options.output_dir} --data PROMPTS --output_dir NEW_FOLDER",
    )
    return metrics


def main(argv: list[str] | None = None) -> None:
    launch(Options, "train-rm", run, argv)


if __name__ == "__main__":
    main()
