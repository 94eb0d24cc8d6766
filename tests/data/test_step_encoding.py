"""Solutions as ids: where steps are read, beside a reader of bytes; layouts with signs; truncation; rows."""

import itertools
import math
import random

import pytest
import tiny_models
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from denserl.data.chat import encode_prompt, encode_response
from denserl.data.chat_format import chat_format
from denserl.data.step_encoding import StepIds, StepLayout, encode_steps, fit_steps, tokenize_steps, until_first_error
from denserl.errors import UserError
from denserl.models.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS

NAN = math.nan
QUESTION = [{"role": "user", "content": "How many boats?"}]
STEPS = ["Two come.", "Two go. + -", "None stay."]
ALPHABET = ["a", "b", "b ", " c", ".", "\n", "é", "鐘", "🙂", " 12", "+", "-"]


@pytest.fixture(scope="module")
def tokenizer():
    """One whose tokens are cut without regard to words, so that some span a full stop, line breaks and the step after them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["So.", "So.\n\n", ".\n\n", "\n\n", "a\n\nb", "\n\na", "user\n", "assistant\n", "How many boats?"] * 2
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[*SPECIAL_TOKENS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    kw = {"pad_token": SPECIAL_TOKENS[0], "eos_token": SPECIAL_TOKENS[2], "clean_up_tokenization_spaces": False}
    special = [SPECIAL_TOKENS[1], SPECIAL_TOKENS[3]]
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=CHAT_TEMPLATE, additional_special_tokens=special, **kw)


def bytes_of(tokenizer, ids) -> list[bytes]:
    """The bytes of each token, by the byte-level alphabet: printable ones stand for themselves, the others for 256 and on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte = {chr(code): code for code in own}
    byte |= {chr(256 + i): code for i, code in enumerate(code for code in range(256) if code not in own)}
    return [bytes(byte[character] for character in token) for token in tokenizer.convert_ids_to_tokens(ids)]


def last_tokens(tokenizer, ids, pieces) -> list[int]:
    """The token that holds each piece's last byte."""
    owner = [i for i, part in enumerate(bytes_of(tokenizer, ids)) for _ in part]
    ends = list(itertools.accumulate(len(piece.encode()) for piece in pieces))
    assert ends[-1] == len(owner)
    return [owner[end - 1] for end in ends]


def test_steps_are_read_where_a_reader_of_bytes_finds_their_ends(tokenizer):
    random.seed(3)
    shared, prompt_ids = 0, encode_prompt(tokenizer, QUESTION)
    for _ in range(1000):
        pieces = []
        for _ in range(random.randint(1, 6)):
            text = "".join(random.choices(ALPHABET, k=random.randint(1, 5))) if random.random() < 0.8 else "b"
            pieces.append((text if text.strip() else "x") + random.choice(["\n\n", "\n\n\n", "", ".\n\n", " "]))
        ids = encode_steps(tokenizer, QUESTION, pieces)
        assert ids.prompt_ids == prompt_ids and tokenizer.decode(ids.response_ids) == "".join(pieces) + "<|im_end|>"
        assert ids.read_at == last_tokens(tokenizer, ids.response_ids[:-1], pieces)
        # Every token is in the step that ends with it or next after it, and the end of turn in none.
        assert ids.read_at == sorted(ids.read_at) and ids.read_at[-1] == len(ids.response_ids) - 2
        shared += len(ids.read_at) > len(set(ids.read_at))
    assert 0 < shared < 500  # tokens in which two steps end are met


def test_a_separator_may_be_in_one_token_with_the_steps_beside_it(tokenizer):
    read = [encode_steps(tokenizer, QUESTION, [step + "\n\n", "b"]) for step in ("So.", "z", "a")]
    texts = [[tokenizer.decode(ids.response_ids[at]) for at in ids.read_at] for ids in read]
    assert texts == [["So.\n\n", "b"], ["\n\n", "b"], ["a\n\nb", "a\n\nb"]]


@pytest.mark.parametrize("pieces", [["So.\n\n", "And so."], ["a\n\n", "b\n\n", "c"], ["One step."]])
def test_a_solution_that_was_cut_off_has_no_end_of_turn(tokenizer, pieces):
    whole, cut = (encode_steps(tokenizer, QUESTION, pieces, ended=ended) for ended in (True, False))
    assert cut == whole._replace(response_ids=whole.response_ids[:-1])


@pytest.mark.parametrize(
    ("written", "before", "first", "last"),
    [("{{ c | trim }}", "", "", ""), ("{{ 'Answer: ' + c }}", "Answer: ", " ", "\n\n"), ("{{ c + '\n' }}", "", " ", "\n\n\n")],
)
def test_a_template_may_strip_the_answer_or_write_around_it(written, before, first, last):
    tokenizer = tiny_models.tiny_tokenizer()
    turn = "{% set c = m['content'] %}{{ '<|im_start|>' + m['role'] + '\n' }}" + written + "{{ '<|im_end|>\n' }}"
    tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
    ids = encode_steps(tokenizer, QUESTION, [" a\n\n", "b c\n\n", "d\n\n"])
    read = [before + tokenizer.decode(ids.response_ids[: at + 1]).removeprefix(before) for at in ids.read_at]
    assert read == [before + first + text for text in ("a\n\n", "a\n\nb c\n\n", f"a\n\nb c\n\nd{last}")]


def chat(tokenizer, *turns) -> list[int]:
    """Ids of turns, user and assistant by turns, the last one open at its end."""
    roles = itertools.cycle(["user", "assistant"])
    text = "".join(f"<|im_start|>{role}\n{turn}<|im_end|>\n" for role, turn in zip(roles, turns))
    return tokenizer(text.removesuffix("<|im_end|>\n")).input_ids


@pytest.mark.parametrize(
    ("kind", "signs", "shown"),
    [("plus", None, "++"), ("plus", [True, False, False], "++"), ("true", None, "++"), ("true", [True, False, False], "+-")],
)
def test_with_signs_each_step_is_a_turn_and_is_read_before_its_answer(tokenizer, kind, signs, shown):
    pieces = [step + "\n\n" for step in STEPS]
    ids = encode_steps(tokenizer, QUESTION, pieces, StepLayout(kind), signs)
    whole = ids.prompt_ids + ids.response_ids
    first, second, third = STEPS
    turns = [f"How many boats? {first}", shown[0], second, shown[1], third]
    assert whole == chat(tokenizer, *turns, "")
    # A step at a time, by conversations that end with it: the same tokens, and read at the last.
    for count, at in enumerate(ids.read_at):
        assert whole[: len(ids.prompt_ids) + at + 1] == chat(tokenizer, *turns[: 2 * count + 1], "")
    assert tokenizer.decode(ids.prompt_ids).endswith("How many boats?")


def test_labels_are_one_token_each(tokenizer):
    yes = StepLayout("plus", ("a", "b"))
    assert (
        encode_steps(tokenizer, QUESTION, STEPS, yes).read_at
        == encode_steps(tokenizer, QUESTION, STEPS, StepLayout("plus")).read_at
    )
    for labels in (("+", "+"), ("++", "-"), ("+", "good enough")):
        with pytest.raises(UserError, match="are not one token each in the chat"):
            encode_steps(tokenizer, QUESTION, STEPS, StepLayout("plus", labels))


def test_a_template_that_opens_the_last_answer_in_another_way_cannot_hold_signs():
    other = tiny_models.tiny_tokenizer()
    other.chat_template = other.chat_template.replace(
        "message['content']", "('So: ' if loop.last and message['role'] == 'assistant' else '') + message['content']"
    )
    assert chat_format(other).end_of_turn
    with pytest.raises(UserError, match="opens the last answer otherwise"):
        encode_steps(other, QUESTION, STEPS, StepLayout("plus"))


IDS = StepIds([1, *range(10, 19)], [*range(20, 30)], [2, 5, 8])


@pytest.mark.parametrize(
    ("length", "most", "prompt", "response", "steps"),
    [
        (20, 4, [1, *range(10, 19)], 10, 3),  # fits
        (17, 4, [1, *range(13, 19)], 10, 3),  # the prompt alone is cut
        (13, 4, [1, *range(16, 19)], 9, 3),  # the last token is the end of turn, which no step needs
        (12, 4, [1, *range(16, 19)], 6, 2),  # the last step's token is the first that is cut
        (9, 4, [1, *range(16, 19)], 3, 1),
        (6, 4, [1, *range(16, 19)], 0, 0),
    ],
)
def test_a_step_whose_token_is_cut_is_left_out(length, most, prompt, response, steps):
    got = fit_steps(IDS, length, most, bos=1)
    assert got == StepIds(prompt, IDS.response_ids[:response], IDS.read_at[:steps])


def records(**columns) -> Dataset:
    rows = len(next(iter(columns.values())))
    own = {"prompt": [QUESTION] * rows, "final": [NAN] * rows, "place": [f"file:{i}" for i in range(rows)]}
    return Dataset.from_dict(own | columns)


def nones(labels) -> list:
    return [None if math.isnan(label) else label for label in labels]


def test_rows_keep_labels_beside_their_steps(tokenizer, caplog):
    many = [f"Step {i}." for i in range(12)]
    rows = records(steps=[STEPS, many], labels=[[1.0, NAN, 0.25], [i / 16 for i in range(12)]])
    found = tokenize_steps(rows, tokenizer, max_length=64, max_prompt_length=16)
    assert nones(found[0]["labels"]) == [1.0, None, 0.25]
    pieces = [f"{step}\n\n" for step in many]
    pieces[-1] = many[-1]
    whole = encode_steps(tokenizer, QUESTION, pieces)
    kept = len(found[1]["labels"])
    assert 0 < kept < 12 and found[1]["labels"] == [i / 16 for i in range(kept)]
    assert found[1]["read_at"] == whole.read_at[:kept]
    assert found[1]["response_ids"] == whole.response_ids[: whole.read_at[kept - 1] + 1]
    room = 64 - len(found[1]["prompt_ids"])
    assert whole.read_at[kept - 1] < room <= whole.read_at[kept]
    assert f"1 of 2 solutions are longer than `max_length` 64: {12 - kept} steps" in caplog.text


def test_the_whole_solution_is_one_step_with_the_outcome(tokenizer):
    rows = records(steps=[STEPS], labels=[[1.0, 1.0, 1.0]], final=[0.0])
    (found,) = tokenize_steps(rows, tokenizer, max_length=99, max_prompt_length=9, whole=True, separator="\n")
    assert found["response_ids"] == encode_response(tokenizer, QUESTION, "\n".join(STEPS))
    assert found["labels"] == [0.0] and found["read_at"] == [len(found["response_ids"]) - 2]


def test_labels_may_stop_at_the_first_error():
    assert nones(until_first_error([1.0, 0.5, 0.4, 1.0, 0.0])) == [1.0, 0.5, 0.4, None, None]
    assert nones(until_first_error([1.0, NAN, 0.0, 0.0])) == [1.0, None, 0.0, None]
    assert until_first_error([1.0, 1.0]) == [1.0, 1.0]


def test_true_signs_are_those_of_the_labels(tokenizer):
    rows = records(steps=[STEPS], labels=[[0.25, NAN, 0.0]])
    how = {"max_length": 99, "max_prompt_length": 9}
    (found,) = tokenize_steps(rows, tokenizer, StepLayout("true"), stop_at_first_error=True, **how)
    expected = encode_steps(tokenizer, QUESTION, STEPS, StepLayout("true"), [False, True, False])
    assert found["response_ids"] == expected.response_ids and nones(found["labels"]) == [0.25, None, None]
    # What is always + says nothing of the labels.
    plus = [
        tokenize_steps(records(steps=[STEPS], labels=[y]), tokenizer, StepLayout("plus"), **how) for y in ([1.0] * 3, [0.0] * 3)
    ]
    assert plus[0]["response_ids"] == plus[1]["response_ids"] and plus[0]["labels"] != plus[1]["labels"]


@pytest.mark.parametrize(
    ("columns", "kw", "reason"),
    [
        ({"steps": [STEPS], "labels": [[NAN] * 3]}, {}, "no step has a label"),
        ({"steps": [STEPS], "labels": [[1.0] * 3]}, {"whole": True}, "the outcome (final) is not known"),
        (
            {"steps": [["A river " * 9]], "labels": [[1.0]]},
            {"max_length": 24},
            "truncation leaves no step that has a label\n  fix: let `max_length` be larger",
        ),
        (
            {"steps": [STEPS], "labels": [[1.0] * 3], "prompt": [[]]},
            {"layout": StepLayout("plus")},
            "must end with the question",
        ),
    ],
)
def test_bad_rows_are_named(tokenizer, columns, kw, reason):
    with pytest.raises(UserError) as error:
        tokenize_steps(records(**columns), tokenizer, **{"max_length": 99, "max_prompt_length": 16, **kw})
    assert reason in str(error.value) and "file:0" in str(error.value)
