"""The tokens of labels, such as + and -, with which a language model judges: as they stand in a chat, found by rendering."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from denserl.data.bad_rows import BadRow
from denserl.data.chat import encode_prompt, encode_response
from denserl.data.rendering import assistant
from denserl.errors import UserError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of published models, the better one first; and of those that are shown two responses, the one that stands first before.
LABELS, PLACES = ("+", "-"), ("A", "B")
_QUESTION = {"role": "user", "content": "Question"}


def two_labels(labels: Sequence[str] | None) -> tuple[str, str]:
    """The labels that were chosen, or those of published models. UserError unless they are two."""
    chosen = LABELS if labels is None else tuple(labels)
    require(len(chosen) == 2, f"`labels` {' '.join(chosen)}: {len(chosen)} given", "give two, the better one first")
    return chosen[0], chosen[1]


def place_labels(labels: Sequence[str] | None) -> tuple[str, ...]:
    """The labels of two responses in one text: of the first one, of the second, and of a tie where there is a third.

    UserError unless they are two or three.
    """
    chosen = PLACES if labels is None else tuple(labels)
    found = f"`labels` {' '.join(chosen)}: {len(chosen)} given"
    require(len(chosen) in (2, 3), found, "give those of the first and the second response, and maybe one of a tie")
    return chosen


def label_ids(tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str]) -> tuple[int, ...]:
    """The token of each of several labels where it is the assistant's whole answer, in the last turn and in one before.

    A label that is encoded by itself, or in other text, may be another token.

    Raises:
        UserError: a label is not one token there, two are the same, or it is another one in a turn before the last.
    """
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
    if [tokenizer.decode([i]).strip() for i in found] != [*labels]:
        shown = " and ".join(repr(tokenizer.decode([i])) for i in found)
        raise _unfit(labels, f"their tokens {found} read {shown}")
    return found


def _differing(*encodings: list[int]) -> tuple[int, ...] | None:
    """What stands at the one place where encodings differ; None where there are several, or none, or two are the same."""
    found = [ids for ids in zip(*encodings, strict=False) if len(set(ids)) > 1]
    alone = len(found) == 1 and len({*map(len, encodings)}) == 1 and len(set(found[0])) == len(encodings)
    return found[0] if alone else None


def _unfit(labels: Sequence[str], found: str) -> UserError:
    return UserError(
        f"`labels` {' '.join(labels)}: {found}", "choose some that the tokenizer and its chat template write as one token each"
    )
