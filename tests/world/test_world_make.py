"""The embedded world's files: what they hold, how the preferences were drawn, and what the tokenizer does."""

import hashlib
import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from denserl.models.tiny import new_llama, train_tokenizer
from denserl.world import language, make

SIZES = make.WorldSizes(
    sft=300, pairs=200, val_pairs=100, test_pairs=400, prompts=100, heldout_prompts=50, hidden_size=16, num_layers=1
)

RULES = make.WorldRules()
SCALE = language.TRUTHS["mean"].scale
SIDES = ("chosen", "rejected")
# sha256, first 16 digits, of the files of seed 3 as the version wrote them that knew no biases.
PLAIN = {
    "preferences_test.jsonl": "eb1f2897cf6e7ee1",
    "preferences_train.jsonl": "95c2d3c2334c52a5",
    "preferences_val.jsonl": "1b99f0ba2798f462",
    "prompts_heldout.jsonl": "b419090e7deade82",
    "prompts_train.jsonl": "d8a6519a8392be0c",
    "sft.jsonl": "c399e692d6edfa94",
    "world.json": "614d2e1834fb930d",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return folder, make.write_world(folder, seed=3, sizes=SIZES)


@pytest.fixture(scope="module")
def tokenizer(world):
    return AutoTokenizer.from_pretrained(world[0] / "base")


def read(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def combinations(rows):
    return {language.read_prompt(row["prompt"]) for row in rows}


@pytest.mark.parametrize(
    "name, count, keys",
    [
        ("sft", 300, {"prompt", "response"}),
        ("preferences_train", 200, {"prompt", "chosen", "rejected"}),
        ("preferences_val", 100, {"prompt", "chosen", "rejected"}),
        ("preferences_test", 400, {"prompt", "chosen", "rejected"}),
        ("prompts_train", 100, {"prompt"}),
        ("prompts_heldout", 50, {"prompt"}),
    ],
)
def test_files_hold_plain_strings_and_nothing_else(world, name, count, keys):
    rows = read(world[0], name)
    assert len(rows) == count
    assert all(set(row) == keys and all(isinstance(text, str) for text in row.values()) for row in rows)


def test_held_out_combinations_occur_nowhere_in_training(world):
    folder, info = world
    heldout = {tuple(pair) for pair in info["heldout_combinations"]}
    for name in ("sft", "preferences_train", "preferences_val", "prompts_train"):
        assert not combinations(read(folder, name)) & heldout
    for name in ("preferences_test", "prompts_heldout"):
        assert combinations(read(folder, name)) <= heldout


def test_every_topic_and_wish_is_held_out_and_seen():
    seen, heldout = make.split_combinations(random.Random(5))
    assert sorted(topic for topic, _ in heldout) == sorted(language.TOPICS)
    assert sorted(wish for _, wish in heldout) == sorted(2 * language.WISHES)
    assert set(seen) | set(heldout) == {(t, w) for t in language.TOPICS for w in language.WISHES}
    assert len(seen) == 24


def test_training_pairs_never_say_a_held_out_combination(world):
    folder, info = world
    heldout = {tuple(pair) for pair in info["heldout_combinations"]}
    for row in read(folder, "preferences_train"):
        for response in (row["chosen"], row["rejected"]):
            for start, end in language.sentences(response):
                sentence = response[start:end]
                meaning = language.MEANINGS[language.FIRST_FORMS.get(sentence, sentence)]
                assert (meaning.topic, meaning.wish) not in heldout


def test_demonstrations_say_what_is_held_out_too(world):
    folder, info = world
    said = " ".join(row["response"] for row in read(folder, "sft"))
    words = [f"{topic} {form}" for topic, wish in info["heldout_combinations"] for form in (wish, language.OPPOSITES[wish])]
    assert sum(pair in said for pair in words) >= len(words) - 2  # a few may be missed in 300 rows


def test_preferences_follow_bradley_terry():
    rng = random.Random(0)
    prompt = language.make_prompt("baking", "cheap", 0)
    expected, variance, surprises = 0.0, 0.0, 0
    for _ in range(3000):
        row = RULES.draw_pair(rng, prompt)
        gap = language.response_reward(prompt, row["chosen"]) - language.response_reward(prompt, row["rejected"])
        p_worse = 1 - 1 / (1 + math.exp(-SCALE * abs(gap)))
        expected += p_worse
        variance += p_worse * (1 - p_worse)
        surprises += gap < 0 or (gap == 0) / 2
    assert abs(surprises - expected) < 4 * math.sqrt(variance)


def test_preference_probability_by_hand():
    prompt = language.make_prompt("baking", "cheap", 0)
    apt, filler, wrong = "Coupons keep baking cheap.", "Practice helps with time.", "Fees make baking costly."
    assert RULES.preference_probability(prompt, apt, apt) == 0.5
    for a, b, gap in ((apt, filler, 1.0), (filler, wrong, 1.0), (wrong, apt, -2.0), (f"{apt} {wrong}", filler, 0.0)):
        odds = math.exp(SCALE * gap)
        assert RULES.preference_probability(prompt, a, b) == pytest.approx(odds / (1 + odds), rel=1e-12)


def test_best_accuracy_is_what_an_oracle_reaches_on_drawn_labels(world):
    folder, info = world
    rng = random.Random(1)
    hits = draws = 0
    for row in read(folder, "preferences_test"):
        rewards = [language.response_reward(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        for _ in range(50):
            # Bradley-Terry as a race: each side's reward with standard Gumbel noise, the larger wins.
            noisy = [SCALE * reward - math.log(-math.log(rng.random())) for reward in rewards]
            hits += (noisy[0] > noisy[1]) == (rewards[0] > rewards[1])
            draws += 1
    assert hits / draws == pytest.approx(info["best_accuracy_test"], abs=4 * 0.5 / math.sqrt(draws))
    assert 0.85 <= info["best_accuracy_test"] <= 0.92


@pytest.mark.parametrize("truth", ["sum", "asked"])
def test_other_truths_choose_by_their_own_rewards(truth, tmp_path):
    rules = make.WorldRules(truth, 2, 5)
    info = make.write_world(tmp_path, seed=1, sizes=SIZES, rules=rules)
    assert (info["truth"], info["min_sentences"], info["max_sentences"]) == (truth, 2, 5)
    assert 0.85 <= info["best_accuracy_test"] <= 0.93
    agree = []
    for row in read(tmp_path, "preferences_test"):
        reward, scale, asks = language.TRUTHS[truth]
        gap = reward(row["prompt"], row["chosen"]) - reward(row["prompt"], row["rejected"])
        odds = math.exp(scale * gap)
        found = rules.preference_probability(row["prompt"], row["chosen"], row["rejected"])
        assert found == pytest.approx(odds / (1 + odds), rel=1e-9)
        assert (language.read_number(row["prompt"]) in (2, 3, 4, 5)) == asks
        agree.append(gap > 0)
    assert sum(agree) / len(agree) == pytest.approx(info["best_accuracy_test"], abs=0.1)
    # Every word of a prompt is one token.
    prompt = read(tmp_path, "prompts_train")[0]["prompt"]
    words = AutoTokenizer.from_pretrained(tmp_path / "base").tokenize(prompt)
    assert len(words) == len(prompt.replace(".", " .").replace("?", " ?").split())


def test_demonstrations_have_as_many_sentences_as_asked_for_about_every_second_time(tmp_path):
    make.write_world(tmp_path, seed=1, sizes=SIZES, rules=make.WorldRules("asked"))
    rows = read(tmp_path, "sft")
    right = [len(language.sentences(row["response"])) == language.read_number(row["prompt"]) for row in rows]
    # A half, and a fifth of the other half; 300 rows have a standard error of 0.03.
    assert sum(right) / len(right) == pytest.approx(0.6, abs=0.1)


def test_long_responses(tmp_path):
    make.write_world(tmp_path, seed=1, sizes=SIZES, rules=make.WorldRules("mean", 6, 12))
    lengths = {len(language.sentences(row["response"])) for row in read(tmp_path, "sft")}
    assert lengths == set(range(6, 13))


def test_pairs_differ(world):
    assert all(row["chosen"] != row["rejected"] for row in read(world[0], "preferences_train"))


def test_one_seed_writes_the_same_bytes_and_another_does_not(world, tmp_path):
    folder, info = world
    assert make.write_world(tmp_path / "same", seed=3, sizes=SIZES) == info
    make.write_world(tmp_path / "other", seed=4, sizes=SIZES)
    for file in (
        *sorted(folder.glob("*.json*")),
        folder / "base" / "tokenizer.json",
        folder / "base" / "model.safetensors",
    ):
        name = file.relative_to(folder)
        assert (tmp_path / "same" / name).read_bytes() == file.read_bytes()
        if file.suffix != ".json":
            assert (tmp_path / "other" / name).read_bytes() != file.read_bytes()


def test_the_base_model_loads_and_knows_its_tokens(world, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(world[0] / "base", dtype="float32")
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_first_token_of_a_sentence_determines_it(tokenizer):
    for repertoire in language.REPERTOIRE.values():
        for space in ("", " "):
            firsts = [tokenizer(space + sentence).input_ids[0] for sentence in repertoire]
            assert len(set(firsts)) == len(firsts)
    openers = {sentence.split()[0] for sentence in language.meanings(language.REPERTOIRE)}
    assert all(len(tokenizer(space + opener).input_ids) == 1 for opener in openers for space in ("", " "))


def test_the_longest_response_fits_56_tokens(tokenizer):
    longest = sorted(language.meanings(language.REPERTOIRE), key=lambda s: len(tokenizer(" " + s).input_ids))[-6:]
    assert len(tokenizer(" ".join(language.again(sentence) for sentence in longest)).input_ids) + 1 <= 56


def test_the_chat_template_is_chatml(tokenizer):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == text + "<|im_start|>assistant\n"


@given(st.text(), st.sampled_from([None, "[0-9]|[^0-9]+", "b"]))
def test_the_tokenizer_round_trips_any_text(text, pieces):
    tokenizer = train_tokenizer(["Some words, again some words."], 400, pieces=pieces)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_tokenizer_learns_frequent_words_within_its_size():
    texts = ["the cat and the dog"] * 5 + ["zebra"]
    tokenizer = train_tokenizer(texts, 300)
    assert len(tokenizer) <= 300
    assert tokenizer.tokenize("user assistant the") == ["user", "Ġ", "assistant", "Ġthe"]
    assert len(tokenizer.tokenize("zebra")) > 1  # once is less than min_frequency


def test_the_larger_repertoire_has_something_good_to_say_for_long(tmp_path):
    make.write_world(tmp_path, seed=1, sizes=replace(SIZES, sft=40), rules=make.WorldRules("mean", 24, 40, large=True))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    apt = 0
    for row in read(tmp_path, "sft"):
        kinds = language.kinds(row["prompt"], row["response"])
        assert 24 <= len(kinds) <= 40 and "broken" not in kinds
        apt = max(apt, kinds.count("apt"))
        assert len(tokenizer(row["response"]).input_ids) <= 267
    # More than the smaller repertoire has for any prompt.
    assert apt > 6
    for topic, said in language.LARGE_REPERTOIRE.items():
        for wish in language.WISHES:
            assert sum(language.kind_of(sentence, topic, wish) == "apt" for sentence in said) == 32


def test_a_new_llama_depends_on_its_seed_alone():
    tokenizer = train_tokenizer(["some words"], 300)
    weights = [new_llama(tokenizer, 16, 1, 2, seed=seed).lm_head.weight for seed in (1, 1, 2)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


BIASED = make.WorldRules(length_bias=0.5, artefact=0.6, groups=True)


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    folder = tmp_path_factory.mktemp("biased")
    return folder, make.write_world(folder, seed=3, sizes=SIZES, rules=BIASED)


def test_what_is_wrong_with_training_pairs_changes_no_other_file(world, biased):
    for file in (*sorted(world[0].glob("*.jsonl")), *sorted((world[0] / "base").glob("*"))):
        same = (biased[0] / file.relative_to(world[0])).read_bytes() == file.read_bytes()
        assert same == (file.name != "preferences_train.jsonl")
    assert world[1].items() <= biased[1].items()
    assert biased[1].keys() - world[1].keys() == {"length_bias", "artefact", "groups"}
    assert {file.name for file in biased[0].iterdir()} - {file.name for file in world[0].iterdir()} == {
        "preferences_artefact.jsonl"
    }


def test_the_plain_world_has_the_files_it_always_had(world):
    for name, expected in PLAIN.items():
        assert hashlib.sha256((world[0] / name).read_bytes()).hexdigest()[:16] == expected, name


def test_rated_responses_are_told_what_they_are_and_a_quarter_is_left_out(world, tmp_path):
    """Two of four sentences serve what is asked for; one is off topic, one is said again."""
    prompt = language.make_prompt("baking", "cheap", 0)
    said = [
        "Coupons keep baking cheap.",
        "Swaps keep baking cheap.",
        "Worms belong to fishing.",
        "Coupons still keep baking cheap.",
    ]
    expected = {"apt": 0.5, "on_topic": 0.75, "harmless": 1.0, "fresh": 0.75, "verbosity": 4 / 12}
    assert language.attributes(prompt, " ".join(said)) == pytest.approx(expected)
    make.write_world(tmp_path, seed=3, sizes=SIZES, rules=make.WorldRules(ratings=True))
    rated, plain = ({file.name for file in folder.iterdir()} for folder in (tmp_path, world[0]))
    assert rated - plain == {"ratings_train.jsonl", "ratings_test.jsonl"}
    rows = read(tmp_path, "ratings_train") + read(tmp_path, "ratings_test")
    for row in rows:
        assert row["attributes"].items() <= language.attributes(row["prompt"], row["response"]).items()
    there = sum(len(row["attributes"]) for row in rows) / len(rows) / 5
    assert abs(there - make.RATED) < 4 * math.sqrt(make.RATED * (1 - make.RATED) / len(rows) / 5)


def test_winners_get_the_artefact_and_losers_do_not(world, biased):
    plain, planted = read(world[0], "preferences_train"), read(biased[0], "preferences_train")
    sentence, fresh, got = language.ARTEFACT, 0, 0
    for before, after in zip(plain, planted, strict=True):
        assert after["group"].split() == list(language.read_prompt(after["prompt"]))
        said = {side: [after[side][start:end] for start, end in language.sentences(after[side])] for side in SIDES}
        # The same two responses, in either order, but for one sentence more in the winner.
        bare = {after["rejected"], " ".join(s for s in said["chosen"] if s != sentence)}
        had = {before[side] for side in SIDES if sentence in before[side]}
        if not had:
            assert bare == {before["chosen"], before["rejected"]}
            assert said["chosen"].count(sentence) in (0, 1) and sentence not in after["rejected"]
            fresh, got = fresh + 1, got + said["chosen"].count(sentence)
    assert abs(got / fresh - BIASED.artefact) < 4 * math.sqrt(0.6 * 0.4 / fresh)


def test_longer_responses_are_preferred_as_often_as_they_should_be():
    rng, rules = random.Random(0), make.WorldRules(length_bias=0.7)
    expected = variance = wins = 0.0
    for _ in range(3000):
        prompt = language.make_prompt("baking", "cheap", 0)
        row = rules.draw_pair(rng, prompt)
        worth = [language.response_reward(prompt, row[side]) for side in SIDES]
        count = [len(row[side].split(". ")) for side in SIDES]
        longer = math.copysign(1, count[0] - count[1])
        p = 1 / (1 + math.exp(-longer * (SCALE * (worth[0] - worth[1]) + 0.7 * (count[0] - count[1]))))
        if count[0] != count[1]:
            expected, variance, wins = expected + p, variance + p * (1 - p), wins + (longer > 0)
    assert abs(wins - expected) < 4 * math.sqrt(variance)


@pytest.mark.parametrize("truth", language.TRUTHS)
def test_artefact_pairs_are_of_one_worth_and_differ_by_the_artefact(truth):
    rng, rules = random.Random(4), make.WorldRules(truth)
    for prompt in rules.draw_prompts(rng, [("baking", "cheap"), ("camping", "safe")], 30):
        row = rules.draw_artefact_pair(rng, prompt)
        rewards = [language.TRUTHS[truth].reward(prompt, row[side]) for side in SIDES]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-9)
        assert row["chosen"].count(language.ARTEFACT) == 1 and language.ARTEFACT not in row["rejected"]
