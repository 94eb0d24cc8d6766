"""Ensembles: what is combined against loops, on padded batches; and what the configs must say."""

import math

import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_rows
from transformers import LlamaConfig

from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.models.reward_settings import StoredSettings, stored_settings
from denserl.rewards.sources.reward_model import Moments, RewardModelSource, combine, common_settings, stored_moments

MOMENTS = [Moments(0.5, 2.0), Moments(-1.0, 0.25), Moments(3.0, 1.5)]
numbers = st.floats(-100, 100, width=32)


@given(st.integers(1, 5).flatmap(lambda m: st.lists(st.lists(numbers, min_size=m, max_size=m), min_size=1, max_size=6)))
def test_scores_are_combined_place_by_place(places):
    """places: the members' scores at each place."""
    scores = torch.tensor(places).T
    for i, members in enumerate(places):
        mean = math.fsum(members) / len(members)
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in members) / len(members))
        expected = {"mean": mean, "min": min(members), "mean_std": mean - 0.7 * std}
        for how, value in expected.items():
            assert combine(scores, how, 0.7)[i].item() == pytest.approx(value, rel=1e-4, abs=1e-3)


def test_what_disagrees_is_trusted_less():
    scores = torch.tensor([[1.0, 3.0], [1.0, -1.0]])
    assert combine(scores, "mean").tolist() == [1.0, 1.0]
    assert combine(scores, "mean_std", 1.0).tolist() == [1.0, -1.0]
    assert combine(scores, "mean_std", 0.25).tolist() == [1.0, 0.5]
    assert combine(scores, "min").tolist() == [1.0, -1.0]
    with pytest.raises(ValueError, match="unknown ensemble 'max'; known: mean, min, mean_std"):
        combine(scores, "max")


@pytest.fixture(scope="module")
def members() -> list:
    return [tiny_models.classifier("llama", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def rows() -> tuple[list, list]:
    return random_rows([5, 2, 7], seed=1), random_rows([4, 9, 1], seed=2)


def alone(model, prompt: list[int], response: list[int]) -> list[float]:
    """The head's output at each response token of one unpadded row, by the stock class's own parts."""
    with torch.no_grad():
        hidden = model.model(torch.tensor([prompt + response])).last_hidden_state[0]
    return (hidden @ model.score.weight[0])[len(prompt) :].tolist()


def token_scores(source: RewardModelSource, rows) -> torch.Tensor:
    """What a source says of padded rows of ids, (B, T), to be cut by whoever reads it."""
    responses = Responses([[]] * 3, [""] * 3, *rows, [True] * 3)
    found = source(responses, responses.padded(0, "cpu"))
    assert found.segments is None and found.read == "last"
    return found.values


def test_one_model_is_taken_as_it_is(members, rows):
    found = token_scores(RewardModelSource(members[:1]), rows)
    for b, (prompt, response) in enumerate(zip(*rows, strict=True)):
        assert found[b, : len(response)].tolist() == pytest.approx(alone(members[0], prompt, response), abs=1e-4)


@pytest.mark.parametrize("how", ["mean", "min", "mean_std"])
def test_token_scores_of_several_are_standardised_then_combined(how, members, rows):
    found = token_scores(RewardModelSource(members, MOMENTS, how, 0.5), rows)
    for b, (prompt, response) in enumerate(zip(*rows, strict=True)):
        each = [alone(model, prompt, response) for model in members]
        for t in range(len(response)):
            standardised = [(scores[t] - m.mean) / m.std for scores, m in zip(each, MOMENTS, strict=True)]
            mean = sum(standardised) / 3
            std = math.sqrt(sum((x - mean) ** 2 for x in standardised) / 3)
            expected = {"mean": mean, "min": min(standardised), "mean_std": mean - 0.5 * std}[how]
            assert found[b, t].item() == pytest.approx(expected, abs=1e-3)


def test_several_need_the_moments_of_each(members):
    for moments in (None, MOMENTS[:2]):
        with pytest.raises(ValueError, match="3 models with . moments"):
            RewardModelSource(members, moments)


def settings(mean=None, std=None, **stored):
    return stored_settings(LlamaConfig(mean=mean, std=std, segment_reward=stored), "rm")


def test_moments_are_those_that_training_stored():
    assert stored_moments([settings(0.5, 2.0), settings(-1, 3)], ["a", "b"]) == [(0.5, 2.0), (-1, 3)]
    assert stored_moments([settings()], ["a"]) is None


@pytest.mark.parametrize("wrong", [settings(), settings(1.0), settings(1.0, 0.0)])
def test_a_member_without_moments_is_named(wrong):
    with pytest.raises(UserError, match="^runs/b: a member of an ensemble needs a mean and a std > 0") as error:
        stored_moments([settings(0.5, 2.0), wrong], ["runs/a", "runs/b"])
    assert "denserl train-rm" in error.value.fix


def test_settings_of_an_ensemble_are_those_that_all_members_have():
    one = settings(0.5, 2.0, max_length=64, sft_model="sft", entropy_threshold=1.5)
    other = settings(0.1, 1.0, max_length=96, sft_model="sft", entropy_threshold=1.5)
    assert common_settings([one], ["a"]) == one
    found = common_settings([one, other], ["a", "b"])
    assert (found.sft_model, found.max_length, found.entropy_threshold) == ("sft", None, 1.5)
    assert (found.mean, found.std) == (0.0, 1.0)
    assert isinstance(found, StoredSettings)


def test_members_of_an_ensemble_are_aggregated_alike_and_by_what_standardising_passes_through():
    mean, least, total = settings(), settings(agg_func="min"), settings(agg_func="sum")
    assert common_settings([mean, settings(agg_func="avg")], ["a", "b"]).agg_func == "avg"
    assert common_settings([least, least], ["a", "b"]).agg_func == "min"
    assert common_settings([total], ["a"]).agg_func == "sum"
    for members, found in (([mean, least], "avg, min"), ([total, total], "sum")):
        with pytest.raises(UserError, match=f"^a, b: trained with the aggregation {found}; .* needs one of avg, min, last"):
            common_settings(members, ["a", "b"])
    with pytest.raises(UserError, match="^b/config.json has 'median' for agg_func; expected one of avg, sum"):
        common_settings([mean, settings(agg_func="median")], ["a", "b"])
