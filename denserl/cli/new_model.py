"""A tokenizer trained on text and a small untrained language model: a start where no model can be downloaded."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from denserl.cli.launch import launch
from denserl.config import FIRST
from denserl.data.config import DataConfig
from denserl.errors import require
from denserl.files import make_folder
from denserl.terminal import quiet_libraries

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(DataConfig):
    """Train a tokenizer on the text of any data that train-sft reads, and make an untrained Llama for it."""

    group: ClassVar[str] = "model"

    output_dir: Annotated[str, FIRST]
    """Folder for tokenizer and model."""
    vocab_size: Annotated[int, FIRST, Interval(ge=260, le=10_000_000)] = 8192
    """Most tokens of the vocabulary; at least 260 (bytes and special tokens)."""
    hidden_size: Annotated[int, FIRST, Ge(1)] = 256
    """Width of the model."""
    num_layers: Annotated[int, FIRST, Ge(1)] = 4
    """Layers."""
    num_heads: Annotated[int, FIRST, Ge(1)] = 4
    """Attention heads; must divide the width."""
    max_position_embeddings: Annotated[int, Ge(1)] = 1024
    """Longest sequence."""
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0
    """Seed of the weights."""


def run(options: Options) -> None:
    from denserl.data.demonstrations import load_demonstrations
    from denserl.data.messages import texts_in
    from denserl.data.rendering import assistant
    from denserl.models.card import Making, write_cards
    from denserl.models.tiny import new_llama, train_tokenizer

    require(
        options.hidden_size % (2 * options.num_heads) == 0,
        f"`hidden_size` {options.hidden_size} does not split into {options.num_heads} heads of an even width",
        "use a multiple of twice `num_heads`",
    )
    quiet_libraries()
    make_folder("output_dir", options.output_dir)
    rows = load_demonstrations(**options.source(), seed=options.seed)
    messages = (message for row in rows for message in (*row["prompt"], assistant(row["response"])))
    texts = (text for message in messages for text in texts_in(message))
    tokenizer = train_tokenizer(texts, options.vocab_size)
    model = new_llama(
        tokenizer,
        options.hidden_size,
        options.num_layers,
        options.num_heads,
        max_position_embeddings=options.max_position_embeddings,
        seed=options.seed,
    )
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    write_cards(
        Path(options.output_dir), Making("new-model", options), "An untrained language model, and a tokenizer trained on text."
    )
    log.info("%s: %d tokens, %.1f M parameters, untrained", options.output_dir, len(tokenizer), model.num_parameters() / 1e6)


def main(argv: list[str] | None = None) -> None:
    launch(Options, "new-model", run, argv)


if __name__ == "__main__":
    main()
