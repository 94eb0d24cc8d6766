"""The tokens of labels, such as + and -, with which a language model judges: as they stand in a chat, found by rendering."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from denserl.data.bad_rows import BadRow
from denserl.data.chat import encode_prompt, encode_response
from denserl.data.rendering import assistant
from denserl.errors import UserError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of published models, the better one first.
LABELS = ("+", "-")
_QUESTION = {"role": "user", "content": "Question"}


def two_labels(labels: Sequence[str] | None) -> tuple[str, str]:
    """The labels that were chosen, or those of published models. UserError unless they are two."""
    chosen = LABELS if labels is None else tuple(labels)
    require(len(chosen) == 2, f"`labels` {' '.join(chosen)}: {len(chosen)} given", "give two, the better one first")
    return chosen[0], chosen[1]


def label_ids(tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str]) -> tuple[int, int]:
    """The token of each of two labels where it is the assistant's whole answer, in the last turn and in one before.

    A label that is encoded by itself, or in other text, may be another token.

    Raises:
        UserError: a label is not one token there, both are the same, or it is another one in a turn before the last.
    """
    first, second = labels
    try:
        last = [encode_response(tokenizer, [_QUESTION], label) for label in labels]
        before = [encode_prompt(tokenizer, [_QUESTION, assistant(label), _QUESTION]) for label in labels]
    except BadRow as error:
        raise _unfit(labels, str(error)) from error
    found, earlier = _differing(*last), _differing(*before)
    if found is None or earlier is None:
        shown = " and ".join(repr(tokenizer.convert_ids_to_tokens(ids)) for ids in last)
        raise _unfit(labels, f"answers of one token each that differ are needed; they are {shown}")
    if found != earlier:
        raise _unfit(labels, f"they are the tokens {found} in the last turn, and {earlier} in a turn before it")
    if [tokenizer.decode([i]).strip() for i in found] != [first, second]:
        raise _unfit(labels, f"their tokens {found} read {tokenizer.decode([found[0]])!r} and {tokenizer.decode([found[1]])!r}")
    return found


def _differing(one: list[int], other: list[int]) -> tuple[int, int] | None:
    """The one place at which two encodings differ; None where there are several, or none."""
    found = [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]]
    return found[0] if len(found) == 1 and len(one) == len(other) else None


def _unfit(labels: Sequence[str], found: str) -> UserError:
    return UserError(
        f"`labels` {' '.join(labels)}: {found}", "choose two that the tokenizer and its chat template write as one token each"
    )
