"""Train a reward model on preferences, at segment, token or bandit level, or on labelled steps or outcomes of solutions."""

from denserl.cli.launch import launch, suggest
from denserl.cli.record import recorded
from denserl.cli.words import written_out
from denserl.trainer.reward_config import RewardConfig as Options


def run(options: Options) -> dict[str, float]:
    """Returns the evaluation metrics of the model that was saved."""
    from denserl.trainer.reward_trainer import RewardTrainer
    from denserl.trainer.self_training import train_in_rounds

    metrics = train_in_rounds(options, _round) if options.unlabelled_data else RewardTrainer.from_config(options).run()
    judged = {"pairs": "pairs HELD_OUT", "steps": "processbench SOLUTIONS", "response": "bon_answers ANSWERS"}[options.input]
    suggest(
        f"evaluate {judged} --scorer {options.output_dir} --output_dir NEW_FOLDER",
        f"train-ppo --model {options.model} --reward_model {options.output_dir} --data PROMPTS --output_dir NEW_FOLDER",
    )
    return metrics


def _round(options: Options) -> dict[str, float]:
    """One training of several, recorded in its own folder as the command that it is."""
    from denserl.trainer.self_training import train_once

    with recorded("train-rm", written_out(options), options):
        return train_once(options)


def main(argv: list[str] | None = None) -> None:
    launch(Options, "train-rm", run, argv)


if __name__ == "__main__":
    main()
