"""Train a reward model: on preferences or ratings, at segment, token or bandit level, or on labelled steps or outcomes."""

from denserl.cli.launch import launch, suggest
from denserl.cli.record import recorded
from denserl.flags import written_out
from denserl.trainer.reward_config import RewardConfig as Options


def run(options: Options) -> dict[str, float]:
    """Returns the evaluation metrics of the model that was saved; of several members, their means."""
    from denserl.trainer.members import train_members
    from denserl.trainer.reward_making import trunk_settings
    from denserl.trainer.reward_trainer import RewardTrainer
    from denserl.trainer.self_training import train_in_rounds

    folder = options.output_dir
    if options.members:
        metrics = train_members(options, _one_of_several)
        suggest(f"strength --reward_model {folder} --data {' '.join(options.data)} --output_dir NEW_FOLDER")
        return metrics
    rounds = options.unlabelled_data
    metrics = train_in_rounds(options, _one_of_several) if rounds else RewardTrainer.from_config(options).run()
    pairs = dict.fromkeys(("pairs", "pair", "ratings"), "pairs HELD_OUT")
    judged = {**pairs, "steps": "processbench SOLUTIONS", "response": "bon_answers ANSWERS"}[options.input]
    its = trunk_settings(options)
    policy = options.model if its is None else its.sft_model or "SFT_MODEL"
    suggest(
        f"evaluate {judged} --scorer {folder} --output_dir NEW_FOLDER",
        f"train-ppo --model {policy} --reward_model {folder} --data PROMPTS --output_dir NEW_FOLDER",
    )
    return metrics


def _one_of_several(options: Options) -> dict[str, float]:
    """One training of several, recorded in its own folder as the command that it is."""
    from denserl.trainer.several import train_once

    with recorded("train-rm", written_out(options), options):
        return train_once(options)


def main(argv: list[str] | None = None) -> None:
    launch(Options, "train-rm", run, argv)


if __name__ == "__main__":
    main()
