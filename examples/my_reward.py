"""Rewards of one's own: denserl train-ppo --reward_function examples/my_reward.py:plain_words ..."""

import re


def plain_words(prompts: list, responses: list[str]) -> list[float]:
    """One number a response: short words are worth more."""
    return [-sum(map(len, response.split())) / max(len(response.split()), 1) for response in responses]


def no_repeats(prompts: list, responses: list[str]) -> list[list[tuple[int, float]]]:
    """A number for each sentence, up to the character where it ends: what has been said before costs one."""
    found = []
    for response in responses:
        sentences = list(re.finditer(r"[^.!?]*[.!?]+|[^.!?]+$", response))
        texts = [sentence[0].strip() for sentence in sentences]
        found.append([(s.end(), -float(texts[i] in texts[:i])) for i, s in enumerate(sentences)])
    return found
