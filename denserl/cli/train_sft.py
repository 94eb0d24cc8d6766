"""Supervised fine-tuning: next-token loss on response tokens, or on all tokens of plain text."""

from denserl.cli.launch import launch, suggest
from denserl.trainer.config import SFTConfig as Options


def run(options: Options) -> dict[str, float]:
    """Returns the evaluation metrics of the model that was saved, if there are rows to evaluate it on."""
    from denserl.trainer.sft_trainer import SFTTrainer

    metrics = SFTTrainer.from_config(options).run()
    suggest(f"train-rm --model {options.output_dir} --data PAIRS --output_dir NEW_FOLDER")
    return metrics


def main(argv: list[str] | None = None) -> None:
    launch(Options, "train-sft", run, argv)


if __name__ == "__main__":
    main()
