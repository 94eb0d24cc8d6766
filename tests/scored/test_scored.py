"""`denserl.score`: its numbers are those of a plain computation, of PPO, evaluate and the server; what decides adds up."""

import dataclasses
import json
import math

import numpy as np
import pytest
import reward_server
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_scores import ANSWERS, MOMENTS, PROMPT, THRESHOLD, log_softmax, plain
from reward_folders import stock_log_odds
from transformers import AutoTokenizer

import denserl
from denserl.data.conversations import of_responses
from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.models.loading import load_policy
from denserl.models.scoring import response_entropies
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.config import ScorerConfig
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.build import load_members
from denserl.rewards.sources.reading import response_text
from denserl.rewards.step_scorer import load_scorer
from denserl.scored.config import ScoreConfig
from denserl.scored.results import Segment, SourceInfo, SourceScore, compared
from denserl.scored.scorer import DenseScorer
from denserl.serving.models import ModelService
from denserl.serving.rows import Row
from denserl.serving.step_models import StepModelService
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_sources import Loaded, make_rewards

CLOSE = 3e-6


def numbers(score, name: str) -> list[float]:
    return [getattr(segment, name) for segment in score.segments]


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("answer", ANSWERS)
def test_segments_are_those_of_a_plain_computation(models, answer):
    """Cut before each token above the threshold, read at the end of each, normalised, and what each changes in the mean."""
    row = plain(models, models.segment, answer)
    last = len(row.scores) - 2  # the end of turn is in no segment
    ends = [t for t in range(last) if row.entropies[t + 1] > THRESHOLD] + [last]
    raw, (mean, std) = [row.scores[t] for t in ends], MOMENTS
    so_far = [(sum(raw[: k + 1]) / (k + 1) - mean) / std for k in range(len(raw))]

    (found,) = denserl.score(answer, PROMPT, reward_model=models.segment).responses
    (score,) = found.sources
    assert len(raw) > 2
    assert numbers(score, "raw") == pytest.approx(raw, abs=1e-5)
    assert numbers(score, "normalised") == pytest.approx([(r - mean) / std for r in raw], abs=1e-5)
    assert numbers(score, "change") == pytest.approx(np.diff(so_far, prepend=0).tolist(), abs=1e-5)
    assert numbers(score, "paid") == pytest.approx(numbers(score, "change"), abs=1e-6)
    assert score.score == pytest.approx(sum(raw) / len(raw), abs=1e-5)
    assert [score.normalised, found.paid] == pytest.approx([so_far[-1]] * 2, abs=1e-5)
    assert [segment.end for segment in score.segments] == [len(row.up_to[t]) for t in ends]
    assert "".join(segment.text for segment in score.segments) == answer == found.text


def test_a_token_model_and_a_bandit_model_are_read_as_they_were_trained(models):
    scores = plain(models, models.token, ANSWERS[0]).scores
    (score,) = denserl.score(ANSWERS[0], PROMPT, reward_model=models.token).responses[0].sources
    assert numbers(score, "raw") == pytest.approx(scores[:-1], abs=1e-5) and score.source.level == "token"
    scores = plain(models, models.bandit, ANSWERS[0]).scores
    (score,) = denserl.score(ANSWERS[0], PROMPT, reward_model=models.bandit).responses[0].sources
    assert numbers(score, "raw") == [score.score] == [pytest.approx(scores[-1], abs=1e-5)]
    assert score.normalised == pytest.approx((scores[-1] - MOMENTS[0]) / MOMENTS[1], abs=1e-5)


@pytest.mark.parametrize("kind", ["segment", "token", "bandit", "stock", "gated", "step", "turns"])
def test_numbers_are_those_of_evaluate_and_of_the_server(kind, models):
    path = getattr(models, kind)
    scorer = load_scorer([path], ScorerConfig(), torch.device("cpu"), "fp32")
    expected = scorer([user(PROMPT)] * 2, ANSWERS)
    found = denserl.score(ANSWERS, PROMPT, reward_model=path)
    assert [response.sources[0].score for response in found.responses] == pytest.approx(expected, abs=CLOSE)

    service = ModelService(scorer) if isinstance(scorer, RewardScorer) else StepModelService(scorer)
    served = service.score([service.encode(Row(user(PROMPT), answer)) for answer in ANSWERS])
    for response, told in zip(found.responses, served, strict=True):
        segments = told.segments if told.segments is not None else [(len(told.text), told.score)]
        (score,) = response.sources
        assert [segment.end for segment in score.segments] == [end for end, _ in segments]
        assert numbers(score, "raw") == pytest.approx([raw for _, raw in segments], abs=CLOSE)
        if told.changes is not None:
            # The server normalises nothing; steps are normalised by nothing.
            std = MOMENTS[1] if kind in ("segment", "token") else 1.0
            changes = np.array(told.changes) / std - [MOMENTS[0] / std * (std != 1), *[0] * (len(segments) - 1)]
            assert numbers(score, "change") == pytest.approx(changes.tolist(), abs=CLOSE)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("segment", {}),
        ("segment", {"assignment": "even", "normalizer": "none", "score_clip": 0.5}),
        ("token", {"credit": "min", "normalizer": "none"}),
        ("bandit", {}),
        ("step", {"step_reward": "centred", "penalise_longer_than": 12}),
    ],
)
def test_numbers_are_those_that_a_run_of_ppo_pays(kind, how, models):
    """Through what a run is made with, of the token ids that transformers makes of the texts."""
    options = {"model": models.sft, "reward_model": [getattr(models, kind)], "data": ["unread"], "output_dir": "unwritten"}
    config, tokenizer = PPOConfig(**options, **how), load_tokenizer(models.sft)
    members = load_members(config.reward_model, "fp32", config, tokenizer)
    loaded = Loaded(tokenizer, response_text(tokenizer), members, members.models)
    start = tokenizer.apply_chat_template(user(PROMPT), add_generation_prompt=True, tokenize=False)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (start, *(f"{a}<|im_end|>" for a in ANSWERS))]
    responses = Responses([user(PROMPT)] * 2, ANSWERS, [ids[0]] * 2, ids[1:], [True, True])
    batch, rewards = responses.padded(tokenizer.pad_token_id, "cpu"), make_rewards(config, loaded)
    with torch.no_grad():
        entropy = response_entropies(load_policy(models.sft, "fp32").eval(), batch)
        paying = (entropy, batch.response_mask, batch.response_ids, torch.tensor(responses.ended))
        tokens, (source,) = rewards.pay(rewards.score(responses, batch), *paying)
    found = denserl.score(ANSWERS, PROMPT, reward_model=getattr(models, kind), **how)
    assert [response.paid for response in found.responses] == pytest.approx(tokens.sum(1).tolist(), abs=1e-5)
    for row, response in enumerate(found.responses):
        (score,) = response.sources
        assert len(score.segments) == int(source.segments.counts[row])
        columns = {"raw": source.raw, "normalised": source.normalised, "change": source.changes}
        for name, column in columns.items():
            assert numbers(score, name) == pytest.approx(column[row, : len(score.segments)].tolist(), abs=1e-5)
        # By the tokens of each segment; the end of turn, behind the last one, is paid for that.
        own = [source.tokens[row][source.segments.ids[row] == k].sum().item() for k in range(len(score.segments))]
        own[-1] += source.tokens[row].sum().item() - sum(own)
        assert numbers(score, "paid") == pytest.approx(own, abs=1e-5)


def test_an_ensemble_is_standardised_member_by_member(models):
    each = [denserl.score(ANSWERS[0], PROMPT, reward_model=models.segment, **how) for how in ({}, {"normalizer": "none"})]
    both = denserl.score(ANSWERS[0], PROMPT, reward_model=[models.segment, models.segment], ensemble="min")
    assert numbers(both.responses[0].sources[0], "raw") == pytest.approx(
        numbers(each[0].responses[0].sources[0], "normalised"), abs=1e-5
    )
    assert numbers(each[1].responses[0].sources[0], "normalised") == numbers(each[1].responses[0].sources[0], "raw")


def test_what_has_no_mean_and_std_is_not_normalised_and_that_is_said(models, caplog):
    (score,) = denserl.score(ANSWERS[0], PROMPT, reward_model=models.stock).responses[0].sources
    assert score.normalised == score.score and "has no mean and std of scores" in caplog.text
    with pytest.raises(UserError, match="the scalar normaliser needs a mean and a std"):
        denserl.score(ANSWERS[0], PROMPT, reward_model=models.stock, normalizer="scalar")


def test_steps_are_worth_what_they_change_in_the_chance_of_success(models):
    (score,) = denserl.score(ANSWERS[1], PROMPT, reward_model=models.step).responses[0].sources
    assert [segment.text for segment in score.segments] == ["A quiet river 🦊 runs\n\n", "and waits. And waits there."]
    chances = [1 / (1 + math.exp(-logit)) for logit in numbers(score, "raw")]
    assert score.score == pytest.approx(min(chances), abs=1e-6)
    assert numbers(score, "normalised") == pytest.approx([chances[0] - 0.5, chances[1] - chances[0]], abs=1e-6)


def test_an_implicit_reward_is_beta_times_the_log_ratio(models):
    tokenizer = AutoTokenizer.from_pretrained(models.sft)
    text = tokenizer.apply_chat_template(user(PROMPT), add_generation_prompt=True, tokenize=False)
    start = tokenizer(text, add_special_tokens=False).input_ids
    ids = [*start, *tokenizer(ANSWERS[0] + "<|im_end|>", add_special_tokens=False).input_ids]
    one, other = (log_softmax(folder, ids) for folder in (models.other, models.sft))
    ratios = [0.1 * (one - other)[t - 1, ids[t]].item() for t in range(len(start), len(ids))]
    expected = [*ratios[:-2], ratios[-2] + ratios[-1]]  # the end of turn is paid with the token before it
    options = {"implicit_reward": models.other, "implicit_beta": 0.1}
    (score,) = denserl.score(ANSWERS[0], PROMPT, **options, implicit_reference=models.sft).responses[0].sources
    assert numbers(score, "raw") == pytest.approx(expected, abs=1e-5) and score.score == pytest.approx(sum(ratios), abs=1e-5)
    # The SFT model is the reference where none is named, as PPO's is.
    assert denserl.score(ANSWERS[0], PROMPT, **options, sft_model=models.sft).responses[0].sources[0] == score


def test_differences_of_prefixes_add_up_to_the_response_less_the_prompt(models):
    row = plain(models, models.bandit, ANSWERS[0])
    scores, before = row.scores, row.before
    options = {"reward_model": models.bandit, "prefix_differences": True, "sft_model": models.sft}
    (score,) = denserl.score(ANSWERS[0], PROMPT, **options).responses[0].sources
    assert score.score == pytest.approx(scores[-1] - before[-1], abs=1e-5)
    assert numbers(score, "raw")[:2] == pytest.approx([scores[0] - before[-1], scores[1] - scores[0]], abs=1e-5)


def test_a_model_that_compares_has_one_number_for_two_responses(models):
    orders = (ANSWERS, ANSWERS[::-1])
    turns = [f"user\n{PROMPT}<|im_end|>A\n{a}<|im_end|>B\n{b}<|im_end|>A or B?" for a, b in orders]
    one, turned = (
        stock_log_odds(models.pair, f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n") for turn in turns
    )
    chance = (1 / (1 + math.exp(-one)) + 1 / (1 + math.exp(turned))) / 2
    found = denserl.score(ANSWERS, PROMPT, reward_model=models.pair)
    odds = math.log(chance / (1 - chance))
    assert [response.sources[0].score for response in found.responses] == pytest.approx([odds, -odds], abs=1e-4)
    (comparison,) = found.comparisons
    assert comparison.difference == pytest.approx(odds, abs=1e-4) and comparison.parts == ()
    assert f"with a probability of {max(chance, 1 - chance):.3f}" in str(found) and "says nothing of single words" in str(found)
    with pytest.raises(UserError, match="prompt 1 has one response, and .*pair compares two"):
        denserl.score(ANSWERS[0], PROMPT, reward_model=models.pair)
    with pytest.raises(UserError, match="`entropy_threshold` 1.0 has no effect"):
        denserl.score(ANSWERS, PROMPT, reward_model=models.pair, entropy_threshold=1.0)


def halves(prompts, responses):
    """The first half of each response earns its length, the second one its negative; a prompt is no part of it."""
    return [[(len(text) // 2, float(len(text))), (len(text), -float(len(text)))] for text in responses]


def length(prompts, responses, labels):
    return list(map(len, responses))


def right(prompts, responses, labels):
    return [float(label in text) for text, label in zip(responses, labels, strict=True)]


def test_functions_need_no_model_and_parts_end_at_characters():
    text = "🦊 runs\u202eback "
    found = denserl.score(text, reward_function="test_scored:halves")
    (score,) = found.responses[0].sources
    assert [(s.start, s.end, s.text, s.raw) for s in score.segments] == [(0, 6, text[:6], 12.0), (6, 12, text[6:], -12.0)]
    assert score.score == 0.0 and found.responses[0].text == text
    (empty,) = denserl.score("", reward_function="tiny_models:letters", prompt="Ask").responses
    assert empty.sources[0].score == pytest.approx(0.3) and empty.text == ""


def test_sources_are_added_with_their_weights(models):
    options = {"reward_model": models.segment, "reward_function": "test_scored:length", "reward_weights": [1.0, 0.5]}
    more = {"outcome_function": "test_scored:right", "outcome_weight": 3.0, "reward_clip": 100.0}
    (found,) = denserl.score(ANSWERS[0], PROMPT, label="kettle", **options, **more).responses
    model, letters, outcome = found.sources
    assert letters.score == len(ANSWERS[0]) and outcome.score == 1.0
    assert found.paid == pytest.approx(model.normalised + 0.5 * letters.score + 3.0, abs=1e-4)
    assert [score.source.name for score in found.sources] == ["reward_model", "test_scored:length", "outcome_function"]
    assert outcome.source.model == "test_scored:right"


def test_a_server_is_asked_for_what_the_chat_template_writes(models):
    with reward_server.serving(lambda body: {"rewards": [[[3, 1.0], [8, 2.0]] for _ in body["query"]]}) as asked:
        found = denserl.score(ANSWERS[0], PROMPT, reward_url=asked.url, sft_model=models.sft)
        assert numbers(found.responses[0].sources[0], "raw") == [1.0, 2.0]
    tokenizer = load_tokenizer(models.sft)
    talk = [*user(PROMPT), {"role": "assistant", "content": ANSWERS[0]}]
    assert asked[0]["query"] == [tokenizer.apply_chat_template(talk, tokenize=False).rstrip("\n")]
    with pytest.raises(UserError, match="a server is asked for what a chat template writes"):
        denserl.score(ANSWERS[0], PROMPT, reward_url=asked.url)


def test_a_batch_of_many_is_scored_as_each_alone(models):
    scorer = DenseScorer.from_config(ScoreConfig(reward_model=[models.segment], score_tokens=150))
    texts = [f"{ANSWERS[i % 2]}{' and the rain' * (i % 5)}" for i in range(12)]
    together = scorer([of_responses(user(PROMPT), [text], [i % 3 > 0]) for i, text in enumerate(texts)])
    for i, (text, found) in enumerate(zip(texts, together, strict=True)):
        (alone,) = scorer([of_responses(user(PROMPT), [text], [i % 3 > 0])])
        assert numbers(found.responses[0].sources[0], "raw") == pytest.approx(
            numbers(alone.responses[0].sources[0], "raw"), abs=CLOSE
        )
        assert found.responses[0].ended == (i % 3 > 0)


def told(rewards: list[float], how: str, kind: str = "reward", text: str = "x") -> SourceScore:
    info = SourceInfo("reward_model", "rm", kind, "segment", how, 1.0)
    return SourceScore(info, math.nan, 0.0, tuple(Segment(0, 1, text, reward, 0.0, 0.0, 0.0) for reward in rewards))


REWARDS = st.lists(st.floats(-20, 20), max_size=6)
SCORES = {
    "avg": lambda r: sum(r) / len(r),
    "sum": sum,
    "min": min,
    "last": lambda r: r[-1],
    "logsumexp": lambda r: math.log(sum(map(math.exp, r))),
}


@given(REWARDS, REWARDS, st.sampled_from(sorted(SCORES)))
def test_what_decides_adds_up_to_the_difference(first, second, how):
    found = compared(told(first, how), told(second, how, text="y"))
    expected = [SCORES[how](rewards) if rewards else 0.0 for rewards in (first, second)]
    assert found.difference == pytest.approx(expected[0] - expected[1], abs=1e-9)
    assert sum(part.adds for part in found.parts) == pytest.approx(found.difference, abs=1e-9)
    assert len(found.parts) == len(first) + len(second)
    sizes = [abs(part.adds) for part in found.parts]
    assert sizes == sorted(sizes, reverse=True)


def test_what_each_segment_adds_by_hand():
    """Of means: its distance from the mean of both scores, here 2, over the number of segments."""
    found = compared(told([5.0, 1.0], "avg"), told([2.0, -1.0, 2.0], "avg", text="y"))
    adds = {(part.side, part.segment): part.adds for part in found.parts}
    assert adds == pytest.approx({(0, 0): 1.5, (0, 1): -0.5, (1, 0): 0.0, (1, 1): 1.0, (1, 2): 0.0})
    assert [(part.side, part.segment) for part in found.parts[:2]] == [(0, 0), (1, 1)]
    # An offset of all rewards, of which preferences say nothing, changes none.
    moved = compared(told([9.0, 5.0], "avg"), told([6.0, 3.0, 6.0], "avg", text="y"))
    assert {(part.side, part.segment): part.adds for part in moved.parts} == pytest.approx(adds)
    (least, *others) = compared(told([5.0, 1.0], "min"), told([-3.0], "min", text="y")).parts
    assert (least.side, least.segment, least.adds) == (0, 1, 2.0) and [part.adds for part in others] == [2.0, 0.0]
    # Of steps the chances make the score.
    steps = compared(told([0.0], "avg", "step"), told([math.log(3)], "avg", "step", "y"))
    assert steps.difference == pytest.approx(0.5 - 0.75)


def test_what_both_begin_with_is_one_part():
    """Here m = 3 and K = 3 and 2: (9 - 3) / 3 - (9 - 3) / 2, and of the others (0 - 3) / 3 twice and -(-3 - 3) / 2."""
    begun = Segment(0, 3, "And", 9.0, 0.0, 0.0, 0.0)
    first, second = told([0.0, 0.0], "avg"), told([-3.0], "avg", text="y")
    found = compared(*(dataclasses.replace(side, segments=(begun, *side.segments)) for side in (first, second)))
    adds = {(part.side, part.segment): part.adds for part in found.parts}
    assert adds == pytest.approx({(None, 0): -1.0, (0, 1): -1.0, (0, 2): -1.0, (1, 1): 3.0})
    assert found.difference == pytest.approx(0.0) == sum(adds.values())


def test_the_numbers_of_a_file_are_these(models):
    found = denserl.score(ANSWERS, PROMPT, reward_model=models.segment)
    row = json.loads(json.dumps(found.to_dict()))
    assert row["prompt"] == user(PROMPT) and [r["name"] for r in row["responses"]] == ["response 1", "response 2"]
    for response, told_of in zip(found.responses, row["responses"], strict=True):
        assert told_of["text"] == response.text
        assert [s["raw"] for s in told_of["scores"][0]["segments"]] == numbers(response.sources[0], "raw")
    assert row["comparisons"][0]["difference"] == found.comparisons[0].difference
    expected = {"name": "reward_model", "model": models.segment, "kind": "reward", "level": "segment", "agg_func": "avg"}
    assert row["sources"] == [{**expected, "weight": 1.0}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing gives rewards"),
        ({"reward_model": "{segment}", "normalizer": "running"}, "`normalizer` running is of what a run has paid"),
        ({"reward_model": "{bandit}", "sft_model": "{sft}"}, "nothing is cut by entropies"),
        ({"reward_function": "tiny_models:letters", "sft_model": "{sft}"}, "`sft_model` .* has no effect"),
        ({"reward_function": "tiny_models:letters", "max_length": 9}, "`max_length` 9 has no effect"),
        ({"reward_model": "{segment}", "label": "x"}, "a right answer has no effect"),
        ({"implicit_reward": "{other}"}, "it is not said which model its training started from"),
        ({"reward_model": "/not/there"}, "/not/there"),
        ({"reward_model": "{sft}"}, "sft"),
        ({"reward_function": "tiny_models:unbounded"}, "finite"),
    ],
)
def test_mistakes_are_said(models, options, message):
    options = {name: value.format(**vars(models)) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(UserError, match=message):
        denserl.score("A text.", "Q", **options)
