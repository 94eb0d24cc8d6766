"""How a text becomes the token ids that sources read, and where tokens end in it: by a model's tokenizer, or without any."""

import functools
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from denserl.data.characters import ends_of_tokens
from denserl.data.messages import whole_text
from denserl.data.responses import Encoded, Messages, encode
from denserl.rewards.sources.reading import response_text


class Tokens(Protocol):
    """Texts to ids and back."""

    pad_id: int

    def encode(self, prompt: Messages, response: str | dict, ended: bool) -> Encoded:
        """A response as it is read. BadRow where that cannot be."""

    def decode(self, ids: list[int]) -> str:
        """Ids to text, without what closes the turn."""

    def render(self, ids: list[int]) -> str:
        """The same with special tokens."""

    def ends(self, ids: list[int], text: str) -> list[int]:
        """How many characters of the text are whole after each token; `ids` without the one that ends the turn."""


class ModelTokens:
    """The tokens of a model.

    Args:
        room: tokens of prompt and response together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, room: int):
        self.tokenizer, self.room, self.pad_id = tokenizer, room, tokenizer.pad_token_id
        self.decode, self.render = response_text(tokenizer), tokenizer.decode
        self._piece = functools.cache(lambda i: self.decode([i]))

    def encode(self, prompt: Messages, response: str | dict, ended: bool) -> Encoded:
        return encode(self.tokenizer, prompt, response, self.room, ended)

    def ends(self, ids: list[int], text: str) -> list[int]:
        return ends_of_tokens(ids, text, [self._piece(i) for i in ids], self.decode)


class Characters:
    """Each character is a token: for functions alone, which read texts."""

    END = 0x110000  # beyond all characters
    pad_id = 0

    def encode(self, prompt: Messages, response: str | dict, ended: bool) -> Encoded:
        return Encoded([self.pad_id], [*map(ord, whole_text(response)), self.END])

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids if i != self.END)

    render = decode

    def ends(self, ids: list[int], text: str) -> list[int]:
        return list(range(1, len(ids) + 1))
