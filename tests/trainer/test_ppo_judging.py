"""Held-out rollouts judged against the reference model's answers: win rates, any number of ranks, a run that goes on."""

import dataclasses
import gc
import json
import shutil
import sys
from statistics import NormalDist

import numpy as np
import pytest
from rule_server import Rule, serving
from test_launch import MODULE, TORCHRUN, launched
from test_pair_opponents import reference_answer

from denserl import distributed
from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.judging.contract import Judgement
from denserl.judging.templates import find_template
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.pair_source import Answer
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_judging import HeldOutJudge, check_limit, win_rate
from denserl.trainer.trackers import read_metrics

Z = NormalDist().inv_cdf(0.975)
BOTH = (("first",), ("first",)), (("first",), ("second",)), (("second",), ("second",))


def test_a_win_rate_counts_a_tie_half_and_leaves_out_what_is_undecided():
    scores = [1.0, 0.5, 0.0, None]
    verdicts = [*BOTH, (("invalid",), ("cut",))]
    found = win_rate([Judgement(score, told) for score, told in zip(scores, verdicts, strict=True)])
    assert found["judge_win_rate"] == 0.5 and found["judge_undecided"] == 1 / 4
    # At a half Wilson's interval is 1/2 +- z / (2 sqrt(n + z^2)).
    half = Z / (2 * (3 + Z**2) ** 0.5)
    assert (found["judge_win_rate_low"], found["judge_win_rate_high"]) == pytest.approx((0.5 - half, 0.5 + half))
    assert found["judge_consistency"] == pytest.approx(2 / 3)
    assert win_rate([Judgement(None, ((), ("invalid",)))]) == {"judge_undecided": 1.0}


class LongerIsBetter:
    def compare(self, comparisons):
        self.asked = list(comparisons)
        return [Judgement(float(len(each.first) > len(each.second))) for each in comparisons]


def responses(numbers):
    """To prompts of which number n is [n, n], answered with so many characters."""
    prompts = [[{"role": "user", "content": str(n)}] for n in numbers]
    return Responses(
        prompts, ["x" * n for n in numbers], [[n, n] for n in numbers], [[9]] * len(numbers), [True] * len(numbers)
    )


def test_all_ranks_ask_what_one_would_in_the_order_of_the_prompts(monkeypatch):
    def reference(prompts):
        return [Answer("yy", True) for _ in prompts]

    alone = HeldOutJudge(LongerIsBetter(), reference)
    expected = alone(responses(range(5)), range(5), 5)
    assert expected["judge_win_rate"] == pytest.approx(2 / 5)
    assert [asked.first for asked in alone.judge.asked] == ["", "x", "xx", "xxx", "xxxx"]
    # Rank 1 has the prompts 1, 3 and, so that both have as many, the first one again.
    shares = {0: (responses([0, 2, 4]), [0, 2, 4]), 1: (responses([1, 3, 0]), [1, 3, 5])}
    sent = {}
    for rank, (own, numbers) in shares.items():
        with monkeypatch.context() as patched:
            patched.setattr(distributed, "gather_objects", lambda mine, rank=rank: sent.setdefault(rank, [mine]))
            HeldOutJudge(LongerIsBetter(), reference)(own, numbers, 5)
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: [sent[0][0], sent[1][0]])
    together = HeldOutJudge(LongerIsBetter(), reference)
    assert together(*shares[1], 5) == expected and together.judge.asked == alone.judge.asked


def test_a_reward_model_judges_by_the_probability_that_its_scores_make(ppo, scored, world):
    output = ppo(iterations=1, seed=3, eval_prompts=world.prompts, eval_every=1, judge_reward_model=world.reward_model)
    responses, _ = scored[-1]
    others = [reference_answer(world, prompt, 3)[0] for prompt in responses.prompt_ids]
    scorer = RewardScorer([str(world.reward_model)])
    gap = scorer(responses.prompts, responses.texts) - scorer(responses.prompts, others)
    row = read_metrics(output / "metrics.jsonl")[-1]
    assert row["eval_judge_win_rate"] == pytest.approx(np.mean(1 / (1 + np.exp(-gap))), abs=1e-5)
    assert "eval_judge_consistency" not in row and row["eval_judge_undecided"] == 0


def worth(answer: str) -> int:
    return sum(map(ord, answer))


def test_a_run_is_judged_every_so_often_and_goes_on_with_what_was_answered(ppo, scored, world):
    """The resumed run finds every answer in its folder: the server is gone."""
    rule = Rule(find_template("pairwise"), lambda prompt, answer: worth(answer))
    options = {"iterations": 2, "save_every": 1, "actor_lr": 0.05, "seed": 3}
    options |= {"eval_prompts": world.prompts, "eval_every": 1, "eval_judge": 2, "judge_tries": 1}
    with serving(rule) as server:
        options |= {"judge": server.url}
        output = ppo(**options)
        asked = len(server.bodies)
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval_judge_win_rate" in row] == [2]
    responses, _ = scored[-1]
    others = [reference_answer(world, prompt, 3)[0] for prompt in responses.prompt_ids]
    pairs = list(zip(responses.texts, others, strict=True))
    wins = [(worth(one) > worth(other)) + 0.5 * (one == other) for one, other in pairs]
    assert len(wins) == 5 and rows[-1]["eval_judge_win_rate"] == pytest.approx(sum(wins) / 5)
    assert rows[-1]["eval_judge_undecided"] == 0
    store = output / "judge_answers.jsonl"
    assert len(store.read_text().splitlines()) == asked == 2 * sum(one != other for one, other in pairs)
    gc.collect()  # closes the store
    shutil.rmtree(output / "checkpoints" / "iteration-000002")
    ppo(resume=True, **options)
    again = read_metrics(output / "metrics.jsonl")
    judged = [name for name in rows[-1] if name.startswith("eval_judge")]
    assert len(judged) == 5 and {name: again[-1][name] for name in judged} == {name: rows[-1][name] for name in judged}
    assert len(store.read_text().splitlines()) == asked


@pytest.mark.parametrize(
    "options, found",
    [
        ({"judge": "http://127.0.0.1:1/v1"}, "--judge .* has no effect without --eval_prompts, or with --eval_every 0"),
        (
            {"eval_prompts": "held_out.jsonl", "eval_judge": 2},
            "--eval_judge 2 has no effect without --judge or --judge_reward_model",
        ),
        ({"eval_prompts": "held_out.jsonl", "judge": "http://127.0.0.1:1/v1", "judge_template": "rating"}, "rating"),
        ({"eval_prompts": "p.jsonl", "judge": "http://h:1/v1", "judge_reward_model": "rm"}, "has no effect beside --judge"),
        ({"judge_reward_model": "rm"}, "--judge_reward_model .* has no effect without --eval_prompts"),
        ({"eval_prompts": "p.jsonl", "judge_reward_model": "no-rm"}, "no-rm"),
        ({"eval_prompts": "held_out.jsonl", "judge": "http://127.0.0.1:1/v1", "judge_tries": 1}, "127.0.0.1:1"),
    ],
)
def test_a_judge_that_cannot_act_is_refused_before_a_model_is_loaded(options, found, ppo):
    with pytest.raises(UserError, match=found):
        ppo(model="no-such-model", **options)


def test_what_the_rest_of_a_run_may_ask_for_is_said_at_its_start(tmp_path, caplog):
    config = PPOConfig(
        model="m", data=["d"], output_dir="o", eval_prompts=["p"], eval_every=2, eval_judge=3, judge=["http://h/v1"]
    )
    with caplog.at_level("INFO", logger="denserl"):
        check_limit(config, None, 20, 5)  # at 6, 12, 18 and 20
        (tmp_path / "state.json").write_text(json.dumps({"iteration": 12}))
        check_limit(dataclasses.replace(config, judge_orders="one", judge_votes=3), tmp_path, 20, 5)
    assert caplog.messages == [
        f"{times} held-out rollouts of 5 prompts are to be judged, by at most {most} answers"
        for times, most in ((4, 40), (2, 30))
    ]
    check_limit(dataclasses.replace(config, judge_limit=40), None, 20, 5)
    with pytest.raises(UserError, match="by at most 40 answers, and `judge_limit` is 39"):
        check_limit(dataclasses.replace(config, judge_limit=39), None, 20, 5)


@pytest.mark.long
def test_two_processes_are_judged_as_one_is(world, tmp_path):
    rule = Rule(find_template("pairwise"), lambda prompt, answer: worth(answer))
    found = {}
    with serving(rule) as server:
        for launcher in ([sys.executable, "-m", MODULE], TORCHRUN):
            options = {"iterations": 2, "actor_lr": 0.05, "eval_prompts": world.prompts, "eval_every": 1, "judge": server.url}
            output = tmp_path / str(len(launcher))
            code, stderr = launched([*launcher, *world.argv(output, **options)])
            assert code == 0, stderr[-3000:]
            rows = read_metrics(output / "metrics.jsonl")
            found[len(launcher)] = [{name: row[name] for name in row if "judge" in name} for row in rows]
    alone, together = found.values()
    assert alone == together and [len(row) for row in alone] == [0, 5, 5]
