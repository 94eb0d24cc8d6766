"""A tokenizer trained on text and a small untrained language model: a start where no model can be downloaded."""

import logging
from dataclasses import dataclass

from denserl.cli.common import DataOptions, launch, make_folder, quiet_libraries, require

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(DataOptions):
    """Train a tokenizer on the text of any data that train-sft reads, and make an untrained Llama for it."""

    output_dir: str
    """Folder for tokenizer and model."""
    vocab_size: int = 8192
    """Most tokens of the vocabulary; at least 260 (bytes and special tokens)."""
    hidden_size: int = 256
    """Width of the model."""
    num_layers: int = 4
    """Layers."""
    num_heads: int = 4
    """Attention heads; must divide the width."""
    max_position_embeddings: int = 1024
    """Longest sequence."""
    seed: int = 0
    """Seed of the weights."""


def run(options: Options) -> None:
    from denserl.data.demonstrations import load_demonstrations
    from denserl.models.tiny import new_llama, train_tokenizer

    require(
        options.num_heads > 0 and options.hidden_size % (2 * options.num_heads) == 0,
        f"--hidden_size {options.hidden_size} does not split into {options.num_heads} heads of an even width",
        "use a multiple of twice --num_heads",
    )
    quiet_libraries()
    make_folder("output_dir", options.output_dir)
    rows = load_demonstrations(**options.source(), seed=options.seed)
    texts = (part for row in rows for part in (*(turn["content"] for turn in row["prompt"]), row["response"]))
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
    log.info("%s: %d tokens, %.1f M parameters, untrained", options.output_dir, len(tokenizer), model.num_parameters() / 1e6)


def main(argv: list[str] | None = None) -> None:
    launch(Options, "new-model", run, argv)


if __name__ == "__main__":
    main()
