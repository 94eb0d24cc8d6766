"""Runs of PPO against a model that judges steps: what is paid, against the stock class reading each beginning by itself."""

import math

import pytest
import tiny_models
import torch
from transformers import AutoModelForSequenceClassification

from denserl.cli import fit_normalizer
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer
from denserl.trainer.ppo_trainer import PPOTrainer

SEPARATOR = "e"  # which a model of random weights writes now and then


@pytest.fixture
def scored(monkeypatch) -> list:
    """The responses of each rollout, and what they were scored."""
    kept, score = [], PPOTrainer.score

    def keep(self, *args, **kw):
        kept.append((args[0], score(self, *args, **kw)))
        return kept[-1][1]

    monkeypatch.setattr(PPOTrainer, "score", keep)
    return kept


@pytest.fixture(scope="module")
def judge(world, tmp_path_factory):
    """The reward model as one that judges steps, and its folder."""
    folder = tmp_path_factory.mktemp("judge")
    stock = AutoModelForSequenceClassification.from_pretrained(world.reward_model, dtype=torch.float32).eval()
    stock.config.segment_reward = {"scores": "logit", "segmenter": "step", "step_separator": [SEPARATOR], "agg_func": "min"}
    stock.save_pretrained(folder)
    load_tokenizer(str(world.sft)).save_pretrained(folder)
    return stock, folder


def chances(stock, tokenizer, prompt: list[int], ids: list[int], ended: bool) -> dict[int, float]:
    """Token of each step's end -> the chance that the step is right. Tokens are looked at one by one."""
    content = ids[:-1] if ended else ids
    ends, said = [], False
    for place, token in enumerate(content):
        piece = tokenizer.decode([token], skip_special_tokens=True)
        said = said or bool(piece.replace(SEPARATOR, "").strip())
        if SEPARATOR in piece and said:
            ends.append(place)
            said = bool(piece.rpartition(SEPARATOR)[2].strip())
    ends = [*ends, len(content) - 1] if said else [*ends[:-1], *([len(content) - 1] if ends else [])]
    found = {}
    for end in ends:
        with torch.no_grad():
            logit = stock(torch.tensor([[*prompt, *ids[: end + 1]]])).logits.item()
        found[end] = 1 / (1 + math.exp(-logit))
    return found


def test_steps_are_paid_what_they_change_at_their_last_tokens(ppo, scored, judge, world):
    stock, folder = judge
    options = {
        "entropy_threshold": None,
        "reward_model": folder,
        "rollout_batch_size": 64,
        "train_batch_size": 64,
        "micro_batch_size": 32,
    }
    ppo("difference", **options)
    ppo("least", **options, credit="prefix_min")
    ppo("mean", **options, step_reward="prob", assignment="mean_last")
    tokenizer, many = load_tokenizer(str(world.sft)), 0
    (responses, difference), (_, least), (_, mean) = [(responses, found[0].rewards) for responses, found in scored]
    for row, (prompt, ids) in enumerate(zip(responses.prompt_ids, responses.response_ids, strict=True)):
        if any("\ufffd" in tokenizer.decode([i]) for i in ids):
            continue  # parts of characters, which this reader of single tokens does not put together
        found = chances(stock, tokenizer, prompt, ids, responses.ended[row])
        paid = {"difference": [0.0] * len(ids), "least": [0.0] * len(ids), "mean": [0.0] * len(ids)}
        before, lowest = 0.5, 0.0
        for number, (end, chance) in enumerate(found.items()):
            paid["difference"][end], before = chance - before, chance
            now = 2 * chance - 1 if number == 0 else min(lowest, 2 * chance - 1)
            paid["least"][end], lowest = now - lowest, now
        paid["mean"][-1] = sum(found.values()) / max(len(found), 1)
        for tokens, expected in zip((difference, least, mean), paid.values()):
            assert tokens[row, : len(ids)].tolist() == pytest.approx(expected, abs=1e-4)
        many += len(found)
    assert many > 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assignment": "difference_end"}, "--assignment difference_end with .*, which judges steps"),
        ({"reward_level": "bandit"}, "judges the steps of a response, and nothing else"),
        ({"normalizer": "scalar"}, "--normalizer scalar has no effect on chances of steps"),
        ({"critic_init": "reward_model"}, "critic_init"),
    ],
)
def test_what_does_not_go_with_steps(ppo, judge, options, message):
    with pytest.raises(UserError, match=message):
        ppo(reward_model=judge[1], entropy_threshold=None, **options)


def test_chances_of_steps_are_not_asked_of_rewards(ppo):
    with pytest.raises(UserError, match="--step_reward prob has no effect: .* gives rewards"):
        ppo(step_reward="prob")
    with pytest.raises(UserError, match="--credit min with --assignment difference_end"):
        ppo(credit="min", assignment="difference_end")


def test_chances_of_steps_have_no_lines(judge, world, tmp_path):
    argv = tiny_models.as_argv({"reward_model": judge[1], "data": world.prompts, "output_dir": tmp_path})
    with pytest.raises(UserError, match="judges steps: chances of success are paid as they are"):
        tiny_models.run_command(fit_normalizer, "fit-normalizer", argv)


def test_prefix_differences_of_a_judge_of_outcomes_are_of_chances(ppo, scored, judge, world, tmp_path):
    stock, folder = judge
    one = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    one.config.segment_reward = {**one.config.segment_reward, "max_steps": 1}
    one.save_pretrained(tmp_path / "outcomes")
    load_tokenizer(str(world.sft)).save_pretrained(tmp_path / "outcomes")
    ppo(reward_model=tmp_path / "outcomes", prefix_differences=True, entropy_threshold=None)
    ((responses, found),) = scored

    def chance(ids: list[int]) -> float:
        with torch.no_grad():
            return stock(torch.tensor([ids])).logits.sigmoid().item()

    for row, (prompt, ids) in enumerate(zip(responses.prompt_ids, responses.response_ids, strict=True)):
        content = ids[:-1] if responses.ended[row] else ids
        so_far = [chance([*prompt, *content[:count]]) for count in range(len(content) + 1)]
        expected = [after - before for before, after in zip(so_far, so_far[1:])]
        assert found[0].rewards[row, : len(ids)].tolist() == pytest.approx([*expected, *[0.0] * responses.ended[row]], abs=1e-4)
    with pytest.raises(UserError, match="--critic_init reward_model with .*, whose scores are logits"):
        ppo(
            "critic",
            reward_model=tmp_path / "outcomes",
            prefix_differences=True,
            entropy_threshold=None,
            critic_init="reward_model",
        )
    with pytest.raises(UserError, match="was trained to judge steps, not whole responses"):
        ppo("steps", reward_model=folder, prefix_differences=True, entropy_threshold=None)
