"""What the rows measure on: a tokenizer trained on the data, random Llama-shaped models, tokenised pairs and prompts.

Made once and kept under the folder for runs, so that both sides load the same files.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from harness import Options
from transformers import AutoModelForCausalLM, AutoTokenizer

from denserl.errors import UserError
from denserl.models.tiny import TURN_END, new_llama, train_tokenizer

VOCABULARY = 8192
HEAD_WIDTH = 32
LONGEST = 1024
LONGEST_PROMPT_OF_PAIR = 512


def shape_of(name: str) -> tuple[int, int]:
    """`4x128` -> 4 layers of width 128. UserError for another form."""
    layers, _, hidden = name.partition("x")
    if not (layers.isdigit() and hidden.isdigit() and int(hidden) % HEAD_WIDTH == 0):
        raise UserError(
            f"--model {name}: expected LAYERSxHIDDEN with a width that is a multiple of {HEAD_WIDTH}",
            "give 4x128 or 8x256; for a model of 1B parameters: python benchmarks/gpu.py --device cuda --model 1b",
        )
    return int(layers), int(hidden)


def pairs_file(options: Options) -> Path:
    """The preferences of ultrafeedback-1k. UserError where they are not."""
    path = options.data / "ultrafeedback-1k/train.jsonl"
    if not path.is_file():
        raise UserError(f"no data: {path} does not exist", "give --data FOLDER, a folder with ultrafeedback-1k/train.jsonl")
    return path


def kept(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, filled by `make` unless it is there already; a half-made one is never taken for whole."""
    if not folder.exists():
        aside = folder.with_name(f".{folder.name}.part")
        aside.mkdir(parents=True, exist_ok=True)
        make(aside)
        aside.rename(folder)
    return folder


def tokenizer_folder(options: Options) -> Path:
    """A byte-level BPE tokenizer of VOCABULARY tokens, trained on the pairs."""

    def make(folder: Path) -> None:
        texts = (part for row in _rows(pairs_file(options)) for part in (row["prompt"], row["chosen"], row["rejected"]))
        train_tokenizer(texts, VOCABULARY).save_pretrained(folder)

    return kept(options.runs / "models/tokenizer", make)


def language_model(options: Options, shape: str, end_probability: float | None = None) -> Path:
    """A random Llama of a shape, with its tokenizer.

    end_probability: of ending the turn at each token, on average; 0 for a model that never does; None leaves it to chance.
    """
    layers, hidden = shape_of(shape)

    def make(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(options))
        model = new_llama(tokenizer, hidden, layers, hidden // HEAD_WIDTH, max_position_embeddings=2 * LONGEST).eval()
        if end_probability is not None:
            prompts = [row["prompt_ids"] for row in pairs(options, tokenizer, 32)[1]]
            set_end_probability(model, tokenizer, end_probability, prompts)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return kept(options.runs / "models" / (shape if end_probability is None else f"{shape}-end{end_probability:.3g}"), make)


def reward_model(options: Options, policy: Path) -> Path:
    """The backbone of a language model under a fresh reward head, with its tokenizer."""
    from denserl.models.reward_models import new_reward_model

    def make(folder: Path) -> None:
        new_reward_model(str(policy), "fp32").save_pretrained(folder)
        AutoTokenizer.from_pretrained(policy).save_pretrained(folder)

    return kept(policy.with_name(f"{policy.name}-reward"), make)


@torch.no_grad()
def set_end_probability(model, tokenizer, probability: float, prompts: list[list[int]]) -> None:
    """Give a random Llama with tied embeddings the wanted average probability of ending the turn; no other special token.

    The first dimension of the residual stream is one number for every token and no layer writes to it, so that the output
    layer can lower or raise a token by it. It is as large as all others together, so that the last norm scales it alike
    whatever the text is.
    """
    embedding, specials = model.get_input_embeddings().weight, tokenizer.all_special_ids
    end, constant = tokenizer.convert_tokens_to_ids(TURN_END), model.config.hidden_size**0.5
    embedding[:, 0] = constant
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    embedding[specials] = 0.0
    embedding[specials, 0] = -constant
    hidden = torch.cat([hidden_of_response(model, prompt, len(specials)) for prompt in prompts])
    others, carried = model.lm_head(hidden).logsumexp(1), hidden[:, 0]
    if probability > 0:
        embedding[end, 0] = bisect(lambda row: torch.sigmoid(row * carried - others).mean().item(), probability)


def hidden_of_response(model, prompt: list[int], first: int, length: int = 64) -> torch.Tensor:
    """(length, H): the last hidden states over a prompt and `length` random tokens from `first` on, where those are."""
    generator = torch.Generator().manual_seed(len(prompt))
    response = torch.randint(first, model.config.vocab_size, (length,), generator=generator)
    return model.model(torch.cat([torch.tensor(prompt), response])[None]).last_hidden_state[0, -length:]


def bisect(function: Callable[[float], float], value: float, low: float = -1e3, high: float = 1e3) -> float:
    """Where an increasing function takes a value."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < value else (low, middle)
    return low


def end_probability(mean: float, longest: int) -> float:
    """The chance of ending at each token that makes `mean` the expected length of responses cut at `longest` tokens."""
    # Lengths are geometric: the mean is (1 - (1 - p)^longest) / p, which falls as p rises.
    return bisect(lambda p: -(1 - (1 - p) ** longest) / p, -mean, 1e-6, 1.0)


def pairs(options: Options, tokenizer, count: int) -> tuple[list[int], list[dict]]:
    """A sample of tokenised pairs that keeps the spread of lengths, every so many by length; their row numbers come first."""
    rows = tokenized_pairs(str(pairs_file(options)), tokenizer).to_list()
    order = sorted(
        range(len(rows)), key=lambda i: sum(map(len, (rows[i]["prompt_ids"], rows[i]["chosen_ids"], rows[i]["rejected_ids"])))
    )
    numbers = [order[math.floor((i + 0.5) * len(rows) / count)] for i in range(count)]
    return numbers, [rows[number] for number in numbers]


@cache
def tokenized_pairs(path: str, tokenizer):
    from denserl.data.preferences import load_preferences, tokenize_preferences

    rows = load_preferences([path], on_bad_row="skip")
    limits = {"max_length": LONGEST, "max_prompt_length": LONGEST_PROMPT_OF_PAIR}
    # A row that is dropped here would shift the numbers of those after it.
    return tokenize_preferences(rows, tokenizer, **limits)


@torch.no_grad()
def upper_quarter_entropy(policy: Path, rows: list[dict]) -> float:
    """The entropy that a quarter of the chosen responses' tokens exceed: as a threshold, segments of about four tokens."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    entropies = []
    for row in rows:
        logits = model(torch.tensor([row["prompt_ids"] + row["chosen_ids"]])).logits[0, len(row["prompt_ids"]) - 1 : -1]
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    return round(torch.cat(entropies).quantile(0.75).item(), 3)


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
