"""How judges' answers are read: tables of texts worked out by hand, and probabilities in closed form."""

import math
import random
import time

import pytest

from denserl.judging import verdicts

PAIR = {"[[A]]": "first", "[[B]]": "second"}
WITH_TIES = {**PAIR, "[[C]]": "tie"}
FIVE = {f"[[{mark}]]": says for mark, says in verdicts.ARENAHARD.items()}
TOKENS = {"m": "first", "M": "second"}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("x [[A]]", "first"),
        ("[[A]] at first, but finally [[B]]", "second"),
        ("<think>[[A]]</think>[[B]]", "second"),
        ("<think>[[A]]</think>none", "invalid"),
        ("[[B]], no: [[A]]</think> The answer is [[B]].", "second"),  # the chat template has opened the thoughts
        ("<think>one</think>[[A]]<think>[[B]]</think>", "first"),
        ("[[A]]<think>one</think> or rather</think>none", "invalid"),
        ("<think>so far [[A]]", "invalid"),
        ("The tag <think> is not closed in B. [[A]]", "first"),
        ("[[C]]", "invalid"),
        ("", "invalid"),
        ("[A]", "invalid"),
        ("[[a]]", "invalid"),
        ("A", "invalid"),
        ("**[[B]]**\n", "second"),
    ],
)
def test_the_last_mark_behind_the_thoughts_decides(text, verdict):
    assert verdicts.strict(text, False, PAIR) == verdict
    assert verdicts.strict(text, True, PAIR) == ("cut" if verdict == "invalid" else verdict)


def test_ties_are_read_where_the_template_has_them():
    assert verdicts.strict("[[A]] or [[C]]", False, WITH_TIES) == "tie"
    assert [verdicts.strict(mark, False, FIVE) for mark in FIVE] == ["first", "first", "tie", "second", "second"]
    assert [verdicts.last_mark(f"[[A=B]] {mark}", FIVE) for mark in FIVE] == list(FIVE.values())


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("m", "first"),
        (' "M".\n', "second"),
        ("**M**", "second"),
        ("I'm for M", "invalid"),
        ("Model m", "invalid"),
        ("<think>m</think>M", "second"),
    ],
)
def test_a_bare_letter_is_all_that_is_said(text, verdict):
    assert verdicts.strict(text, False, TOKENS) == verdict


def test_a_mark_of_words_is_no_part_of_a_longer_word():
    marks = {"Verdict: A": "first", "Verdict: B": "second", "Verdict: A+": "first by far"}
    assert verdicts.last_mark("Verdict: Answer B is better", marks) is None
    assert verdicts.last_mark("Verdict: A, not Verdict: Both", marks) == "first"
    assert verdicts.last_mark("Verdict: B. Verdict: A+", marks) == "first by far"


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("8/10", 8),
        ("9", 9),
        ("10.", 10),
        ("11", None),
        ("0", None),
        ("Rating: [[5]]", 5),
        ("[[10/10]]", 10),
        ("**8** / 10.", 8),
        ("It is an 8 out of 10", 8),
        ("8 of 5 points, 7/5", None),
        ("7.5", None),
        ("7.5 / 10", None),
        ("7,5", None),
        ("-3", None),
        ("a 7 on a scale of 1 to 10", None),
        ("from 1-10", None),
        ("from 1 - 10", None),
        ("v10", None),
        ("8 because of 3 faults", None),
        ("at first 3, in the end 6\n", 6),
        ("<think>3</think>4", 4),
        ("<think>3", None),
        ("", None),
        ("none", None),
    ],
)
def test_the_whole_number_that_ends_the_text_is_the_rating(text, rating):
    assert verdicts.strict_rating(text, False, (1, 10)) == rating


def test_of_a_cut_text_only_a_number_in_brackets_is_read():
    texts = ["I compare 3", "It is a 1", "Rating: [[8", "Rating: [[8]", "Rating: [[8]]"]
    assert [verdicts.strict_rating(text, True, (1, 10)) for text in texts] == [None, None, None, 8, 8]


def test_the_scale_is_the_templates():
    assert [verdicts.strict_rating(text, False, (0, 100)) for text in ("85", "85/100", "8/10", "101")] == [85, 85, None, None]


def test_reading_takes_time_that_grows_with_the_length():
    def seconds(text):
        start = time.process_time()
        verdicts.strict(text, False, FIVE)
        verdicts.strict_rating(text, False, (1, 10))
        return time.process_time() - start

    for piece in (
        "<think>",
        "</think>",
        "[[A",
        "1 ",
        "1. ",
        "/ ",
        "]])",
        "out of ",
        "<think></think>",
        "1",
        "=",
        "[[A]]",
        " \n",
    ):
        assert seconds(piece * (50_000 // len(piece)) + "x") < 0.5, piece


def test_the_chance_of_the_first_is_of_both_tokens():
    a, b = math.log(0.6), math.log(0.2)
    marks = {"A": "first", "B": "second"}
    assert verdicts.chance([("A", a), ("B", b), ("The", -3.0)], marks) == pytest.approx(0.75)
    # with blanks or without, a token says the same
    assert verdicts.chance([("A", a), (" A", b), ("B", b)], marks) == pytest.approx(0.8)
    assert verdicts.chance([("A", a), ("C", b)], marks) is None
    assert verdicts.chance([("A", a), ("b", b)], marks) is None
    assert verdicts.chance([], marks) is None
    assert verdicts.chance([("A", -2000.0), ("B", -2001.0)], marks) == pytest.approx(1 / (1 + math.exp(-1)))
    assert verdicts.chance([("A", 0.0), ("B", -math.inf)], marks) is None


def test_the_weighted_preference_by_its_formula():
    preference, one_sided = verdicts.weighted([("m", -0.4), ("M", -1.2), (" m", -0.1)], TOKENS)
    assert preference == pytest.approx(1.31002552, abs=1e-8) and not one_sided
    assert 3 - preference == pytest.approx(1.68997448, abs=1e-8)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ([("M", -0.1), ("The", -3.0)], (2.0, True)),
        ([("m", -0.1)], (1.0, True)),
        ([("The", -0.1), (" m", -0.2), (" M", -0.3)], (None, False)),
        ([], (None, False)),
    ],
)
def test_a_token_outside_the_likely_ones_counts_as_never_said(first, expected):
    assert verdicts.weighted(first, TOKENS) == expected


def test_the_order_is_drawn_from_the_instruction():
    drawn = {"Say hi": False, "Name a colour.": True, "What is 2+2?": False, "Write a haiku about rain.": False}
    assert {text: verdicts.alpacaeval_switched(text) for text in drawn} == drawn
    # as the original draws it: a choice of two
    for text in map(str, range(200)):
        choice = random.Random("is_switched_outputs" + text + "0").choices([False, True], k=1)[0]
        assert verdicts.alpacaeval_switched(text) == choice


@pytest.mark.parametrize(
    ("text", "v01", "newer"),
    [
        ("so [[A>>B]]", ("A>>B", False), "A>>B"),
        ("[[A=B]] and again [[A=B]]", ("A=B", False), "A=B"),
        ("[[A>B]] or [[B>A]]", (None, False), "B>A"),
        ("[[a>b]]", (None, True), "A>B"),
        ("[A>B]", (None, True), "A>B"),
        ("[[a>b]] or [B>A]", (None, True), "A>B"),
        ("[B>A] [[A>>B]] [A=B]", ("A>>B", False), "A>>B"),
        ("[[A<B]]", (None, False), "A<B"),
        ("[[B<<A]]", (None, False), "B<<A"),
        ("[[A]]", (None, False), None),  # the newer original ends with an error
        ("nothing", (None, True), None),
        ("", (None, True), None),
    ],
)
def test_arenahards_marks(text, v01, newer):
    assert verdicts.arenahard_v01(text) == v01
    assert verdicts.arenahard_newer(text) == newer


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("[[8]]", 8),
        ("[[7.5]] then [[9]]", 7.5),
        ("[6]", 6),
        ("[3] but [[4]]", 4),
        ("[[10/10]]", None),
        ("10", None),
        ("[[11]]", 11),
        ("[[-3]]", None),
        ("", None),
    ],
)
def test_mtbenchs_ratings(text, rating):
    assert verdicts.mtbench_rating(text) == rating


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("[[B]], no: [[A]]", "first"), ("[[C]] or [[B]]", "second"), ("[[C]]", "tie"), ("[A]", "invalid"), ("", "invalid")],
)
def test_mtbenchs_comparisons(text, verdict):
    assert verdicts.mtbench_verdict(text) == verdict
