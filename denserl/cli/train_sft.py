"""Supervised fine-tuning: next-token loss on response tokens, or on all tokens of plain text."""

import logging
from dataclasses import dataclass

from denserl.cli.common import TrainingOptions, launch

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(TrainingOptions):
    """Fine-tune a language model on demonstrations (loss on the response) or plain text (loss on every token)."""

    lr: float = 2e-5
    """Peak learning rate."""
    eval_data: list[str] | None = None
    """Held-out rows; without them nothing is evaluated."""
    eval_split: str = "test"
    """Split of eval_data when it is a hub dataset or a folder."""


def run(options: Options) -> dict[str, float]:
    """Returns the evaluation metrics of the model that was saved, if there are rows to evaluate it on."""
    from denserl.cli.training import (
        checkpoint_to_resume,
        prepare_model,
        run_settings,
        save_trained,
        start,
        train,
        training_arguments,
    )
    from denserl.data.batching import DemonstrationCollator
    from denserl.data.demonstrations import load_demonstrations, tokenize_demonstrations
    from denserl.models.loading import load_policy, load_tokenizer, match_embeddings
    from denserl.supervised import LanguageModelTrainer

    if not options.eval_data:
        options.eval_steps = 0
    device, dtype = start(options)
    checkpoint = checkpoint_to_resume(options)
    tokenizer = load_tokenizer(options.model, **options.tokenizer_source())

    def rows(**source):
        demonstrations = load_demonstrations(**source, seed=options.seed)
        return tokenize_demonstrations(demonstrations, tokenizer, max_length=options.max_length, on_bad_row=options.on_bad_row)

    demonstrations, held_out = rows(**options.source()), None
    if options.eval_data:
        held_out = rows(sources=options.eval_data, split=options.eval_split, on_bad_row=options.on_bad_row)
    args = training_arguments(options, device, dtype)
    settings = run_settings(options, dtype, checkpoint, models=["model"], data=demonstrations)
    model = load_policy(options.model, dtype, **options.model_source())
    match_embeddings(model, tokenizer)
    trainer = LanguageModelTrainer(
        model=prepare_model(model, options, "CAUSAL_LM"),
        args=args,
        train_dataset=demonstrations,
        eval_dataset=held_out,
        data_collator=DemonstrationCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        eval_tokens=options.micro_batch_size * options.max_length,
    )
    metrics = train(trainer, options, settings, checkpoint)
    save_trained(trainer, options.output_dir)
    log.info("%s: trained for %d steps on %d rows", options.output_dir, trainer.state.global_step, len(demonstrations))
    return metrics


def main(argv: list[str] | None = None) -> None:
    launch(Options, "train-sft", run, argv)


if __name__ == "__main__":
    main()
