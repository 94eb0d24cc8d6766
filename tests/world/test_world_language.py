"""The language of the embedded world, checked on sentences written by hand."""

import random
from collections import Counter

import pytest

from denserl.errors import UserError
from denserl.world import language

PROMPT = "Tell me about cheap baking."
EXAMPLES = [
    ("Coupons keep baking cheap.", "apt", 1.0),
    ("Repairs keep baking cheap.", "apt", 1.0),
    ("Practice helps with time.", "filler", 0.0),
    ("Oats belong to baking.", "filler", 0.0),
    ("Oars belong to sailing.", "off_topic", -0.5),
    ("Gloves keep baking safe.", "off_topic", -0.5),
    ("Storms make baking risky.", "off_topic", -0.5),
    ("Coupons keep sailing cheap.", "off_topic", -0.5),
    ("Fees make baking costly.", "wrong", -1.0),
    ("Coupons keep baking", "broken", -1.0),
    ("Coupons make baking cheap.", "broken", -1.0),
    ("coupons keep baking cheap.", "broken", -1.0),
    ("Coupons still keep baking cheap.", "broken", -1.0),
    (".", "broken", -1.0),
]


@pytest.mark.parametrize("sentence, kind, value", EXAMPLES)
def test_each_kind_of_sentence_has_its_value(sentence, kind, value):
    assert language.kinds(PROMPT, sentence) == [kind]
    assert language.true_values(PROMPT, sentence) == [value]


def test_what_was_said_before_is_repeated_in_either_form_whatever_it_is():
    response = (
        "Coupons keep baking cheap. Fees make baking costly. Coupons still keep baking cheap. Fees make baking costly. "
        "Coupons keep baking cheap. Storms make baking risky. Storms still make baking risky."
    )
    assert language.kinds(PROMPT, response) == "apt wrong repeated repeated repeated off_topic repeated".split()


def test_broken_text_is_broken_again_and_does_not_hide_the_next_sentence():
    response = "Bad words. Bad words. Coupons keep baking cheap."
    assert language.kinds(PROMPT, response) == ["broken", "broken", "apt"]


def test_the_prompt_decides():
    sentence = "Coupons keep baking cheap."
    assert language.kinds("How does cheap baking work?", sentence) == ["apt"]
    assert language.kinds("How does quick baking work?", sentence) == ["off_topic"]
    assert language.kinds("How does cheap sailing work?", sentence) == ["off_topic"]


@pytest.mark.parametrize("prompt", ["Hello.", "Tell me about baking.", "Tell me about cheap baking and sailing."])
def test_a_foreign_prompt_is_refused(prompt):
    with pytest.raises(UserError, match="does not name one topic and one wish"):
        language.true_values(prompt, "Coupons keep baking cheap.")


@pytest.mark.parametrize(
    "response, texts",
    [
        ("", []),
        ("  \n ", []),
        ("One two. Three four.", ["One two.", "Three four."]),
        (" One.  Two\nthree. cut off ", ["One.", "Two\nthree.", "cut off"]),
        ("One..Two", ["One.", ".", "Two"]),
        ("A", ["A"]),
    ],
)
def test_sentence_spans(response, texts):
    assert [response[start:end] for start, end in language.sentences(response)] == texts


def test_true_reward_is_the_mean_of_the_values():
    prompts = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]] * 3
    responses = ["Coupons keep baking cheap. Oars belong to sailing.", "", "Coupons keep baking cheap. " * 2]
    assert language.true_reward(prompts, responses) == [(1 - 0.5) / 2, -1.0, (1 - 0.75) / 2]


def test_other_truths_by_hand():
    asked = language.make_prompt("baking", "cheap", 0, number=3)
    assert asked == PROMPT + " Use three sentences."
    assert [language.read_number(prompt) for prompt in (asked, PROMPT, "Use ten sentences? No.")] == [3, None, None]
    assert language.read_prompt(asked) == ("baking", "cheap")
    prompts = [[{"role": "user", "content": asked}]] * 3
    responses = ["Coupons keep baking cheap. Oars belong to sailing.", "", "Coupons keep baking cheap. " * 4]
    assert language.true_reward_sum(prompts, responses) == [1 - 0.5, 0.0, 1 - 3 * 0.75]
    # One sentence too few, three, and one too many, a quarter each.
    assert language.true_reward_asked(prompts, responses) == [0.25 - 0.25, -1.0 - 0.75, (1 - 3 * 0.75) / 4 - 0.25]
    with pytest.raises(UserError, match="asks for no number of sentences"):
        language.response_as_asked(PROMPT, responses[0])


def test_each_sentence_by_itself():
    prompts = [[{"role": "user", "content": PROMPT}]] * 2
    found = language.true_sentences(prompts, ["Coupons keep baking cheap. Coupons still keep baking cheap. Oars", ""])
    assert found == [[(26, 1.0), (59, -0.75), (64, -1.0)], []]


def test_true_reward_needs_as_many_responses_as_prompts():
    with pytest.raises(ValueError):
        language.true_reward([[{"role": "user", "content": PROMPT}]], [])


def test_an_opener_determines_its_sentence():
    for repertoire in language.LARGE_REPERTOIRE.values():
        openers = [sentence.split()[0] for sentence in repertoire]
        assert len(set(openers)) == len(openers)
        assert all(opener[0].isupper() for opener in openers)


def test_every_sentence_means_what_its_words_say():
    names = set(language.TOPICS)
    for sentence, meaning in language.MEANINGS.items():
        words = sentence.rstrip(".").split()
        assert names & set(words) == ({meaning.topic} if meaning.topic else set())
        assert (words[-1] == meaning.wish) == (meaning.wish is not None and meaning.serves)
        assert sentence.endswith(".") and sentence.count(".") == 1


def test_samples_follow_the_mixture():
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    for _ in range(4000):
        response = language.sample_response(rng, PROMPT)
        kinds = language.kinds(PROMPT, response)
        assert 2 <= len(kinds) <= 6
        counts.update(kinds)
    total = counts.total()
    assert set(counts) == {"apt", "filler", "off_topic", "wrong", "repeated"}
    # A repetition cannot come first and used-up kinds are drawn again, so shares are near the mixture, not equal to it.
    assert {kind: counts[kind] / total for kind in counts} == pytest.approx(language.MIXTURE, abs=0.04)


def test_avoided_combinations_are_not_said():
    rng = random.Random(1)
    avoid = [("baking", "safe"), ("baking", "cheap")]
    said = " ".join(language.sample_response(rng, PROMPT, avoid) for _ in range(300))
    assert "baking safe" not in said and "baking risky" not in said
    assert "baking cheap" in said and "baking costly" in said  # the prompt's own combination
