"""Scorers of suites that need no model: the length of a response, and chance."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from denserl.data.responses import Messages
from denserl.errors import require
from denserl.streams import Purpose, stream

BASELINES = ("length", "random")
Function = Callable[[Sequence[Messages], Sequence[str]], np.ndarray]


def length_scores(prompts: Sequence[Messages], responses: Sequence[str]) -> np.ndarray:
    """The characters of each response: (n,) fp64."""
    return np.array([len(response) for response in responses], dtype=np.float64)


def random_scores(seed: int) -> Function:
    """Scores drawn evenly from [0, 1), the same for the same seed and number of responses."""
    return lambda prompts, responses: np.random.default_rng(stream(seed, Purpose.RANDOM_SCORES)).random(len(responses))


class BaselineScorer:
    """`length` or `random` in the place of a reward model, with nothing to encode."""

    is_model = False

    def __init__(self, word: str, seed: int):
        self.word = word
        self.scores = {"length": length_scores, "random": random_scores(seed)}[word]

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> np.ndarray:
        return self.scores(prompts, responses)

    def encode(self, prompt: Messages, response: str) -> tuple[Messages, str]:
        """Prompt and response as they are."""
        return prompt, response

    def score(self, encoded: Sequence[tuple[Messages, str]]) -> np.ndarray:
        """The scores of what `encode` gave: (n,) fp64."""
        return self.scores([prompt for prompt, _ in encoded], [response for _, response in encoded])

    def encode_steps(self, prompt: Messages, steps: Sequence[str]) -> Sequence[str]:
        """The steps as they are."""
        require(
            self.word == "random",
            "`scorer` length says nothing of the steps of a solution",
            "give a model that was trained on labels of steps, or random",
        )
        return steps

    def step_scores(self, encoded: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Logits of chances that are drawn evenly, of every step of what `encode_steps` gave."""
        lengths = [len(steps) for steps in encoded]
        chances = self.scores([[]] * sum(lengths), [""] * sum(lengths))
        return np.split(np.log(chances) - np.log1p(-chances), np.cumsum(lengths)[:-1])

    def text(self, prompt: Messages, response: str) -> str:
        """What is scored."""
        return response

    def describe(self) -> dict[str, Any]:
        """How the scores came about, for a file of results."""
        return {"scorer": self.word}
