"""Folders of untrained reward models that go with a tiny language model, and single rows read by the stock class."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from denserl.data.labels import label_ids
from denserl.models.heads import STOCK, Head
from denserl.models.reward_models import new_reward_model
from denserl.models.reward_settings import store_settings
from denserl.models.saving import save_model
from denserl.models.tokenizers import load_tokenizer

PROMPTS = [
    [{"role": "user", "content": "Tell me about the river."}],
    [{"role": "user", "content": "Why?"}],
    [{"role": "user", "content": "And the bridge, the garden?"}],
]
TEXTS = ["A quiet river runs under the stone bridge.", "Rain.", "The boats wait there. " * 4]


def save_reward_model(folder: Path, sft: Path, seed: int, head: Head = STOCK, moments: tuple = (), **stored) -> str:
    """A reward model with random weights of some size in its head. stored: what its config says of how it is read."""
    model = new_reward_model(str(sft), "fp32", seed, head)
    with torch.no_grad():
        for weight in model.score.parameters():
            weight.mul_(20 if weight.ndim == 2 and len(list(model.score.parameters())) == 1 else 3)
    if stored:
        store_settings(model.config, **stored)
    if moments:
        model.config.mean, model.config.std = moments
    model.save_pretrained(folder)
    load_tokenizer(str(sft)).save_pretrained(folder)
    return str(folder)


def save_pair_model(folder: Path, sft: Path, layout: str = "denserl", factor: float = 2.0, **stored) -> str:
    """A model that compares two responses, with the tiny model's rows for both labels made larger."""
    tokenizer = load_tokenizer(str(sft))
    model = new_reward_model(
        str(sft), "fp32", head=Head("label", labels=("A", "B"), label_ids=label_ids(tokenizer, ("A", "B")))
    )
    with torch.no_grad():
        model.score.weight.mul_(factor)
        # So that what stands in the responses makes a difference where it is read.
        for name, weight in model.named_parameters():
            if "_proj" in name:
                weight.mul_(3)
    store_settings(model.config, input="pair", pair_layout=layout, **stored)
    save_model(model, folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def stock_log_odds(folder: str, text: str) -> float:
    """What the stock language model in a folder says behind an unpadded text: its logit of A less that of B."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), load_tokenizer(folder)
    logits = model(tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids).logits[0, -1].double()
    first, second = label_ids(tokenizer, ("A", "B"))
    return (logits[first] - logits[second]).item()


@torch.no_grad()
def stock_score(folder: str, ids: list[int]) -> float:
    """What the stock class says of one unpadded row: its head at the last token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    return model(input_ids=torch.tensor([ids])).logits.item()
