"""PPO against several reward models, and judged by a gold one: by hand, one unpadded row at a time with stock models."""

import json
import math
import shutil
from pathlib import Path

import pytest
import reference_loops as loops
import tiny_models
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from denserl.data.chat import encode_prompt, encode_response
from denserl.errors import UserError
from denserl.models.reward_models import load_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards import normalizer_fit
from denserl.rollouts.base import Rollouts
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.trackers import read_metrics

MOMENTS = [(0.1, 1.2), (-2.0, 0.3)]
LEVELS = {
    "segment": {"reward_level": "segment", "normalizer": "none"},
    "token": {"reward_level": "token", "entropy_threshold": None, "normalizer": "none"},
    "bandit": {"reward_level": "bandit", "entropy_threshold": None},
}
THRESHOLDS = {"segment": 5.3, "token": 0.0, "bandit": 1000.0}


def member(
    world, folder: Path, seed: int, mean: float | None, std: float | None, threshold: float = 5.3, agg_func: str = "avg"
) -> Path:
    """A reward model whose head is another one's, turned by a seed; mean and std as its config shall have them."""
    model = load_reward_model(str(world.reward_model), "fp32")
    with torch.no_grad():
        model.score.weight.add_(torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(seed)))
    model.config.mean, model.config.std = mean, std
    model.config.segment_reward = {"entropy_threshold": threshold, "agg_func": agg_func}
    model.save_pretrained(folder)
    load_tokenizer(str(world.sft)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def members(world, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("members")
    return [member(world, root / f"rm-{seed}", seed, *moments) for seed, moments in enumerate(MOMENTS)]


@pytest.fixture
def run(world, tmp_path):
    """Runs train-ppo on several reward models: their folders, options -> its output folder."""
    from denserl.cli import train_ppo

    def train(reward_models: list[Path], name: str = "run", **options) -> Path:
        argv = world.argv(tmp_path / name, reward_model=None, **options)
        tiny_models.run_command(train_ppo, "train-ppo", [*argv, "--reward_model", *map(str, reward_models)])
        return tmp_path / name

    return train


@pytest.fixture
def judged(monkeypatch) -> list[Rollouts]:
    """The held-out rollouts, evaluation by evaluation."""
    kept, judge = [], PPOTrainer.judge

    def keep(self, responses):
        kept.append(Rollouts(responses.prompt_ids, responses.response_ids, responses.ended))
        return judge(self, responses)

    monkeypatch.setattr(PPOTrainer, "judge", keep)
    return kept


class ByHand:
    """Segments of a response by the entropies of a language model, and what reward models give at their ends."""

    def __init__(self, sft: Path, reward_models: list[Path], threshold: float):
        self.policy = AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval()
        load = AutoModelForSequenceClassification.from_pretrained
        self.reward_models = [load(path, dtype=torch.float32).eval() for path in reward_models]
        self.threshold = threshold

    def scores(self, prompt: list[int], response: list[int], ended: bool) -> list[list[float]]:
        """Of each reward model, the scores of the response's segments."""
        row, start = torch.tensor([prompt + response]), len(prompt)
        with torch.no_grad():
            logits = torch.log_softmax(self.policy(row).logits[0, start - 1 : -1], -1)
            entropy = -(logits.exp() * logits).sum(-1)
            (segments,) = loops.segment(entropy[None], torch.ones(1, len(response)), self.threshold, torch.tensor([ended]))
            each = [(m.model(row).last_hidden_state[0] @ m.score.weight[0])[start:].tolist() for m in self.reward_models]
        return [[scores[tokens[-1]] for tokens in segments] for scores in each]


def combined(each: list[list[float]], how: str, weight: float) -> list[float]:
    """The scores of each segment by both members, standardised and combined."""
    found = []
    for scores in zip(*each, strict=True):
        a, b = ((score - mean) / std for score, (mean, std) in zip(scores, MOMENTS, strict=True))
        # Of two numbers, the standard deviation is half their distance.
        found.append({"mean": (a + b) / 2, "min": min(a, b), "mean_std": (a + b) / 2 - weight * abs(a - b) / 2}[how])
    return found


@pytest.mark.parametrize(
    ("level", "how", "weight"), [("segment", "mean_std", 0.5), ("token", "min", 1.0), ("bandit", "mean", 1.0)]
)
def test_rewards_of_an_ensemble(level, how, weight, world, run, members, judged):
    options = {"eval_prompts": world.prompts, "samples_logged": 9, "ensemble": how, "ensemble_weight": weight}
    output = run(members, **LEVELS[level], **options)
    by_hand = ByHand(world.sft, members, THRESHOLDS[level])
    expected = [combined(by_hand.scores(*row), how, weight) for row in zip(*judged[0][:3], strict=True)]
    lines = [json.loads(line) for line in (output / "eval_samples.jsonl").read_text().splitlines()]
    found = [[segment["raw"] for segment in line["segments"]] for line in lines if line["step"] == 0]
    for want, got in zip(expected, found, strict=True):
        assert got == pytest.approx(want, abs=2e-3)
    # Members have mean 0 and standard deviation 1 each, which is what the bandit level takes the ensemble to have.
    normalised = [[segment["normalised"] for segment in line["segments"]] for line in lines if line["step"] == 0]
    assert normalised == found
    # Of one segment, or of several: all that the segments change is the score.
    changed = [math.fsum(segment["change"] for segment in line["segments"]) for line in lines if line["step"] == 0]
    assert changed == pytest.approx([math.fsum(scores) / len(scores) for scores in expected], abs=2e-3)
    metrics = read_metrics(output / "metrics.jsonl")[0]
    assert metrics["eval_reward"] == pytest.approx(math.fsum(sum(s) / len(s) for s in expected) / len(expected), abs=2e-3)


def test_a_model_of_sums_is_paid_by_what_it_changes_in_the_sum(world, run, judged, tmp_path):
    """Mean 0.5 and std 2 are of sums: the first segment is paid (r - 0.5) / 2, any other r / 2."""
    output = run([member(world, tmp_path / "rm", 4, 0.5, 2.0, agg_func="sum")], eval_prompts=world.prompts, samples_logged=9)
    by_hand, metrics = ByHand(world.sft, [tmp_path / "rm"], 5.3), read_metrics(output / "metrics.jsonl")[0]
    expected = [by_hand.scores(*row)[0] for row in zip(*judged[0][:3], strict=True)]
    samples = [line for line in read_metrics(output / "eval_samples.jsonl") if line["step"] == 0]
    for scores, sample in zip(expected, samples, strict=True):
        changes = [(score - 0.5 * (k == 0)) / 2 for k, score in enumerate(scores)]
        assert [segment["change"] for segment in sample["segments"]] == pytest.approx(changes, abs=2e-3)
    sums = [math.fsum(scores) for scores in expected]
    assert metrics["eval_reward"] == pytest.approx(math.fsum(sums) / len(sums), abs=2e-3)
    assert metrics["eval_normalised_reward"] == pytest.approx((math.fsum(sums) / len(sums) - 0.5) / 2, abs=2e-3)


@pytest.mark.parametrize(
    ("gold_threshold", "agg_func"),
    [(5.3, "sum"), *(pytest.param(threshold, "avg", marks=pytest.mark.long) for threshold in (5.3, 1000.0))],
)
def test_a_gold_model_judges_held_out_rollouts_at_its_own_level(gold_threshold, agg_func, world, ppo, judged, tmp_path):
    gold = member(world, tmp_path / "gold", 9, None, None, gold_threshold, agg_func)
    options = {**LEVELS["bandit"], "eval_prompts": world.prompts, "eval_every": 1, "iterations": 2, "samples_logged": 9}
    judges = {"gold_reward_model": gold, "true_reward": "tiny_models:letters"}
    output = ppo("with", **options, **judges, save_every=2)
    by_hand, rows = ByHand(world.sft, [gold], gold_threshold), read_metrics(output / "metrics.jsonl")
    samples = read_metrics(output / "eval_samples.jsonl")
    for step, rollouts in enumerate(judged):
        each = [by_hand.scores(*row)[0] for row in zip(*rollouts[:3], strict=True)]
        expected = [loops.aggregate(scores, agg_func) for scores in each]
        assert [s["gold_reward"] for s in samples if s["step"] == step] == pytest.approx(expected, abs=1e-3)
        assert rows[step]["eval_gold_reward"] == pytest.approx(sum(expected) / len(expected), abs=1e-3)
    assert len(judged) == 3 and all("eval_true_reward" in row and "gold_reward" not in row for row in rows)
    with Image.open(output / "over_optimisation.png") as plot:
        assert min(plot.size) > 200
    # A run that is resumed at its end draws the plot again.
    (output / "over_optimisation.png").unlink()
    ppo("with", **options, **judges, save_every=2, resume=True)
    assert (output / "over_optimisation.png").exists()
    # Who judges changes nothing that is learned.
    plain = ppo("without", **options)
    assert (plain / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()
    assert not (plain / "over_optimisation.png").exists()


def test_a_normaliser_is_fitted_to_the_ensemble(world, members, tmp_path, monkeypatch):
    from denserl.cli import fit_normalizer

    pairs = tiny_models.boat_pairs(6)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    seen, group = [], normalizer_fit.group_by_place
    monkeypatch.setattr(
        normalizer_fit, "group_by_place", lambda rewards, smallest: seen.extend(rewards) or group(rewards, smallest)
    )
    settings = {"data": tmp_path / "pairs.jsonl", "sft_model": world.sft}
    settings |= {
        "output_dir": tmp_path / "fit",
        "cache_dir": tmp_path / "cache",
        "ensemble": "mean_std",
        "ensemble_weight": 0.5,
    }
    argv = [*tiny_models.as_argv(settings), "--reward_model", *map(str, members)]
    record = tiny_models.run_command(fit_normalizer, "fit-normalizer", argv)
    (stored,) = json.loads((tmp_path / "fit/fits.json").read_text()).values()
    assert stored == record
    assert (record["reward_model"], record["ensemble"], record["ensemble_weight"]) == ([*map(str, members)], "mean_std", 0.5)
    tokenizer, by_hand, expected = load_tokenizer(str(world.sft)), ByHand(world.sft, members, 5.3), []
    for side in ("chosen", "rejected"):
        for row in pairs:
            messages = [{"role": "user", "content": row["prompt"]}]
            prompt = encode_prompt(tokenizer, messages)
            each = by_hand.scores(prompt, encode_response(tokenizer, messages, row[side], prompt), True)
            expected.append(combined(each, "mean_std", 0.5))
    for want, got in zip(expected, seen, strict=True):
        assert got.tolist() == pytest.approx(want, abs=2e-3)
    assert max(map(len, expected)) > 2
    scores = torch.tensor([math.fsum(scores) / len(scores) for scores in expected])
    assert record["score_mean"] == pytest.approx(scores.mean().item(), abs=2e-3)
    assert record["score_std"] == pytest.approx(scores.std(correction=0).item(), abs=2e-3)


def test_other_members_are_refused_when_a_run_is_resumed(world, run, members, tmp_path):
    options = {**LEVELS["bandit"], "iterations": 2, "save_every": 1}
    run(members, **options)
    moved = [Path(shutil.copytree(path, tmp_path / path.name)) for path in members]
    run(moved, **options, resume=True)
    with pytest.raises(UserError, match="weights of reward_model: "):
        run([moved[0], member(world, moved[1], 5, *MOMENTS[1])], **options, resume=True)
    with pytest.raises(UserError, match="weights of reward_model: "):
        run(members[::-1], **options, resume=True)
    with pytest.raises(UserError, match="ensemble: mean, now min"):
        run(members, **options, resume=True, ensemble="min")


def test_a_member_without_moments_and_one_of_another_tokenizer_are_named(world, run, members, tmp_path):
    bare = member(world, tmp_path / "bare", 3, None, None)
    with pytest.raises(UserError, match="bare: a member of an ensemble needs a mean and a std > 0"):
        run([members[0], bare], **LEVELS["bandit"])
    text = (bare / "tokenizer.json").read_text()
    (bare / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|eot|>"))
    for options in ({"reward_models": [members[0], bare]}, {"reward_models": members, "gold_reward_model": bare}):
        with pytest.raises(UserError, match="bare has another tokenizer than the policy"):
            run(**options, **LEVELS["bandit"], eval_prompts=world.prompts)


def test_an_ensemble_has_no_folder_of_its_own_and_names_its_fit(world, run, members):
    with pytest.raises(UserError, match="needs a fit, and only a single model's folder has one beside it") as error:
        run(members, assignment="even", fit=None)
    assert "--fit FILE" in error.value.fix and "phi3-instruct/preference700k_60000" in error.value.fix
    run(members, assignment="even", fit=world.fits)


def test_the_critic_starts_from_the_first_member(world, run, members):
    from safetensors.torch import load_file

    output = run(members, **LEVELS["bandit"], critic_init="reward_model", critic_lr=0.0)
    expected = load_file(members[0] / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(output / "critic/model.safetensors").items())


@pytest.mark.long
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_an_ensemble_and_a_gold_model_at_other_zero_stages(zero_stage, world, run, members):
    options = {**LEVELS["segment"], "eval_prompts": world.prompts, "gold_reward_model": members[0], "ensemble": "min"}
    outputs = [run(members, f"zero-{stage}", **options, zero_stage=stage) for stage in (0, zero_stage)]
    rows = [read_metrics(output / "metrics.jsonl") for output in outputs]
    for plain, sharded in zip(*rows, strict=True):
        names = [name for name in plain if name.startswith("eval_")]
        assert "eval_gold_reward" in names
        assert {name: sharded[name] for name in names} == pytest.approx({name: plain[name] for name in names}, abs=1e-3)
