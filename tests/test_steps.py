"""Steps are found in text: against a reader of single characters, and a tokenizer's own offsets."""

import random

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from denserl.errors import UserError
from denserl.segmentation import Segmenter
from denserl.steps import StepRule, step_ends, step_rule, step_spans, step_texts, tokens_up_to

RULE = StepRule()
PIECES = ["4 + 2 = 6", ".", "\n", "\n\n", ".\n\n", "so", " ", "é漢", "🙂", "Step 1", "Step 10", "\t", "\n\n\n"]


def ends_by_character(text: str, separators: tuple[str, ...], most: int) -> list[int]:
    """Goes from character to character; a step is closed where a separator ends and something has been said since the last."""
    ends, said, place = [], False, 0
    while place < len(text):
        separator = next((s for s in separators if text.startswith(s, place)), None)
        if separator is None:
            said = said or not text[place].isspace()
            place += 1
            continue
        place += len(separator)
        if said:
            ends.append(place)
        elif ends:
            ends[-1] = place
        said = False
    if said:
        ends.append(len(text))
    elif ends:
        ends[-1] = len(text)
    while len(ends) > most:
        del ends[-2]
    return ends


def a_text(numbers: random.Random) -> str:
    return "".join(numbers.choice(PIECES) for _ in range(numbers.randint(0, 20)))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pieces that hold separators with what stands before or after them, and parts of characters."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([".\n\n" * 9, "6.\n\nso" * 9, "\n\n\n" * 9, "é漢 so" * 3], vocab_size=280, min_frequency=2)
    bpe.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<end>")


def by_offsets(text: str, offsets: list[tuple[int, int]], ends: list[int]) -> list[int]:
    """The step of each token: the number of steps whose last character lies in a token before it."""
    # The parts of a character all have its offsets; the last of them makes it whole.
    last = [max(i for i, (start, _) in enumerate(offsets) if start < stop) for stop in ends]
    closed = sorted(set(last))  # steps that end within one token are one
    return [sum(close < i for close in closed) for i in range(len(offsets))]


@pytest.mark.parametrize("separators, most", [(("\n\n",), 64), (("\n",), 64), (("\n\n", "."), 5), ((" = ",), 1)])
def test_steps_are_those_of_a_reader_of_characters(separators, most):
    numbers, rule = random.Random(0), StepRule(separators, most=most)
    for _ in range(500):
        text = a_text(numbers)
        assert step_ends(text, rule) == ends_by_character(text, separators, most)
        pieces = step_texts(text, rule)
        assert "".join(pieces) == (text if pieces else "") and all(map(str.strip, pieces))


def test_steps_by_hand():
    assert step_texts("a\n\nb\n\n\n\nc\n\n", RULE) == ["a\n\n", "b\n\n\n\n", "c\n\n"]
    assert step_texts("\n\na\n\nb", RULE) == ["\n\na\n\n", "b"]
    assert step_texts("a\nb", RULE) == ["a\nb"] and step_texts(" \n\n ", RULE) == step_texts("", RULE) == []
    assert step_texts("a\n\nb\n\nc\n\nd", StepRule(most=2)) == ["a\n\n", "b\n\nc\n\nd"]
    assert step_texts("Step 1: a Step 10: b", StepRule(pattern=r"(?= Step \d+:)|;")) == ["Step 1: a", " Step 10: b"]
    assert len(step_ends("x\n\n" * 12, RULE)) == 12


def test_every_token_of_a_thousand_texts_is_in_one_step_or_in_none(tokenizer):
    numbers = random.Random(1)
    segmenter = Segmenter(1.75, "step", rule=RULE, decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
    inside_a_token = across_tokens = 0
    for _ in range(1000):
        text = a_text(numbers)
        coded = tokenizer(text, return_offsets_mapping=True)
        ids, ended = coded.input_ids, numbers.random() < 0.5
        ids = ids[: numbers.randint(0, len(ids))] if not ended else ids
        text = tokenizer.decode(ids)
        if "\ufffd" in text:
            continue  # cut within a character, which has no offsets
        ends = ends_by_character(text, RULE.separators, RULE.most)
        expected = by_offsets(text, coded.offset_mapping[: len(ids)], ends) if ends else [-1] * len(ids)
        closing = [tokenizer.eos_token_id] if ended and ids else []
        row = torch.tensor([ids + closing], dtype=torch.long).view(1, -1)
        found = segmenter(torch.zeros(row.shape), torch.ones(row.shape), row, torch.tensor([bool(closing)]))
        assert found.ids[0].tolist() == expected + [-1] * len(closing)
        assert found.counts.item() == len(set(expected) - {-1}) and found.lengths.sum() == sum(i >= 0 for i in expected)
        pieces = [tokenizer.decode([i]) for i in ids]
        inside_a_token += any("\n\n" in piece.strip(" ") and piece != "\n\n" for piece in pieces)
        across_tokens += any(a.endswith("\n") and b.startswith("\n") for a, b in zip(pieces, pieces[1:]))
    assert inside_a_token > 100 and across_tokens > 100


def test_a_cut_off_step_may_have_no_score(tokenizer):
    def steps_of(text: str, ended: bool, **rule) -> list[int]:
        row = torch.tensor([tokenizer(text).input_ids])
        segmenter = Segmenter(1.75, "step", rule=StepRule(**rule), decode=tokenizer.decode)
        return segmenter(torch.zeros(row.shape), torch.ones(row.shape), row, torch.tensor([ended])).lengths[0].tolist()

    assert len(steps_of("so\n\n6 + 1", False)) == 2 and len(steps_of("so\n\n6 + 1", False, score_cut=False)) == 1
    assert len(steps_of("so\n\n6 + 1\n\n", False, score_cut=False)) == 2  # cut off behind a whole step
    assert steps_of("so", False, score_cut=False) == []


def test_ends_within_one_token_are_one_step():
    spelled = {0: "a", 1: "\n\nb\n\nc", 2: "d"}
    characters, tokens = step_spans([0, 1, 2], lambda ids: "".join(spelled[i] for i in ids), RULE)
    assert (characters, tokens) == ([6, 8], [2, 3])


def test_tokens_up_to_a_character_of_several_tokens(tokenizer):
    text = "🙂.🙂"
    ids = tokenizer(text).input_ids
    assert len(ids) == 9  # four bytes, one, four
    assert tokens_up_to(ids, text, [1, 2, 3], tokenizer.decode) == [4, 5, 9]


@pytest.mark.parametrize(
    "separators, pattern, shown",
    [([""], None, "empty"), (None, "(", "no regular expression"), (None, "x*", "matches an empty")],
)
def test_rules_that_cut_nothing_or_everything_are_refused(separators, pattern, shown):
    with pytest.raises(UserError, match=shown):
        step_rule(separators, pattern, 64, True)
    assert step_rule(None, None, 64, True) == RULE
