"""Reward models and models that compare, as judges: what the stock classes say of the same texts, in closed form."""

import math
import sys
from pathlib import Path

import pytest
import tiny_models
import torch

from denserl.data.responses import encode
from denserl.errors import UserError
from denserl.judging.contract import Comparison
from denserl.judging.models import load_model_judge
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.config import RewardModelConfig, ScorerConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "rewards"))
from reward_folders import PROMPTS, TEXTS, save_pair_model, save_reward_model, stock_log_odds, stock_score  # noqa: E402


class Config(RewardModelConfig, ScorerConfig):
    """How a judge's model is read."""


PAIRS = [(0, 0, 1), (1, 1, 2), (2, 2, 0), (0, 2, 2)]
COMPARISONS = [Comparison(PROMPTS[prompt], TEXTS[one], TEXTS[other]) for prompt, one, other in PAIRS]


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    return tiny_models.save_language_model(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def reward(sft, tmp_path_factory) -> str:
    return save_reward_model(tmp_path_factory.mktemp("rm"), sft, 3, entropy_threshold=1000.0, read_at="end_of_turn")


@pytest.fixture(scope="module")
def pair(sft, tmp_path_factory) -> str:
    return save_pair_model(tmp_path_factory.mktemp("pm"), sft)


def load(path: str, hard: bool = False, **how):
    return load_model_judge([path], Config(reward_model=path), torch.device("cpu"), "fp32", hard, **how)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def stock(folder: str, prompt, text: str) -> float:
    row = encode(load_tokenizer(folder), prompt, text, 10_000)
    return stock_score(folder, [*row.prompt_ids, *row.response_ids])


def test_a_reward_model_is_as_sure_as_its_scores_are_apart(reward):
    judge = load(reward)
    found = judge.compare(COMPARISONS)
    for judgement, each in zip(found, COMPARISONS, strict=True):
        apart = stock(reward, each.prompt, each.first) - stock(reward, each.prompt, each.second)
        assert judgement.score == pytest.approx(sigmoid(apart), abs=1e-5) and judgement.verdicts == ()
    assert found[-1].score == 0.5
    hard = load(reward, hard=True).compare(COMPARISONS)
    assert [each.score for each in hard] == [1 if each.score > 0.5 else 0 if each.score < 0.5 else 0.5 for each in found]
    assert {each.score for each in hard} == {0, 0.5, 1}  # all three are seen
    assert judge.describe()["scorer"] == reward and judge.describe()["hard"] is False
    assert judge.compare([]) == []


def test_answers_may_be_all_turns_from_where_conversations_part(reward):
    turns = [{"role": "assistant", "content": TEXTS[1]}, *PROMPTS[1], {"role": "assistant", "content": TEXTS[0]}]
    (found,) = load(reward).compare([Comparison(PROMPTS[0], turns, TEXTS[2])])
    apart = stock(reward, [*PROMPTS[0], *turns[:-1]], TEXTS[0]) - stock(reward, PROMPTS[0], TEXTS[2])
    assert found.score == pytest.approx(sigmoid(apart), abs=1e-5)


def test_a_model_that_compares_is_asked_in_both_orders(pair):
    def text(prompt, first, second) -> str:
        context = "".join(f"{turn['role']}\n{turn['content']}<|im_end|>" for turn in prompt)
        shown = f"{context}A\n{first}<|im_end|>B\n{second}<|im_end|>A or B?"
        return f"<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\n"

    found = load(pair).compare(COMPARISONS)
    for judgement, (prompt, first, second) in zip(found, COMPARISONS, strict=True):
        given, turned = (stock_log_odds(pair, text(prompt, *both)) for both in ((first, second), (second, first)))
        assert judgement.score == pytest.approx((sigmoid(given) + 1 - sigmoid(turned)) / 2, abs=1e-5)
    assert found[-1].score == 0.5
    hard = load(pair, hard=True).compare(COMPARISONS)
    assert [each.score for each in hard] == [1 if each.score > 0.5 else 0 if each.score < 0.5 else 0.5 for each in found]
    assert load(pair).describe()["pair_layout"] == "denserl"


def test_what_cannot_be_compared_is_named(pair):
    turns = [{"role": "assistant", "content": TEXTS[1]}, *PROMPTS[1], {"role": "assistant", "content": TEXTS[0]}]
    with pytest.raises(UserError, match="comparison 2: its answers are to different prompts"):
        load(pair).compare([COMPARISONS[0], Comparison(PROMPTS[0], turns, TEXTS[2])])


def test_an_option_that_a_model_has_no_use_for_is_refused(pair, reward):
    with pytest.raises(UserError, match="`sft_model` x has no effect"):
        load(pair, sft_model="x")
    with pytest.raises(UserError, match="`aggregate` min has no effect"):
        load(reward, aggregate="min")
