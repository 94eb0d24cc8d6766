"""Whether a model has positions for the rows that it is to read.

Absolute positions end in an IndexError beyond the last one, rotary ones in numbers that nothing was trained on.
"""

from collections.abc import Iterable

from datasets import Dataset
from transformers import PreTrainedConfig

from denserl.config import ModelSourceConfig
from denserl.data.features import longest_row
from denserl.errors import UserError
from denserl.models.loading import load_config


def positions_of(config: PreTrainedConfig) -> int | None:
    """How many tokens a sequence may have; None where the config sets no bound."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_positions(length: int, models: Iterable[str], source: ModelSourceConfig, sequence: str, fix: str) -> None:
    """UserError unless all of the models have positions for sequences of `length` tokens.

    Args:
        models: folders or hub names. source: how they are loaded.
        sequence: what is so long, in words. fix: what to do, with {} for the positions that there are.
    """
    for path in dict.fromkeys(models):
        most = positions_of(load_config(path, **source.tokenizer_source()))
        if most and length > most:
            raise UserError(f"{sequence} has {length} tokens; {path} has positions for {most}", fix.format(most))


def check_rollout_lengths(
    prompts: Iterable[Dataset], new_tokens: int, models: Iterable[str], source: ModelSourceConfig
) -> None:
    """The same of prompts (`prompt_ids`) with responses of `new_tokens`."""
    check_rollout_length(max((longest_row(rows, "prompt_ids") for rows in prompts), default=0), new_tokens, models, source)


def check_rollout_length(prompt_tokens: int, new_tokens: int, models: Iterable[str], source: ModelSourceConfig) -> None:
    """The same of the longest prompt with a response of `new_tokens`."""
    sequence = f"the longest prompt, of {prompt_tokens} tokens, with a response of `max_new_tokens` {new_tokens}"
    fix = "lower `max_new_tokens` or `max_prompt_length`, to at most {} together"
    check_positions(prompt_tokens + new_tokens, models, source, sequence, fix)
