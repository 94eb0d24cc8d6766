"""`denserl.score`: texts and options in, numbers out."""

from collections.abc import Sequence
from typing import Any

from denserl.data.responses import Messages
from denserl.scored.config import ScoreConfig
from denserl.scored.inputs import conversation_of
from denserl.scored.scorer import DenseScorer
from denserl.scored.shown import Scored


def score(
    response: str | dict | Sequence[str | dict],
    prompt: str | Messages | None = None,
    *,
    label: str | None = None,
    **options: Any,
) -> Scored:
    """What a response scores, segment by segment, as train-ppo would pay for it; shown in colours in a notebook. Example::

        denserl.score("It is small.", "Tell me about the garden.", reward_model="runs/rm")

    Models are loaded at each call; a `DenseScorer.from_config(ScoreConfig(...))` keeps them.

    Args:
        response: a text or a message of the assistant; two are set side by side.
        prompt: a user's turn or messages. label: the right answer, for sources that read one.
        options: those of `denserl score`, by name: `reward_model`, `entropy_threshold`, ... (docs/score.md).

    Raises:
        UserError: a source cannot be had, or refuses the text.
    """
    responses = [response] if isinstance(response, (str, dict)) else list(response)
    conversation = conversation_of(prompt, responses, label)
    return DenseScorer.from_config(ScoreConfig(**options))([conversation])[0]
