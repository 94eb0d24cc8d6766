"""What transformers alone says of a text, and the settings of the models that are asked."""

from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

THRESHOLD = 5.31  # nats; about half of the tokens of the tiny language model are above it
MOMENTS = (0.25, 2.0)  # mean and std of scores
PROMPT = "Tell me about the garden."
ANSWERS = ["The kettle hums in the kitchen.", "A quiet river 🦊 runs\n\nand waits. And waits there."]


@torch.no_grad()
def plain(models, reward_model: str, answer: str, prompt: str = PROMPT) -> SimpleNamespace:
    """Of one unpadded row, by transformers alone: scores and entropies at each response token; scores of the prompt before it;
    the response's text up to each token, as far as its characters are whole."""
    tokenizer = AutoTokenizer.from_pretrained(models.sft)
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
    start = tokenizer(text, add_special_tokens=False).input_ids
    ids = [*start, *tokenizer(answer + "<|im_end|>", add_special_tokens=False).input_ids]
    reward = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    scores = reward.score(reward.model(torch.tensor([ids])).last_hidden_state)[0, :, 0].tolist()
    logprobs = log_softmax(models.sft, ids)[len(start) - 1 : -1]
    entropies = [-(row.exp() * row).sum().item() for row in logprobs]
    ends = range(len(start) + 1, len(ids) + 1)
    texts = [tokenizer.decode(ids[len(start) : end], skip_special_tokens=True).rstrip("\ufffd") for end in ends]
    return SimpleNamespace(scores=scores[len(start) :], before=scores[: len(start)], entropies=entropies, up_to=texts)


@torch.no_grad()
def log_softmax(folder: str, ids: list[int]) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
