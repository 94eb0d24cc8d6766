"""Labelled steps as the reward-model trainer takes them: loaded, split by questions, tokenised; batches."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from denserl.config import ModelSourceConfig
from denserl.data.batching import pad_responses, pad_rows
from denserl.data.features import longest_row
from denserl.data.labels import two_labels
from denserl.data.order import shuffled
from denserl.data.step_encoding import StepLayout, tokenize_steps
from denserl.data.step_records import StepReading, load_steps
from denserl.errors import UserError
from denserl.models.positions import check_positions
from denserl.rewards.sources.reading import STEP, cut_settings, new_segmenter, rule_of
from denserl.streams import Purpose, stream
from denserl.trainer.reward_config import RewardConfig


class StepCollator:
    """Rows that `tokenize_steps` made -> one padded batch; read_at is -1 past a row's steps, and labels are NaN there."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = pad_responses([row["prompt_ids"] for row in rows], [row["response_ids"] for row in rows], self.pad_id)
        labels = pad_rows([row["labels"] for row in rows], torch.nan, torch.float32)
        return {**batch._asdict(), "read_at": pad_rows([row["read_at"] for row in rows], -1), "labels": labels}


def steps_of(config: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset]:
    """Training and evaluation rows (see `tokenize_steps`); the latter have all labels, and none of them in their context."""
    rule = rule_of(config, STEP)
    reading = StepReading(config.neutral, config.step_marker, config.first_step, rule=rule)
    train = load_steps(**config.source(), seed=config.seed, reading=reading)
    if config.eval_data:
        held_out = load_steps(config.eval_data, split=config.eval_split, **config.source_beside(), reading=reading)
    else:
        train, held_out = split_by_question(train, config.eval_size, config.seed)
    how: dict[str, Any] = {
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "separator": rule.separators[0],
        "whole": config.input == "response",
        "on_bad_row": config.on_bad_row,
        "cache_dir": config.cache_dir,
    }
    layout = StepLayout(config.context_signs, two_labels(config.labels))
    # The true signs are what is asked for.
    as_judged = layout._replace(context_signs="none" if config.context_signs == "none" else "plus")
    train = tokenize_steps(train, tokenizer, layout, stop_at_first_error=config.stop_at_first_error, **how)
    held_out = tokenize_steps(held_out, tokenizer, as_judged, **how)
    check_lengths([train, held_out], config.model, config)
    return train, held_out


def split_by_question(rows: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train on, and at most `size`, and a tenth of all, to evaluate on: questions drawn by seed, with all their rows.

    Where none has so few rows, the one of fewest. UserError where there is no other, or where rows are fewer than ten.
    """
    most = min(size, len(rows) // 10)
    taken = whole_questions(rows["prompt"], most, stream(seed, Purpose.HELD_OUT))
    if not (most > 0 and len(taken) < len(rows)):
        questions = len({*map(json.dumps, rows["prompt"])})
        raise UserError(
            f"{len(rows)} rows on {questions} questions are too few to split some off for evaluation", "give `eval_data`"
        )
    parts = ([i for i in range(len(rows)) if (i in taken) == kept] for kept in (False, True))
    train, held_out = (rows.select(part) for part in parts)
    return train, held_out


def whole_questions(questions: Sequence[Any], most: int, draw: np.random.SeedSequence) -> set[int]:
    """The numbers of at most so many rows: of questions drawn at random, all their rows; where none fits, of the smallest.

    questions: of each row, as JSON has them.
    """
    of_question: dict[bytes, list[int]] = {}
    for number, question in enumerate(questions):
        # Not the texts, which may be longer than all else of a run.
        of_question.setdefault(hashlib.sha256(json.dumps(question).encode()).digest(), []).append(number)
    rows, taken = list(of_question.values()), set[int]()
    for question in shuffled(len(rows), draw):
        if len(taken) + len(rows[question]) <= most:
            taken.update(rows[question])
    return taken or {*min(rows, key=len, default=[])}


def check_lengths(parts: list[Dataset], model: str, source: ModelSourceConfig) -> None:
    """UserError for a solution that, with its prompt, is longer than the model's positions."""
    longest = max(longest_row(part, "prompt_ids", "response_ids") for part in parts)
    check_positions(longest, [model], source, "the longest solution with its prompt", "give a `max_length` of at most {}")


def step_settings(config: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """How a model that is trained on labels reads a response, as it is stored with it. An outcome is of one step."""
    cut = cut_settings(new_segmenter("segment", None, STEP, tokenizer, config))
    whole = {"max_steps": 1} if config.input == "response" else {}
    return {"scores": "logit", **cut, **whole, "context_signs": config.context_signs, "agg_func": "min"}
