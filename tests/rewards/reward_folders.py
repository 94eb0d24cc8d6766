"""Folders of untrained reward models that go with a tiny language model, and single rows read by the stock class."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from denserl.models.heads import STOCK, Head
from denserl.models.loading import load_tokenizer, new_reward_model
from denserl.models.reward_settings import store_settings

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


@torch.no_grad()
def stock_score(folder: str, ids: list[int]) -> float:
    """What the stock class says of one unpadded row: its head at the last token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    return model(input_ids=torch.tensor([ids])).logits.item()
