"""Supervised fine-tuning: next-token loss on response tokens, or on all tokens of plain text."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from denserl.data.batching import DemonstrationCollator, ResponseBatch
from denserl.data.demonstrations import load_demonstrations, tokenize_demonstrations
from denserl.data.features import list_lengths, longest_row
from denserl.data.windows import Windows, open_source
from denserl.models.adapters import prepare_model
from denserl.models.loading import load_policy, match_embeddings
from denserl.models.positions import check_positions
from denserl.models.scoring import token_logprob_entropy
from denserl.models.tokenizers import load_tokenizer
from denserl.trainer.config import SFTConfig
from denserl.trainer.start import checkpoint_to_resume, run_settings, start_run, template_of_run, warn_of_shortage
from denserl.trainer.summaries import in_words, language_model_lines
from denserl.trainer.supervised import Session, check_steps, save_trained, training_arguments
from denserl.trainer.supervised_trainer import SupervisedTrainer

log = logging.getLogger(__name__)


class SFTTrainer(SupervisedTrainer):
    """Next-token loss on the responses of batches that hold a ResponseBatch, averaged over response tokens."""

    @classmethod
    def from_config(cls, config: SFTConfig) -> "SFTTrainer":
        """Everything that the config names, loaded; see `run`. UserError for what cannot be had, or does not go together."""
        if not config.eval_data:
            config = dataclasses.replace(config, eval_steps=0)
        device, dtype = start_run(config)
        check_steps(config)
        checkpoint = checkpoint_to_resume(config, config.output_dir)
        tokenizer = load_tokenizer(config.model, template_of_run(config, checkpoint), **config.tokenizer_source())

        def rows(**source: Any) -> Dataset:
            loaded = load_demonstrations(**source, seed=config.seed)
            how = {"max_length": config.max_length, "on_bad_row": config.on_bad_row, "cache_dir": source["cache_dir"]}
            return tokenize_demonstrations(loaded, tokenizer, **how)

        held_out, beside = None, {}
        if config.streaming:
            source = open_source(config.data[0], config.split, config.seed, config.on_bad_row)
            folder = Path(config.output_dir) / "stream"

            def of_window(file: Path, cache: Path) -> Dataset:
                # A name that no row of the first window has is a mistake; rows that have one may be few.
                how = config.source_beside() | {"cache_dir": str(cache), "columns_needed": not windows.known}
                return rows(sources=[str(file)], **how)

            windows = Windows(source, config.stream_window, folder, of_window)
            windows.begin(anew=checkpoint is None)
            demonstrations: Dataset | Windows = windows
            beside["others"] = {"stream": source.identity}
        else:
            demonstrations = beside["data"] = rows(**config.source())
        if config.eval_data:
            held_out = rows(sources=config.eval_data, split=config.eval_split, **config.source_beside())
        known = [longest_row(part, "input_ids") for part in (demonstrations, held_out) if isinstance(part, Dataset)]
        longest = max(known + [config.max_length] * config.streaming)
        check_positions(longest, [config.model], config, "the longest row", "give a `max_length` of at most {}")
        args = training_arguments(config, device, dtype, config.max_steps)
        settings = run_settings(config, dtype, checkpoint, tokenizer, models=["model"], **beside)
        model = load_policy(config.model, dtype, dropout=True, **config.model_source(), **config.base_loading())
        match_embeddings(model, tokenizer)
        model = prepare_model(model, config, "CAUSAL_LM", device.type)
        warn_of_shortage(config, dtype, device, [model])
        return cls(
            model=model,
            args=args,
            train_dataset=demonstrations,
            eval_dataset=held_out,
            data_collator=DemonstrationCollator(tokenizer.pad_token_id),
            processing_class=tokenizer,
            eval_tokens=config.micro_batch_size * config.max_length,
            session=Session(config, settings, checkpoint),
        )

    def run(self) -> dict[str, float]:
        """Train, from the start or the checkpoint to go on from, and write the model into the output folder.

        Returns: the evaluation metrics of the model that was written, if there are rows to evaluate it on.
        """
        began = time.perf_counter()
        metrics = self.session.run(self)
        if isinstance(self.train_dataset, Windows):
            self.train_dataset.close()
        save_trained(self, self.args.output_dir)
        steps, rows, took = self.state.global_step, len(self.train_dataset), in_words(time.perf_counter() - began)
        log.info("%s: trained to step %d on %d rows, %s", self.args.output_dir, steps, rows, took)
        logged = [row["loss"] for row in self.state.log_history if "loss" in row]
        lines = language_model_lines(logged, metrics, len(self.eval_dataset or ()))
        for line in lines:
            log.info("  %s", line)
        self.session.present("train-sft", lines, role="A language model, fine-tuned on demonstrations or plain text.")
        return metrics

    def count(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (batch["response_mask"] & batch["counted"][:, None]).sum()

    def sums(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        responses = ResponseBatch.of(batch)
        width = responses.response_mask.shape[1]
        logprobs, _ = token_logprob_entropy(model, *responses[:3], width, shared=responses.shared, with_entropy=False)
        return {"loss": -torch.where(batch["counted"][:, None], logprobs, 0.0).sum()}

    def lengths(self, rows: Dataset) -> np.ndarray:
        return list_lengths(rows, "input_ids")[:, None]
