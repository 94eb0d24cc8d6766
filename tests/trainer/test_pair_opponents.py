"""PPO runs that are paid by a model that compares responses: by the other samples of a prompt, or by the reference's answer."""

import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from denserl.cli import train_ppo
from denserl.data.chat import stop_ids
from denserl.errors import UserError
from denserl.models.loading import load_policy
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.sources.pair_model import PairModel
from denserl.rewards.sources.reading import response_text
from denserl.rollouts.policy import PolicySampler
from denserl.streams import Purpose, stream

sys.path.append(str(Path(__file__).parent.parent / "rewards"))
from reward_folders import save_pair_model  # noqa: E402

RUN = {"entropy_threshold": None, "iterations": 2, "samples_per_prompt": 2, "seed": 3}


@pytest.fixture(scope="module")
def judge(world, tmp_path_factory) -> str:
    return save_pair_model(tmp_path_factory.mktemp("pm"), world.sft)


def rewards(scored) -> list[float]:
    """Of each response; they stand at its last token."""
    lengths = scored.mask.sum(1).tolist()
    for row, length in enumerate(lengths):
        assert not scored.rewards[row, : length - 1].any() and not scored.rewards[row, length:].any()
    return [scored.rewards[row, length - 1].item() for row, length in enumerate(lengths)]


def chance(judge: PairModel, prompt, first: tuple[str, bool], second: tuple[str, bool]) -> float:
    """By hand of the log-odds of both orders."""
    pair = judge.encode(prompt, first[0], second[0], (first[1], second[1]))
    [(one, other)] = judge.score([pair])
    return (1 / (1 + math.exp(-one)) + 1 / (1 + math.exp(other))) / 2


def reference_answer(world, prompt: list[int], seed: int) -> tuple[str, bool]:
    """What the SFT model answers, sampled as the policy is, with numbers of the seed and the prompt."""
    tokenizer, policy = load_tokenizer(str(world.sft)), load_policy(str(world.sft), "fp32").eval()
    number = int.from_bytes(hashlib.sha256(" ".join(map(str, prompt)).encode()).digest()[:8], "big")
    sampler = PolicySampler(lambda: policy, stop_ids(tokenizer, policy.generation_config), tokenizer.pad_token_id, 8)
    found = sampler([list(prompt)], [stream(seed, Purpose.OPPONENTS, number)])
    return response_text(tokenizer)(found.responses[0]), found.ended[0]


def against_reference(world, judge: PairModel, responses, i: int) -> float:
    other = reference_answer(world, responses.prompt_ids[i], 3)
    p = chance(judge, responses.prompts[i], (responses.texts[i], responses.ended[i]), other)
    return math.log(p / (1 - p))


def test_samples_of_a_prompt_are_paid_by_one_another(scored, judge, world, tmp_path):
    """Beside another source, with weights; held-out responses, which have no others, are judged against the reference."""
    options = {"samples_per_prompt": 4, "pair_opponent": "group", "reward_function": "tiny_models:letters"}
    options |= {"eval_prompts": world.prompts, "eval_limit": 2, "eval_every": 2, "reward_model": judge}
    argv = [*world.argv(tmp_path, **{**RUN, **options}), "--reward_weights", "2", "0.5"]
    tiny_models.run_command(train_ppo, "train-ppo", argv)
    model = PairModel.load(judge)
    held_out, *training, _ = scored
    assert len(training) == 2
    for responses, found in training:
        answers, own = list(zip(responses.texts, responses.ended)), []
        for i, paid in enumerate(rewards(found)):
            first = i - i % 4
            others = [chance(model, responses.prompts[i], answers[i], answers[j]) for j in range(first, first + 4) if j != i]
            own.append(np.mean([math.log(p / (1 - p)) for p in others]))
            expected = 2 * own[i] + 0.5 * tiny_models.letters([responses.prompts[i]], [responses.texts[i]])[0]
            assert paid == pytest.approx(expected, abs=1e-4)
        assert sum(own[:4]) == pytest.approx(0, abs=1e-5) and np.std(own) > 0.05
    responses, found = held_out
    assert found.sources[0].score.tolist() == pytest.approx(
        [against_reference(world, model, responses, i) for i in range(2)], abs=1e-5
    )


def test_a_sample_is_paid_by_the_answer_of_the_reference(ppo, scored, judge, world):
    """Also when the policy, which is the reference with adapters, has moved."""
    ppo(reward_model=judge, actor_lr=0.05, lora_rank=2, **RUN)
    model = PairModel.load(judge)
    assert len(scored) == 2
    for responses, found in scored:
        expected = [against_reference(world, model, responses, i) for i in range(8)]
        assert rewards(found) == pytest.approx(expected, abs=1e-5) and np.std(expected) > 0.05


@pytest.mark.parametrize(
    "options, said",
    [
        ({"pair_opponent": "group", "samples_per_prompt": 1}, "no effect with --samples_per_prompt 1"),
        ({"pair_opponent": "group", "reward_model": "{world.reward_model}"}, "no --reward_model compares responses"),
        (
            {"gold_reward_model": "{judge}", "reward_model": "{world.reward_model}", "eval_prompts": "{world.prompts}"},
            "one alone",
        ),
        ({"critic_init": "reward_model"}, "compares responses, and says nothing of one alone"),
        ({"reward_level": "segment"}, "--reward_level segment has no effect: {judge} compares whole responses"),
        ({"max_steps": 4}, "--max_steps 4 has no effect"),
        ({"prefix_differences": True}, "--prefix_differences True has no effect"),
        ({"normalizer": "scalar"}, "give both"),
        ({"reward_model": "{judge} {judge}"}, "are no ensemble"),
        ({"reward_model": "{judge} {world.reward_model}"}, "are no ensemble"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(world, judge, tmp_path, monkeypatch, options, said):
    if "normalizer" not in options:
        monkeypatch.setattr("denserl.trainer.ppo_trainer.load_tokenizer", None)
    named = {
        name: value.format(world=world, judge=judge) if isinstance(value, str) else value for name, value in options.items()
    }
    settings = {"reward_model": judge, "samples_per_prompt": 2, "entropy_threshold": None, **named}
    models = settings.pop("reward_model").split()
    argv = [*world.argv(tmp_path / "run", reward_model=None, **settings), "--reward_model", *models]
    with pytest.raises(UserError) as error:
        tiny_models.run_command(train_ppo, "train-ppo", argv)
    assert said.format(judge=judge) in str(error.value)
