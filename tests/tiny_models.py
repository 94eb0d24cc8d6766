"""Tiny models for tests: a tokenizer of a few hundred tokens, a Llama saved in a folder, and random models of many families.

Nothing is downloaded; everything is the same for the same seed.
"""

import contextlib
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)

from denserl.models.probe import probe, run_as
from denserl.models.tiny import new_llama, train_tokenizer

TEXTS = [
    "The kettle hums in the small kitchen while the rain falls on the garden.",
    "Please tell me about the garden, the kitchen and the old kettle.",
    "A quiet river runs under the stone bridge, and the boats wait there.",
    "Write two sentences about the river. Then say why the bridge is old.",
] * 3
VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large enough that logits differ by whole nats, so that an error in them shows.
    "initializer_range": 0.3,
}
GPT2_SIZES = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
FAMILIES = {
    "llama": lambda **kw: LlamaConfig(**SIZES, **kw),
    "llama-tied": lambda **kw: LlamaConfig(**SIZES, tie_word_embeddings=True, **kw),
    "mistral": lambda **kw: MistralConfig(**SIZES, sliding_window=None, **kw),
    "mistral-window": lambda **kw: MistralConfig(**SIZES, sliding_window=4, **kw),
    "qwen2": lambda **kw: Qwen2Config(**SIZES, **kw),
    "phi3": lambda **kw: Phi3Config(**SIZES, **kw),
    "gemma": lambda **kw: GemmaConfig(**SIZES, head_dim=8, **kw),
    "gemma2": lambda **kw: Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0, **kw),
    "cohere": lambda **kw: CohereConfig(**SIZES, logit_scale=0.25, **kw),
    "granite": lambda **kw: GraniteConfig(**SIZES, logits_scaling=4.0, **kw),
    "gpt2": lambda **kw: GPT2Config(**GPT2_SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, **kw),
}


def language_model(family: str, seed: int = 0):
    """A random fp32 causal language model of one of FAMILIES, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32).eval()


def classifier(family: str, seed: int = 0):
    """A random fp32 sequence classifier with one label, of one of FAMILIES, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = FAMILIES[family](num_labels=1)
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def probed(model):
    """A model run in the way that is found for it: without padding, where that changes nothing."""
    return run_as(model, probe(model))


def tiny_tokenizer():
    return train_tokenizer(TEXTS, 320)


def checkpoint_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained weights in a checkpoint of a supervised training, in fp32, as DeepSpeed's own program reads them."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    (states,) = checkpoint.glob("global_step*")
    if any(states.glob("*_optim_states.pt")):
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), states.name))
    return dict(torch.load(states / "mp_rank_00_model_states.pt", weights_only=False)["module"])


def save_language_model(folder: Path, seed: int = 0, stops: int = 0, hidden: int = 32, inner: int = 48) -> Path:
    """A one-layer Llama and its tokenizer in a folder; `stops` further tokens of the vocabulary also end a response."""
    tokenizer = tiny_tokenizer()
    model = new_llama(tokenizer, hidden_size=hidden, num_layers=1, num_heads=2, intermediate_size=inner, seed=seed)
    if stops:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(len(tokenizer) - stops, len(tokenizer))]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_gated_model(folder: Path, sft: Path, **settings) -> Path:
    """A model of three attributes under a gate, of random weights, freed of the second one; settings: stored with it."""
    from denserl.models.heads import Head, make_head, store_head
    from denserl.models.loading import match_embeddings
    from denserl.models.reward_models import new_reward_model
    from denserl.models.tokenizers import load_tokenizer

    tokenizer, model = load_tokenizer(str(sft)), new_reward_model(str(sft), "fp32")
    match_embeddings(model, tokenizer)
    head = Head("gated", 3, 12, 0.2, names=("help", "verbosity", "style"), temperature=5.0, gate_offset=4)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model.score = make_head(model.score.in_features, head)
        model.score.weight.normal_()
        model.score.transform.copy_(torch.tensor([[1.0, 0.0, 0.0], [-0.4, 0.0, -0.15], [0.0, 0.0, 1.0]]))
        model.score.gate.scale.fill_(7.0)
        for layer in model.score.gate.layers:
            layer.weight.mul_(4)
    store_head(model.config, head)
    model.config.segment_reward |= {"entropy_threshold": 1000.0, "read_at": "end_of_turn", **settings}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def without_free_tokens(folder: Path) -> None:
    """Let the template of a saved tiny tokenizer name the two special tokens that nothing uses, one renamed from pad."""
    path, template = folder / "tokenizer.json", folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|pad|>", "<|p|>"))
    template.write_text("{#- <|p|> <|endoftext|> -#}" + template.read_text())


def random_rows(lengths: list[int], seed: int = 0, vocabulary: int = VOCABULARY) -> list[list[int]]:
    """Rows of token ids, none of them 0..3 (pad and other special tokens)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def padded(rows: list[list[int]], side: str = "right", extra: int = 0, pad: int = 0):
    """(B, S) ids and attention mask, padded on one side by at least `extra` slots."""
    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[b, place], mask[b, place] = torch.tensor(row), 1
    return ids, mask


def boat_pairs(count: int) -> list[dict]:
    """Rows of preferences whose responses differ in length."""
    return [
        {"prompt": f"Tell me about boat {i}.", "chosen": "The river " * (1 + i % 3), "rejected": f"No {i} " * (1 + i % 2)}
        for i in range(count)
    ]


def as_argv(options: dict) -> list[str]:
    """Options as arguments: True as a bare flag, the parts of a list one by one, None left out."""
    argv = []
    for name, value in options.items():
        if value is True:
            argv.append(f"--{name}")
        elif value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def run_command(module, name: str, argv: list[str]):
    """Parse and run a command in this process; its errors name flags, as the command line shows them."""
    from denserl.cli.options import parse, with_flags
    from denserl.errors import UserError

    try:
        return module.run(parse(module.Options, name, argv))
    except UserError as error:
        raise with_flags(error, module.Options) from error


def same_weights(one: Path, other: Path) -> bool:
    """Whether the models in two folders have the same weights, to the bit."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def letters(prompts: list[list[dict]], responses: list[str]) -> list[float]:
    """A true reward of responses: their letters, and a tenth for each letter of the prompt."""
    return [len(response) + 0.1 * len(prompt[-1]["content"]) for prompt, response in zip(prompts, responses, strict=True)]


def letters_as_array(prompts: list[list[dict]], responses: list[str]) -> np.ndarray:
    """The same, as a function of numpy gives them."""
    return np.array(letters(prompts, responses), dtype=np.float32)


def unbounded(prompts: list[list[dict]], responses: list[str]) -> list[float]:
    """A true reward that is no number one can reckon with."""
    return [float("inf")] * len(responses)


@contextlib.contextmanager
def restored_environment():
    """What a run in this process sets for its process group must not reach the processes that later tests start."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
