"""Solutions of labelled steps as token ids, and the tokens at which their steps are read.

What a row holds is read in step_records.py; where a text is cut into steps is said in denserl/steps.py.
"""

import functools
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import datasets

from denserl.data.bad_rows import BadRow
from denserl.data.chat import bos_id, cut_left, encode_prompt, encode_response
from denserl.data.chat_format import common_start, own_marks
from denserl.data.features import IDS, NUMBER
from denserl.data.readers import map_rows
from denserl.data.tables import kept
from denserl.errors import UserError
from denserl.steps import SEPARATOR, tokens_up_to, with_separators

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Signs = Literal["none", "plus", "true"]
GOOD = 0.5  # a step whose label, or probability, is at least this is right
_ANOTHER_LAYOUT = "let `context_signs` be none, or give other `labels`"
_NO_OUTCOME = ("the outcome (final) is not known", "learn the labels of steps with `input` steps")


class StepLayout(NamedTuple):
    """How steps are written for the model that judges them.

    context_signs: none: the answer is the solution, and a step is read at its last token. plus, true: each step is a turn of
    the user, the first behind the question and a space, and is answered by one of the labels: by the first one whatever the
    truth, or by the true one, of which the step after it can be told without being read. A step is read before its answer.
    labels: what right and wrong steps are answered.
    """

    context_signs: Signs = "none"
    labels: tuple[str, str] = ("+", "-")


AT_ENDS = StepLayout()


class StepIds(NamedTuple):
    """One solution as token ids."""

    prompt_ids: list[int]
    response_ids: list[int]  # the end-of-turn token last where it ended; with signs, all up to where the last step is read
    read_at: list[int]  # of each step the token in response_ids at which it is read; ascending, and not always strictly


def encode_steps(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: list[dict],
    steps: Sequence[str],
    layout: StepLayout = AT_ENDS,
    signs: Sequence[bool] | None = None,
    ended: bool = True,
) -> StepIds:
    """Prompt (messages) and solution as ids, and where each step is read.

    Args:
        steps: pieces that are the solution one behind the other, their separators at their ends. Written as turns they are
            stripped.
        signs: whether each step is right, which only `true` signs tell; default: all are.
        ended: whether the solution came to its end, which the end-of-turn token then says.

    Raises:
        BadRow (a ValueError): the template refuses the messages, or does not write the solution as it is given.
        UserError: a label is not one token in the chat, or is the same token as the other.
    """
    if layout.context_signs == "none":
        return _read_at_ends(tokenizer, prompt, steps, ended)
    return _read_before_signs(tokenizer, prompt, steps, layout.labels, signs if layout.context_signs == "true" else None)


def _read_at_ends(tokenizer: "PreTrainedTokenizerBase", prompt: list[dict], steps: Sequence[str], ended: bool) -> StepIds:
    text = "".join(steps)
    prompt_ids = encode_prompt(tokenizer, prompt)
    ids = encode_response(tokenizer, prompt, text, prompt_ids)
    content, decode = ids[:-1], text_of_ids(tokenizer)
    written = decode(content)
    # A template may strip the answer, or write something before it.
    at = written.find(text.strip()) - (len(text) - len(text.lstrip()))
    if not content or text.strip() not in written:
        raise BadRow(
            "the chat template and its tokenizer do not give the solution back as it is written, so that its steps are lost"
        )
    ends = [max(at + end, 0) for end in itertools.accumulate(map(len, steps[:-1]))]
    ends = [min(end, len(written)) for end in (*ends, len(written))]
    read_at = [count - 1 for count in tokens_up_to(content, written, ends, decode)]
    return StepIds(prompt_ids, ids if ended else content, [*read_at[:-1], len(content) - 1])


def _read_before_signs(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: list[dict],
    steps: Sequence[str],
    labels: tuple[str, str],
    signs: Sequence[bool] | None,
) -> StepIds:
    plus_ids, minus_ids = (_conversation_ids(tokenizer, prompt, steps, label) for label in labels)
    _check_signs(plus_ids, minus_ids, len(steps), labels)
    at = [i for i, (plus, minus) in enumerate(zip(plus_ids, minus_ids)) if plus != minus]
    is_minus = {place for place, right in zip(at, signs or ()) if not right}
    ids = [minus_ids[i] if i in is_minus else id for i, id in enumerate(plus_ids[: at[-1]])]
    start = max(len(common_start([encode_prompt(tokenizer, prompt), ids])), 1)
    return StepIds(ids[:start], ids[start:], [place - 1 - start for place in at])


def _conversation_ids(tokenizer: "PreTrainedTokenizerBase", prompt: list[dict], steps: Sequence[str], label: str) -> list[int]:
    """Ids of the conversation in which the label answers every step."""
    if not prompt or prompt[-1]["role"] != "user":
        raise BadRow("with signs in the context a prompt must end with the question, in a message of role 'user'")
    first, *others = (step.strip() for step in steps)
    talk = [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']} {first}"}]
    for step in others:
        talk += [{"role": "assistant", "content": label}, {"role": "user", "content": step}]
    prompt_ids = encode_prompt(tokenizer, talk)
    return prompt_ids + encode_response(tokenizer, talk, label, prompt_ids)


def _check_signs(plus_ids: list[int], minus_ids: list[int], steps: int, labels: tuple[str, str]) -> None:
    """UserError unless both conversations differ in one token a step, the same wherever it stands, and opened alike."""
    at = [i for i, (plus, minus) in enumerate(zip(plus_ids, minus_ids)) if plus != minus]
    pairs = {(plus_ids[i], minus_ids[i]) for i in at}
    if len(plus_ids) != len(minus_ids) or len(at) != steps or len(pairs) != 1:
        found = f"the labels {labels[0]!r} and {labels[1]!r} are not one token each in the chat, another each"
        raise UserError(found, _ANOTHER_LAYOUT)
    if len({plus_ids[i - 1] for i in at}) != 1:
        raise UserError("the chat template opens the last answer otherwise than those before it", _ANOTHER_LAYOUT)


@functools.lru_cache(maxsize=8)
def text_of_ids(tokenizer: "PreTrainedTokenizerBase") -> Callable[[list[int]], str]:
    """Token ids -> text, with all of its spaces."""

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # Single tokens are asked for again and again, and are most of what an encoding takes.
    alone = functools.cache(lambda token: decode([token]))
    return lambda ids: alone(ids[0]) if len(ids) == 1 else decode(ids)


@kept
def tokenize_steps(
    dataset: datasets.Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    layout: StepLayout = AT_ENDS,
    *,
    max_length: int,
    max_prompt_length: int,
    separator: str = SEPARATOR,
    whole: bool = False,
    stop_at_first_error: bool = False,
    on_bad_row: str = "stop",
) -> datasets.Dataset:
    """Records of steps as ids: columns prompt_ids, response_ids, read_at, and labels (NaN: none), a place and a label a step.

    A sequence over `max_length` loses prompt tokens on its left, down to `max_prompt_length`; then the steps that are read
    past it, with their labels, which is logged.

    Args:
        dataset: columns prompt (messages), steps (texts), labels (NaN: none), final, and place.
        separator: what stands between steps.
        whole: the solution is one step, whose label is `final`, the outcome.
        stop_at_first_error: steps after a solution's first wrong one have no label.

    Bad rows: see `encode_steps`; no step that is left has a label.
    """
    if max_length - max_prompt_length < 2:
        raise UserError(
            f"`max_length` {max_length} and `max_prompt_length` {max_prompt_length} leave no room for a solution",
            "let `max_prompt_length` be smaller than `max_length` by at least 2",
        )
    counts: Counter[str] = Counter()
    bos = bos_id(tokenizer)

    def encode(row: dict):
        pieces, labels = _as_one(row, separator) if whole else _in_pieces(row, separator)
        if all(map(math.isnan, labels)):
            raise BadRow(*(_NO_OUTCOME if whole else ("no step has a label",)))
        ids = encode_steps(tokenizer, row["prompt"], pieces, layout, [not label < GOOD for label in labels])
        cut = fit_steps(ids, max_length, max_prompt_length, bos)
        labels = until_first_error(labels) if stop_at_first_error else labels
        kept = labels[: len(cut.read_at)]
        if all(map(math.isnan, kept)):
            raise BadRow("truncation leaves no step that has a label", "let `max_length` be larger")
        counts.update(solutions=1, cut=len(labels) > len(kept), steps=len(labels) - len(kept))
        yield {**cut._asdict(), "labels": kept}

    features = {"prompt_ids": IDS, "response_ids": IDS, "read_at": IDS, "labels": datasets.List(NUMBER)}
    rows = map_rows(dataset, encode, datasets.Features(features), on_bad_row, own_marks(tokenizer), counts)
    if counts["cut"]:
        words = "%d of %d solutions are longer than `max_length` %d: %d steps at their ends are left out, with their labels"
        log.warning(words, counts["cut"], counts["solutions"], max_length, counts["steps"])
    return rows


def fit_steps(ids: StepIds, max_length: int, max_prompt_length: int, bos: int | None = None) -> StepIds:
    """A solution cut to `max_length` tokens: its prompt on the left, then whole steps on its right, of which none may remain.

    bos: an id that stays at the prompt's beginning.
    """
    room = max(max_length - len(ids.response_ids), max_prompt_length)
    prompt_ids = cut_left(ids.prompt_ids, room, bos)
    room = max_length - len(prompt_ids)
    if len(ids.response_ids) <= room:
        return ids._replace(prompt_ids=prompt_ids)
    read_at = [at for at in ids.read_at if at < room]
    return StepIds(prompt_ids, ids.response_ids[: max(read_at, default=-1) + 1], read_at)


def until_first_error(labels: Sequence[float]) -> list[float]:
    """The labels of a solution without those after its first wrong step: NaN in their place."""
    first = next((i for i, label in enumerate(labels) if label < GOOD), len(labels))
    return [*labels[: first + 1], *[math.nan] * (len(labels) - first - 1)]


def _in_pieces(row: dict, separator: str) -> tuple[list[str], list[float]]:
    """The steps, each but the last with the separator behind it, and their labels."""
    return with_separators(row["steps"], separator), row["labels"]


def _as_one(row: dict, separator: str) -> tuple[list[str], list[float]]:
    """The whole solution, and its outcome."""
    return [separator.join(row["steps"])], [row["final"]]
