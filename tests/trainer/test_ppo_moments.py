"""Running moments of what is paid, in runs: against all numbers that were paid so far, and where they are refused."""

import statistics

import pytest
import torch
from test_ppo_trainer import LEVELS

from denserl.errors import UserError
from denserl.ppo_utils.assignment import score_changes
from denserl.trainer.ppo_rewards import Rewards
from denserl.trainer.trackers import read_metrics


def rewards_of_texts(prompts: list, responses: list[str]) -> list[float]:
    return [float(len(text) % 5) for text in responses]


def stream(source, kind: str) -> list[list[float]]:
    """What each response is paid before it is normalised, of the scores that were read."""
    paid = score_changes(source.raw, source.segments.counts) if kind == "difference_end" else source.raw
    return [row[:count] for row, count in zip(paid.tolist(), source.segments.counts.tolist(), strict=True)]


@pytest.mark.parametrize(
    "level, kind, centre", [("segment", "difference_end", True), ("token", "end", False), ("bandit", "mean_last", True)]
)
def test_what_is_paid_is_normalised_by_all_that_was_paid_in_training(level, kind, centre, ppo, scored, world):
    """Two rollouts, each among what it is normalised by; held-out ones before, between and after learn from them alone."""
    options = {"assignment": kind, "normalizer": "running" if centre else "running_scale", "score_clip": 0.8}
    held_out = {"eval_prompts": world.prompts, "eval_every": 1}
    output = ppo(iterations=2, **LEVELS[level], **options, **held_out)
    seen, scores, logged = [], [], iter(read_metrics(output / "metrics.jsonl")[1:])
    for number, (_, found) in enumerate(scored):
        (source,) = found.sources
        paid = stream(source, kind)
        if number % 2:
            seen += [number for row in paid for number in row]
            scores += source.score.tolist()
            row = next(logged)
            expected = statistics.fmean(seen), statistics.stdev(seen), statistics.fmean(scores), statistics.stdev(scores)
            names = "running_mean", "running_std", "running_score_mean", "running_score_std"
            assert [row[name] for name in names] == pytest.approx(expected, rel=1e-6)
        mean, std = (statistics.fmean(seen), statistics.stdev(seen)) if seen else (0.0, 1.0)
        for b, numbers in enumerate(paid):
            expected = [min(max((number - centre * mean) / std, -0.8), 0.8) for number in numbers]
            tokens = found.rewards[b][found.rewards[b] != 0].tolist()
            assert tokens == pytest.approx([number for number in expected if number], abs=1e-5)
    assert len(scored) == 5


def test_each_of_several_sources_has_moments_of_its_own(ppo, scored):
    """Functions without a reward model are paid by the options; beside one they are paid as they are."""
    names = ["test_ppo_moments:rewards_of_texts", "tiny_models:letters"]
    options = {"reward_function": names, "normalizer": "running", "entropy_threshold": None}
    output = ppo("alone", reward_model=None, **options)
    (row,), ((_, found),) = read_metrics(output / "metrics.jsonl"), scored
    for name, source in zip(names, found.sources, strict=True):
        scores = source.score.tolist()
        expected = statistics.fmean(scores), statistics.stdev(scores)
        assert [row[f"running_mean/{name}"], row[f"running_std/{name}"]] == pytest.approx(expected, rel=1e-6)
        assert source.tokens.sum().item() == pytest.approx(0, abs=1e-5)
    scored.clear()
    row = read_metrics(ppo("beside", **options | {"entropy_threshold": 5.3}) / "metrics.jsonl")[0]
    assert [name for name in row if name.startswith("running_mean/")] == ["running_mean/reward_model"]
    model, *functions = scored[0][1].sources
    assert all(torch.equal(source.tokens.sum(1), source.score) for source in functions)
    assert not torch.equal(model.tokens.sum(1), model.score)


@pytest.mark.parametrize(
    "options, found",
    [
        ({"normalizer": "running", "reward_mean": 0.0}, "--reward_mean 0.0 has no effect without --normalizer scalar"),
        ({"normalizer": "running_scale", "fit": "f.json"}, "--fit f.json has no effect without --normalizer location"),
        ({"score_clip": 0}, "--score_clip is 0.0; it must be above 0"),
        (
            {"score_clip": 0.8, "reward_model": None, "entropy_threshold": None, "outcome_function": "tiny_models:letters"},
            "--score_clip 0.8 has no effect without --reward_model or",
        ),
    ],
)
def test_what_has_no_effect_is_refused(options, found, ppo):
    with pytest.raises(UserError) as error:
        ppo(**options)
    assert found in error.value.found


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_stays_out_of_the_moments(bad, ppo, scored, monkeypatch):
    """It costs the optimiser step of its own response alone, and the moments are those of the others."""
    score = Rewards.score

    def spoiled(self, *args, **kw):
        found = score(self, *args, **kw)
        for name, of_source in found.items():
            values = of_source.values.clone()
            values[0] = bad
            found[name] = of_source._replace(values=values)
        return found

    monkeypatch.setattr(Rewards, "score", spoiled)
    options = {"reward_model": None, "reward_function": ["tiny_models:letters"], "entropy_threshold": None}
    output = ppo(normalizer="running", score_clip=0.8, train_batch_size=4, **options)
    (row,), ((_, found),) = read_metrics(output / "metrics.jsonl"), scored
    numbers = found.sources[0].score.tolist()[1:]
    assert [row["running_mean"], row["running_std"]] == pytest.approx([statistics.fmean(numbers), statistics.stdev(numbers)])
    assert row["running_score_mean"] == row["running_mean"] and row["skipped_steps"] == 1 and row["reward"] is None
