"""The PPO command on a tiny model: one iteration by hand at every level, and what must hold of splits, resumes and options."""

import json
import math
import shutil
from pathlib import Path

import pytest
import reference_loops as loops
import tiny_models
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from denserl.cli import train_ppo
from denserl.cli.launch import launch
from denserl.cli.options import parse
from denserl.errors import UserError
from denserl.models import loading
from denserl.models.loading import load_policy
from denserl.models.measured import Measured
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rollouts.base import Rollouts
from denserl.rollouts.policy import PolicySampler
from denserl.trainer import ppo_models, ppo_trainer
from denserl.trainer.checkpoint import newest_checkpoint, read_state
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.reference import PolicyModule
from denserl.trainer.start import as_saved_now
from denserl.trainer.trackers import read_metrics

LEVELS = {
    "segment": {"reward_level": "segment"},
    "token": {"reward_level": "token", "entropy_threshold": None},
    "bandit": {"reward_level": "bandit", "entropy_threshold": None},
}
# The levels as they are by themselves, and as published.
WAYS = LEVELS | {f"{level}, published": LEVELS[level] | {"assignment": "even"} for level in ("segment", "token")}
WAYS["segment, split"] = LEVELS["segment"] | {"assignment": "difference"}


@pytest.fixture
def seen(monkeypatch) -> list[Rollouts]:
    """The rollouts that each update gets."""
    kept, update = [], PPOTrainer.update

    def keep(self, responses, experience):
        kept.append(Rollouts(responses.prompt_ids, responses.response_ids, responses.ended))
        return update(self, responses, experience)

    monkeypatch.setattr(PPOTrainer, "update", keep)
    return kept


def metrics(folder: Path) -> list[dict]:
    """The metrics of each iteration, without what a clock measured."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def actor_at(folder: Path, iteration: int, world) -> torch.nn.Module:
    """The policy as it was after an iteration, read from what DeepSpeed wrote."""
    path = folder / "checkpoints" / f"iteration-{iteration:06d}" / "actor" / "state" / "mp_rank_00_model_states.pt"
    state = torch.load(path, weights_only=False)["module"]
    model = AutoModelForCausalLM.from_pretrained(world.sft, dtype=torch.float32).eval()
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()} | tied(state))
    return model


def tied(state) -> dict:
    return {"lm_head.weight": state["model.model.embed_tokens.weight"]}


def same_weights(first: Path, second: Path, tolerance: float) -> None:
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(second)[name], tensor, rtol=0, atol=tolerance, msg=name)


class Judged:
    """One iteration, one unpadded row at a time, with stock models and the loops; losses can be differentiated."""

    def __init__(self, world, rollouts: Rollouts, way: str):
        self.policy = AutoModelForCausalLM.from_pretrained(world.sft, dtype=torch.float32).eval()
        self.reward_model = AutoModelForSequenceClassification.from_pretrained(world.reward_model, dtype=torch.float32).eval()
        self.critic = new_reward_model(str(world.sft), "fp32", seed=42)
        self.threshold = {"segment": world.threshold, "token": 0.0, "bandit": 1000.0}[WAYS[way]["reward_level"]]
        self.world, self.way = world, way
        width = max(map(len, rollouts.responses))
        shape = (len(rollouts.responses), width)
        self.logprobs, self.values, self.raw, self.normalised, self.segments, self.entropy = [], [], [], [], [], []
        rewards, values, self.mask = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
        for b, (prompt, response, ended) in enumerate(zip(*rollouts[:3], strict=True)):
            rewards[b, : len(response)] = torch.tensor(self.judge(prompt, response, ended))
            values[b, : len(response)] = self.values[b].detach()
            self.mask[b, : len(response)] = 1
        self.advantages, returns = loops.gae(rewards, values, self.mask, 1.0, 0.95)
        self.whitened = loops.whiten(torch.tensor(self.advantages), self.mask)
        self.returns, self.old_values = returns, values

    def judge(self, prompt, response, ended) -> list[float]:
        """The token rewards of a response. There is no KL penalty yet: the policy is its own reference."""
        row, start = torch.tensor([prompt + response]), len(prompt)
        logits = torch.log_softmax(self.policy(row).logits[0, start - 1 : -1], -1)
        self.logprobs.append(logits.gather(1, row[0, start:, None]).squeeze(1))
        entropy = -(logits.exp() * logits).sum(-1).detach()
        self.entropy.append(entropy.mean().item())
        values = self.critic.model(row).last_hidden_state[0] @ self.critic.score.weight[0]
        self.values.append(values[start - 1 : -1])
        scores = (self.reward_model.model(row).last_hidden_state[0] @ self.reward_model.score.weight[0])[start:].tolist()
        ones = torch.ones(1, len(response))
        (segments,) = loops.segment(entropy[None], ones, self.threshold, torch.tensor([ended]))
        raw = [scores[tokens[-1]] for tokens in segments]
        if "published" in self.way:
            normalised, kind = loops.normalise(raw, *self.world.lines), "even"
        else:
            normalised = [(score - self.world.mean) / self.world.std for score in raw]
            kind = {"bandit": "mean_last", "segment, split": "difference"}.get(self.way, "difference_end")
        self.raw.append(raw)
        self.normalised.append(normalised)
        self.segments.append(segments)
        (tokens,) = loops.assign([normalised], [segments], [len(response) - 1], len(response), kind)
        return [min(max(reward, -10.0), 10.0) for reward in tokens]

    def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Policy and value loss of the first step: ratios are one and no clip has moved, but gradients flow."""
        policy, value = [], []
        for logprobs, values, a, r in zip(self.logprobs, self.values, self.whitened, self.returns, strict=True):
            n = len(logprobs)
            policy.append((-(logprobs - logprobs.detach()).exp() * torch.tensor(a[:n])).mean())
            value.append((0.5 * (values - torch.tensor(r[:n])) ** 2).mean())
        return torch.stack(policy).mean(), torch.stack(value).mean()


def mean(numbers) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def norm(model) -> float:
    return math.sqrt(sum((p.grad.double() ** 2).sum().item() for p in model.parameters()))


@pytest.mark.parametrize("way", WAYS)
def test_one_iteration_by_hand(way, world, ppo, seen):
    output = ppo(**WAYS[way], critic_lr=0.0, samples_logged=8)
    (rollouts,), (row,) = seen, metrics(output)
    assert 1 < len(set(map(len, rollouts.responses))) and {True, False} == set(rollouts.ended)
    judged = Judged(world, rollouts, way)
    policy_loss, value_loss = judged.losses()
    policy_loss.backward()
    value_loss.backward()
    on = judged.mask.bool()
    returns = torch.tensor(judged.returns)
    unexplained = (returns - judged.old_values)[on].var(correction=0) / returns[on].var(correction=0)
    advantages = torch.tensor(judged.advantages)[on]
    expected = {
        "kl": 0.0,
        "reward": mean(map(mean, judged.raw)),
        "normalised_reward": mean(map(mean, judged.normalised)),
        "response_length": mean(map(len, rollouts.responses)),
        "segments": mean(map(len, judged.segments)),
        "segment_length": mean(mean(map(len, segments)) for segments in judged.segments),
        "entropy": mean(judged.entropy),
        "ended": mean(rollouts.ended),
        "return": mean(row[0] for row in judged.returns),
        "advantage_mean": advantages.mean().item(),
        "advantage_std": advantages.std(correction=0).item(),
        "explained_variance": 1 - unexplained.item(),
        "policy_loss": policy_loss.item(),
        "value_loss": value_loss.item(),
        "actor_grad_norm": norm(judged.policy),
        "critic_grad_norm": norm(judged.critic),
        "ratio": 1.0,
        "approx_kl": 0.0,
        "clip_fraction": 0.0,
        "value_clip_fraction": 0.0,
        "kl_coefficient": 0.01,
    }
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=2e-4, abs=2e-5)
    check_first_adam_step(judged.policy, weights(output), 1e-3)
    check_samples(output, judged, rollouts, world)


def check_first_adam_step(model, trained, lr: float) -> None:
    """Adam's first step moves each weight by lr g / (|g| + eps), g clipped at norm 1. Rounding decides where g is nothing."""
    scale = 1 / max(norm(model), 1.0)
    for name, parameter in model.named_parameters():
        g = parameter.grad * scale
        expected = parameter.detach() - lr * g / (g.abs() + 1e-8)
        clear = g.abs() > 1e-5
        assert clear.any(), name
        torch.testing.assert_close(trained[name][clear], expected[clear], rtol=0, atol=2e-5, msg=name)


def check_samples(output: Path, judged: Judged, rollouts: Rollouts, world) -> None:
    tokenizer = load_tokenizer(str(world.sft))
    lines = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == len(rollouts.responses)
    for b, line in enumerate(lines):
        response = rollouts.responses[b]
        assert line["ended"] == rollouts.ended[b] and line["step"] == 1
        assert [part["raw"] for part in line["segments"]] == pytest.approx(judged.raw[b], abs=1e-3)
        assert [part["normalised"] for part in line["segments"]] == pytest.approx(judged.normalised[b], abs=1e-3)
        means = [0.0, *(mean(judged.normalised[b][: k + 1]) for k in range(len(judged.normalised[b])))]
        changes = [now - before for before, now in zip(means, means[1:])]
        assert [part["change"] for part in line["segments"]] == pytest.approx(changes, abs=1e-3)
        content = len(response) - line["ended"]
        texts = [tokenizer.decode([response[t] for t in tokens if t < content]) for tokens in judged.segments[b]]
        assert [part["text"] for part in line["segments"]] == texts
        of_response = {"reward": mean(judged.raw[b]), "kl": 0.0, "length": len(response), "entropy": judged.entropy[b]}
        assert {key: line[key] for key in of_response} == pytest.approx(of_response, abs=1e-3)
        ends = line["tokens"]["end"]
        assert len(ends) == len(response) and ends == sorted(ends) and ends[-1] == len(line["response"])
        assert line["tokens"]["kl"] == [0.0] * len(response)
        assert mean(line["tokens"]["entropy"]) == pytest.approx(judged.entropy[b], abs=1e-3)
    same = [[other["prompt_id"] for other in lines if other["prompt"] == line["prompt"]] for line in lines]
    assert all(len(set(ids)) == 1 for ids in same) and len({ids[0] for ids in same}) == len({line["prompt"] for line in lines})


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_the_first_ratio_is_exactly_one(ppo, zero_stage):
    """One row at a time nothing is padded, so that the training forward repeats the scoring forward to the bit."""
    row = metrics(ppo(micro_batch_size=1, zero_stage=zero_stage))[0]
    assert (row["ratio"], row["approx_kl"], row["clip_fraction"]) == (1.0, 0.0, 0.0)
    # The reference is another copy of the weights, which may lie otherwise in memory.
    assert row["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_second_update_has_other_ratios(ppo):
    row = metrics(ppo(ppo_epochs=2))[0]
    assert row["approx_kl"] > 0


def token_logprobs(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    row = torch.tensor([prompt + response])
    with torch.no_grad():
        logits = torch.log_softmax(model(row).logits[0, len(prompt) - 1 : -1], -1)
    return logits.gather(1, row[0, len(prompt) :, None]).squeeze(1).double()


def test_approx_kl_is_of_the_policy_that_sampled_from_the_policy_as_it_is(ppo, world, seen):
    """k3 of the samples' own policy, exp(now - old) - 1 - (now - old): nothing in the first update, by hand in the second."""
    one = ppo("one", actor_lr=2e-2)
    row = metrics(ppo("two", actor_lr=2e-2, ppo_epochs=2))[0]
    start, now = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (world.sft, one))
    right, swapped = [], []
    for prompt, response, _ in zip(*seen[1][:3], strict=True):
        gap = token_logprobs(now, prompt, response) - token_logprobs(start, prompt, response)
        right.append((gap.exp() - 1 - gap).mean().item())
        swapped.append(((-gap).exp() - 1 + gap).mean().item())
    assert abs(mean(right) / mean(swapped) - 1) > 0.05
    assert row["approx_kl"] == pytest.approx(mean(right) / 2, rel=1e-3)


def test_policy_and_reference_are_read_at_one_temperature_and_text_at_1(ppo, world):
    row = metrics(ppo(temperature=0.7, ptx_data=world.text))[0]
    assert row["kl"] == pytest.approx(0.0, abs=1e-6) and row["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert row["ptx_loss"] == pytest.approx(metrics(ppo("plain", ptx_data=world.text))[0]["ptx_loss"], rel=1e-5)


def test_learning_rates_follow_a_cosine_to_a_tenth_of_the_peak(ppo):
    """Two steps an iteration, 8 in all, the first two of them of the warm-up; the policy's begin two later."""
    rows = metrics(ppo(iterations=4, train_batch_size=4, warmup_ratio=0.25, critic_warmup_iterations=1, critic_lr=2e-3))

    def rate(peak: float, step: int, steps: int) -> float:
        warm = round(0.25 * steps)
        if step < warm:
            return peak * step / warm
        return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2)

    assert [row["critic_lr"] for row in rows] == pytest.approx([rate(2e-3, step, 8) for step in (0, 2, 4, 6)])
    assert [row["actor_lr"] for row in rows] == pytest.approx([rate(1e-3, step, 6) for step in (0, 0, 2, 4)])


# Means of sequences over micro-batches and ranks, with all else switched on: tests/parity.
@pytest.mark.parametrize("average", [pytest.param("sequence", marks=pytest.mark.long), "token_mean"])
def test_splitting_the_batch_changes_nothing_but_rounding(ppo, average):
    settings = {"train_batch_size": 8, "average": average, "iterations": 1, "ppo_epochs": 3, "actor_lr": 1e-4}
    whole = ppo("8", micro_batch_size=8, **settings)
    for name, options in {
        "1": {"micro_batch_size": 1},
        "zero": {"micro_batch_size": 4, "zero_stage": 2},
        "checkpointing": {"micro_batch_size": 4, "gradient_checkpointing": True},
    }.items():
        part = ppo(name, **settings, **options)
        # Three steps of 1e-4. Where a gradient is nothing but rounding, Adam moves a weight by any part of that.
        same_weights(whole, part, 2e-5)
        assert metrics(part)[0] == pytest.approx(metrics(whole)[0], rel=1e-3, abs=1e-5)


FULL = {
    "iterations": 4,
    "train_batch_size": 4,
    "ppo_epochs": 2,
    "samples_per_prompt": 2,
    "save_every": 2,
    "kl_target": 0.5,
    "kl_horizon": 50,
    "ema_decay": 0.9,
    "eval_every": 1,
}


def go_on_from_the_middle(ppo, output: Path, **options) -> Path:
    """Set a finished run back to what an interruption between its two checkpoints would have left, and resume it."""
    kept = output.with_name("uninterrupted")
    shutil.copytree(output, kept)
    shutil.rmtree(output / "checkpoints" / "iteration-000004")
    for path in (output / "model.safetensors", output / "critic", output / "ema"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    ppo(output.name, resume=True, **options)
    return kept


def optimizer_states(folder: Path) -> list[torch.Tensor]:
    """Every tensor that DeepSpeed keeps of actor and critic at the last iteration, Adam's moments among them."""
    paths = sorted((folder / "checkpoints" / "iteration-000004").rglob("*.pt"))
    assert paths
    return [tensor for path in paths for tensor in tensors_in(torch.load(path, weights_only=False))]


def tensors_in(x) -> list[torch.Tensor]:
    if torch.is_tensor(x):
        return [x]
    children = x.values() if isinstance(x, dict) else x if isinstance(x, list | tuple) else []
    return [tensor for child in children for tensor in tensors_in(child)]


def same_bits(first: Path, second: Path) -> None:
    for part in ("", "critic", "ema"):
        if (first / part).is_dir():
            for name, tensor in weights(first / part).items():
                assert torch.equal(weights(second / part)[name], tensor), (part, name)
    pairs = list(zip(optimizer_states(first), optimizer_states(second), strict=True))
    # Of each engine, one at least, there are weights, two moments and a count.
    assert len(pairs) >= 4 and all(torch.equal(a, b) for a, b in pairs)
    states = [json.loads((folder / "checkpoints/iteration-000004/state.json").read_text()) for folder in (first, second)]
    for state in states:
        del state["files"]  # sizes of files that hold timings
    assert states[0] == states[1]
    assert metrics(first) == metrics(second)
    for samples in ("samples.jsonl", "eval_samples.jsonl"):
        assert read_metrics(first / samples) == read_metrics(second / samples)


# Without ZeRO, in make test: the killed run of tests/faults.
@pytest.mark.parametrize("zero_stage", [pytest.param(0, marks=pytest.mark.long), 2])
def test_a_resumed_run_ends_with_the_same_bits(ppo, world, zero_stage, tmp_path):
    """It goes on in the text, too, of which there is more than the steps before the interruption take."""
    lines = [{"text": f"{tiny_models.TEXTS[i % 4]} {i}"} for i in range(23)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = FULL | {"zero_stage": zero_stage, "eval_prompts": world.prompts, "normalizer": "running"}
    options |= {"lr_schedule": "inverse_sqrt", "warmup_ratio": 0.5, "critic_warmup_iterations": 1, "entropy_coef": 0.1}
    options |= {"ptx_data": tmp_path / "text.jsonl"}
    output = ppo(**options)
    same_bits(go_on_from_the_middle(ppo, output, **options), output)


LINES_NORMALIZER = "LocationNormalizer(w_mu=0.3, w_sigma=-0.1, b_mu=0.2, b_sigma=1.5)"
SCALAR_NORMALIZER = "ScalarNormalizer(mean=0.1, std=1.2)"


@pytest.mark.parametrize(
    "options, threshold, assignment, normalizer",
    [
        ({"assignment": "segment_normalization"}, 5.3, "segment_normalization", LINES_NORMALIZER),
        (LEVELS["bandit"], 1000.0, "mean_last", SCALAR_NORMALIZER),
    ],
)
def test_what_a_checkpoint_remembers_of_rewards(ppo, options, threshold, assignment, normalizer):
    """The same as of version 0.1, whose checkpoints can so be resumed: what they say is written out here."""
    run = ppo(iterations=1, save_every=1, **options)
    settings = read_state(newest_checkpoint(run / "checkpoints"))["settings"]
    way = f"assignment='{assignment}', normalizer={normalizer}"
    dense = f"DenseReward({way}, agg_func='avg', tau=1.0, length_norm=False)"
    source = {"threshold": threshold, "segmenter": "peak", "rewards": dense, "weight": 1.0}
    source = {f"{what} of reward_model": value for what, value in source.items()}
    assert {name: settings[name] for name in source} == source
    rest = "tau=1.0, length_norm=False, penalise_unfinished=False, penalise_longer_than=None, penalty=0.05)"
    old = {"rewards": f"DenseReward(threshold={threshold}, {way}, {rest}", "agg_func": "avg", "seed": 42}
    old |= {"model_type": "tiny", "fit_tag": "tag", "params": "param.json", "segment_method": "peak"}
    assert as_saved_now(old) == source | {"agg_func": "avg", "seed": 42}
    assert as_saved_now(settings) == settings


def test_text_and_fit_are_compared_by_content(ppo, world, tmp_path):
    options = {"iterations": 1, "save_every": 1, "assignment": "even"}
    ppo(**options, ptx_data=world.text)
    for name, path in (("text.jsonl", world.text), ("fits.json", world.fits)):
        shutil.copy(path, tmp_path / name)
    ppo(resume=True, **options, ptx_data=tmp_path / "text.jsonl", fit=tmp_path / "fits.json")
    (tmp_path / "text.jsonl").write_text(world.text.read_text().replace("kettle", "bridge"))
    with pytest.raises(UserError, match=r"\(content of ptx: \w+, now \w+\)"):
        ppo(resume=True, **options, ptx_data=tmp_path / "text.jsonl")
    with pytest.raises(UserError, match=r"\(content of ptx: \w+, now None\)"):
        ppo(resume=True, **options)
    (tmp_path / "fits.json").write_text(world.fits.read_text().replace("0.3", "0.4"))
    with pytest.raises(UserError, match=r"\(rewards of reward_model: .* now .*\)"):
        ppo(resume=True, **options, ptx_data=world.text, fit=tmp_path / "fits.json")


def segment_counts(model, rollouts: Rollouts, threshold: float) -> list[int]:
    """Segments of each response when this model's entropies cut it."""
    counts = []
    for prompt, response, ended in zip(*rollouts[:3], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[:, len(prompt) - 1 : -1]
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        (segments,) = loops.segment(entropy, torch.ones(1, len(response)), threshold, torch.tensor([ended]))
        counts.append(len(segments))
    return counts


def test_kl_is_of_the_policy_that_sampled_and_segments_are_of_the_start(ppo, world, seen):
    output = ppo(iterations=2, save_every=1, actor_lr=2e-2)
    start = AutoModelForCausalLM.from_pretrained(world.sft, dtype=torch.float32).eval()
    now, rollouts = actor_at(output, 1, world), seen[1]
    per_response = []
    for prompt, response in zip(rollouts.prompts, rollouts.responses, strict=True):
        row, total = torch.tensor([prompt + response]), 0.0
        for t, token in enumerate(response, start=len(prompt)):
            with torch.no_grad():
                logprobs = [torch.log_softmax(model(row[:, :t]).logits[0, -1], -1)[token].item() for model in (now, start)]
            total += logprobs[0] - logprobs[1]
        per_response.append(total)
    assert abs(mean(per_response)) > 1e-2
    assert metrics(output)[1]["kl"] == pytest.approx(mean(per_response), abs=1e-4)
    counts = [mean(segment_counts(model, rollouts, world.threshold)) for model in (start, now)]
    assert counts[0] != counts[1]
    assert metrics(output)[1]["segments"] == pytest.approx(counts[0])


def test_the_moving_average_by_hand(ppo, world):
    """Decay 0.75 over two steps: 0.75 (0.75 w0 + 0.25 w1) + 0.25 w2."""
    output = ppo(iterations=2, save_every=1, ema_decay=0.75)
    start, first, last = weights(world.sft), actor_at(output, 1, world).state_dict(), weights(output)
    for name, tensor in weights(output / "ema").items():
        assert not torch.equal(start[name], last[name])
        torch.testing.assert_close(tensor, 0.5625 * start[name] + 0.1875 * first[name] + 0.25 * last[name], msg=name)
    load_policy(str(output / "ema"), "fp32")
    what = {".": "trained by PPO against", "critic": "It is no reward model.", "ema": "The moving average of a policy"}
    assert [part for part, words in what.items() if words not in (output / part / "README.md").read_text()] == []


def test_the_average_does_not_change_the_policy(ppo):
    same_weights(ppo("without", iterations=2), ppo("with", iterations=2, ema_decay=0.5), 0.0)


def test_the_critic_begins_alone_and_the_policy_starts_as_it_was(ppo, world):
    """Two steps an iteration. Nothing of the policy moves in the first two iterations, nor the weight of the KL."""
    settings = {"critic_warmup_iterations": 2, "kl_target": 1e-9, "kl_horizon": 10, "ema_decay": 0.5, "ptx_data": world.text}
    # Saved by the clock, whose minutes are always over.
    saves = {"save_every": 0, "save_minutes": 1e-9, "keep_checkpoints": 9}
    output = ppo(iterations=4, train_batch_size=4, critic_lr=1e-2, **saves, **settings)
    start, rows = weights(world.sft), metrics(output)
    for iteration in (1, 2):
        kept = actor_at(output, iteration, world).state_dict()
        assert all(torch.equal(kept[name], tensor) for name, tensor in start.items())
    assert not any(torch.equal(weights(output)[name], tensor) for name, tensor in start.items())
    assert ["policy_loss" in row for row in rows] == [False, False, True, True]
    assert [row["kl"] for row in rows[:3]] == [0.0] * 3 and rows[3]["kl"] != 0
    # Far from the target, so that the weight changes by a fifth once it is steered.
    betas = [row["kl_coefficient"] for row in rows]
    assert betas[:3] == [0.01] * 3 and betas[3] == pytest.approx(0.01 * (1 - 0.2 * 8 / 10))
    assert all(row["skipped_steps"] == 0 for row in rows)


def test_the_critic_learns_in_its_warm_up(ppo):
    """Rewards are far above its first values, which are near 0."""
    settings = {**LEVELS["bandit"], "reward_mean": -20.0, "ppo_epochs": 4, "value_clip": 100.0, "critic_lr": 1e-2}
    first, second, third, _ = metrics(ppo(iterations=4, critic_warmup_iterations=3, **settings, max_new_tokens=4))
    assert third["value_loss"] < second["value_loss"] < first["value_loss"] and third["value_loss"] < 0.7 * first["value_loss"]


def test_a_run_that_is_all_warm_up_is_refused(ppo):
    with pytest.raises(UserError, match="--critic_warmup_iterations 2 of 2: the policy would not be trained"):
        ppo(iterations=2, critic_warmup_iterations=2)


def test_the_coefficient_is_steered_towards_the_target(ppo):
    """Section 6: factor 1 + clip(kl / target - 1, +-0.2) n / horizon after each rollout batch."""
    rows = metrics(ppo(iterations=4, kl_target=0.05, kl_horizon=20, kl_coefficient=0.5, actor_lr=3e-3))
    beta = 0.5
    for row in rows:
        assert row["kl_coefficient"] == pytest.approx(beta, rel=1e-6)
        beta *= 1 + min(max(row["kl"] / 0.05 - 1, -0.2), 0.2) * 8 / 20
    assert len({row["kl_coefficient"] for row in rows}) == 4
    assert {row["kl_coefficient"] for row in metrics(ppo("constant", iterations=2))} == {0.01}


def test_the_pretraining_loss_is_that_of_the_text_and_changes_the_policy(ppo, world):
    plain, with_text = ppo("plain"), ppo("text", ptx_data=world.text, ptx_coef=0.5)
    tokenizer, model = load_tokenizer(str(world.sft)), load_policy(str(world.sft), "fp32").eval()
    ids = torch.tensor([tokenizer(json.loads(world.text.read_text())["text"]).input_ids + [tokenizer.eos_token_id]])
    found, without = metrics(with_text)[0], metrics(plain)[0]
    losses = [model(row, labels=row).loss.item() for row in (ids, ids[:, :-1])]
    # Whether an end token closes a text is the tokeniser's own affair.
    assert min(abs(found["ptx_loss"] - loss) for loss in losses) < 1e-4
    assert "ptx_loss" not in without
    assert found["policy_loss"] == pytest.approx(without["policy_loss"], abs=1e-6)
    assert abs(found["actor_grad_norm"] - without["actor_grad_norm"]) > 1e-2
    with pytest.raises(AssertionError):
        same_weights(plain, with_text, 1e-5)


def test_adapters_alone_are_trained_and_merged(ppo, world):
    pytest.importorskip("peft")
    output = ppo(iterations=3, lora_rank=2, lora_alpha=8, ema_decay=0.5)
    load_policy(str(output), "fp32")
    load_policy(str(output / "ema"), "fp32")
    before, after = weights(world.sft), weights(output)
    assert set(before) == set(after)
    changed = set()
    for name, weight in before.items():
        change = (after[name] - weight).double()
        if "proj" in name:
            assert torch.linalg.matrix_rank(change, atol=1e-6) <= 2
            changed |= {name} if change.abs().max() > 1e-5 else set()
        else:
            assert not change.any(), name
    assert len(changed) == sum("proj" in name for name in before)


@pytest.mark.parametrize("settings", [{}, {"zero_stage": 3}, {"dtype": "bf16"}], ids=str)
def test_with_adapters_the_policy_without_them_is_the_reference(settings, ppo, world, monkeypatch):
    """To the bit what a separately loaded one says, after updates as well, and no second model is loaded for it."""
    pytest.importorskip("peft")
    score, loads, seen = PPOTrainer.score, [], []

    def load(path, dtype, **kw):
        loads.append(path)
        return load_policy(path, dtype, **kw)

    def compared(self, responses, **kw):
        apart = load_policy(str(world.sft), settings.get("dtype", "fp32")).eval()
        for first in range(0, len(responses.texts), 4):
            batch = self._batch(responses.rows(list(range(first, first + 4))))
            with torch.no_grad():
                own = ppo_models.logprob_entropy(self.models.reference, batch, 0.8)
                other = PolicyModule(apart)(*batch[:3], batch.response_mask.shape[1], 0.8, batch.shared)
                policy = ppo_models.logprob_entropy(self.models.actor, batch, 0.8)
            assert any(map(torch.equal, own, policy)) == (self.iteration == 0)
            seen.append([(a - b).abs().max().item() for a, b in zip(own, other, strict=True)])
        return score(self, responses, **kw)

    monkeypatch.setattr(ppo_models, "load_policy", load)
    monkeypatch.setattr(PPOTrainer, "score", compared)
    output = ppo(iterations=2, lora_rank=2, lora_alpha=16, actor_lr=1e-2, **settings)
    # Under ZeRO-3 the head is called, elsewhere its weight is read a block at a time.
    largest = max(difference for pair in seen for difference in pair)
    assert len(seen) == 4 and largest <= (1e-5 if settings.get("zero_stage") == 3 else 0)
    assert loads == [str(world.sft)] and metrics(output)[0]["kl"] == 0 < abs(metrics(output)[1]["kl"])


@pytest.mark.parametrize("critic_init", ["sft", "reward_model"])
def test_where_the_critic_starts(ppo, world, critic_init):
    """At learning rate 0 it stays there."""
    output = ppo(critic_init=critic_init, critic_lr=0.0)
    fresh = new_reward_model(str(world.sft), "fp32", seed=42)
    expected = {"sft": fresh, "reward_model": load_reward_model(str(world.reward_model), "fp32")}[critic_init].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(output / "critic").items())


def test_held_out_prompts_are_each_rolled_out_once(ppo, world):
    options = {"eval_prompts": world.prompts, "eval_every": 2, "samples_logged": 9}
    output = ppo(iterations=3, true_reward="tiny_models:letters_as_array", **options)
    rows, prompts = read_metrics(output / "metrics.jsonl"), [json.loads(line)["prompt"] for line in world.prompts.open()]
    assert [row["step"] for row in rows if "eval_reward" in row] == [0, 2, 3]
    samples = [json.loads(line) for line in (output / "eval_samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3 * len(prompts)
    for row in rows:
        own = [sample for sample in samples if sample["step"] == row["step"]]
        if own:
            expected = [len(s["response"]) + 0.1 * len(p) for s, p in zip(own, prompts, strict=True)]
            assert [s["true_reward"] for s in own] == pytest.approx(expected)
            assert row["eval_true_reward"] == pytest.approx(mean(expected))
            raw = [mean(part["raw"] for part in s["segments"]) for s in own]
            assert row["eval_reward"] == pytest.approx(mean(raw), abs=1e-3)
            assert row["eval_ended"] == pytest.approx(mean(s["ended"] for s in own))


def test_the_critic_reads_what_is_learned_from_and_no_held_out_responses(ppo, world, monkeypatch):
    real, asked = ppo_trainer.state_values, []

    def values(critic, batch):
        asked.append(len(batch.input_ids))
        return real(critic, batch)

    monkeypatch.setattr(ppo_trainer, "state_values", values)
    ppo(eval_prompts=world.prompts, iterations=2, rollout_batch_size=8)
    assert sum(asked) == 2 * 8


def test_samples_of_one_prompt_stand_together(ppo, seen):
    ppo(samples_per_prompt=4)
    prompts = seen[0].prompts
    assert prompts[:4] == [prompts[0]] * 4 and prompts[4:] == [prompts[4]] * 4 and prompts[0] != prompts[4]
    assert len(set(map(tuple, seen[0].responses))) > 4


ONLY_THE_END = "only the end", lambda prompts, stop: Rollouts(prompts, [[stop]] * len(prompts), [True] * len(prompts))
NOTHING = "nothing", lambda prompts, stop: Rollouts(prompts, [[]] * len(prompts), [False] * len(prompts))
ONE_EMPTY = (
    "one empty",
    lambda prompts, stop: Rollouts(prompts, [[]] + [[9, stop]] * (len(prompts) - 1), [False] + [True] * (len(prompts) - 1)),
)


# In make test, every case at the level of segments and every level in one case.
DEGENERATE = [(level, answers) for answers in (ONLY_THE_END, NOTHING, ONE_EMPTY) for level in LEVELS]
SHORT = [("segment", ONLY_THE_END), ("segment", NOTHING), ("segment", ONE_EMPTY), ("token", ONE_EMPTY), ("bandit", NOTHING)]


@pytest.mark.parametrize(
    ("level", "answers"),
    [pytest.param(*case, marks=() if case in SHORT else pytest.mark.long) for case in DEGENERATE],
    ids=[f"{level}-{answers[0]}" for level, answers in DEGENERATE],
)
def test_degenerate_responses_give_numbers(level, answers, ppo, monkeypatch):
    monkeypatch.setattr(PolicySampler, "__call__", lambda self, prompts, streams: answers[1](prompts, self.stop_ids[0]))
    # Two optimiser steps an iteration: ratios are not one in the second, and there is a KL in the second iteration.
    output = ppo(**LEVELS[level], iterations=2, train_batch_size=4)
    assert all(None not in row.values() for row in metrics(output)) and len(metrics(output)) == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights(output).values())
    assert all(torch.isfinite(tensor).all() for tensor in weights(output / "critic").values())


@pytest.mark.parametrize("level", LEVELS)
def test_a_single_response_gives_numbers(level, ppo):
    output = ppo(**LEVELS[level], iterations=2, rollout_batch_size=1, train_batch_size=1, micro_batch_size=1)
    assert len(metrics(output)) == 2
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for row in metrics(output) for value in row.values())
    for folder in (output, output / "critic"):
        assert all(torch.isfinite(tensor).all() for tensor in weights(folder).values())


@pytest.mark.parametrize("level", LEVELS)
def test_rewards_that_are_all_the_same_give_numbers(level, ppo, world, tmp_path):
    model = load_reward_model(str(world.reward_model), "fp32")
    with torch.no_grad():
        model.score.weight.zero_()
    model.save_pretrained(tmp_path / "flat")
    load_tokenizer(str(world.sft)).save_pretrained(tmp_path / "flat")
    output = ppo(**LEVELS[level], reward_model=tmp_path / "flat", normalizer="none", iterations=2, critic_lr=0.0)
    assert [row["reward"] for row in metrics(output)] == [0.0, 0.0]
    assert all(None not in row.values() for row in metrics(output))
    assert all(torch.isfinite(tensor).all() for tensor in weights(output).values())


@pytest.fixture
def broken_reward_model(world, tmp_path, monkeypatch) -> Path:
    """A reward model whose every score is not a number, which loading would refuse."""
    monkeypatch.setattr(loading, "measure", lambda model, path: Measured())
    model = load_reward_model(str(world.reward_model), "fp32")
    with torch.no_grad():
        model.score.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    load_tokenizer(str(world.sft)).save_pretrained(tmp_path / "broken")
    return tmp_path / "broken"


@pytest.mark.parametrize(
    "settings",
    [{"zero_stage": 0}, pytest.param({"zero_stage": 2}, marks=pytest.mark.long), {"zero_stage": 3}, {"dtype": "bf16"}],
    ids=str,
)
def test_updates_that_are_not_finite_are_skipped_and_stop_the_run(settings, ppo, world, broken_reward_model, tmp_path):
    options = {"reward_model": broken_reward_model, "ema_decay": 0.5, "iterations": 9, **settings}
    with pytest.raises(UserError, match="4 updates in a row were not finite") as error:
        ppo(train_batch_size=4, max_skipped_steps=3, **options)
    output = tmp_path / "run"
    assert [row["skipped_steps"] for row in metrics(output)] == [2, 2]
    saved = newest_checkpoint(output / "checkpoints")
    assert read_state(saved)["iteration"] == 2 and saved.name in str(error.value)
    # Saved in order of iteration and step; every response of both iterations is there once.
    names = [f"iteration-{i:06d}-step-{s:06d}-rank-0.jsonl" for i, s in ((1, 1), (1, 2), (2, 3), (2, 4))]
    assert sorted(path.name for path in (output / "skipped").iterdir()) == names
    rows = [json.loads(line) for name in names for line in (output / "skipped" / name).read_text().splitlines()]
    assert len(rows) == 16 and all(set(row["advantages"]) == {"nan"} for row in rows)
    assert all(len(row["logprobs"]) == len(row["response_ids"]) > 0 for row in rows)
    if settings == {"zero_stage": 0}:
        saved_weights = actor_at(output, 2, world).state_dict()
        assert all(torch.equal(tensor, saved_weights[name]) for name, tensor in weights(world.sft).items())
        average = load_file(saved / "tensors.safetensors")
        parameters = enumerate(actor_at(output, 2, world).parameters())
        assert all(torch.equal(average[f"ema.{i}"], parameter) for i, parameter in parameters)


@pytest.mark.parametrize("zero_stage", [0, pytest.param(1, marks=pytest.mark.long), 2, 3])
def test_a_step_that_is_skipped_changes_nothing_and_the_next_goes_on(zero_stage, ppo, monkeypatch):
    real, seen = PPOTrainer._optimiser_step, []

    def step(self, rollouts, experience, rows, log):
        if self.steps == 1:
            spoiled = experience.advantages.clone()
            spoiled[rows[0], 0] = torch.inf
            experience = experience._replace(advantages=spoiled)
        before = state_of(self.models.actor)
        real(self, rollouts, experience, rows, log)
        seen.append(all(torch.equal(a, b) for a, b in zip(before, state_of(self.models.actor), strict=True)))

    monkeypatch.setattr(PPOTrainer, "_optimiser_step", step)
    output = ppo(iterations=2, train_batch_size=4, max_skipped_steps=1000, zero_stage=zero_stage)
    assert seen == [False, True, False, False]
    assert [row["skipped_steps"] for row in metrics(output)] == [1, 0]
    assert all(torch.isfinite(tensor).all() for tensor in weights(output).values())


@pytest.mark.parametrize("spoiled, applied", [("returns", True), ("advantages", False)], ids=["critic", "actor"])
def test_the_average_follows_the_policy_alone_where_one_of_the_two_is_skipped(spoiled, applied, ppo, world, monkeypatch):
    real, after = PPOTrainer._optimiser_step, []

    def step(self, rollouts, experience, rows, log):
        if self.steps == 1:
            values = getattr(experience, spoiled).clone()
            values[rows[0], 0] = torch.inf
            experience = experience._replace(**{spoiled: values})
        real(self, rollouts, experience, rows, log)
        changed = {"actor": self.models.actor, "critic": self.models.critic}
        after.append({name: [p.detach().clone() for p in engine.module.parameters()] for name, engine in changed.items()})

    monkeypatch.setattr(PPOTrainer, "_optimiser_step", step)
    output = ppo(iterations=2, train_batch_size=4, max_skipped_steps=2, ema_decay=0.5, save_every=2, zero_stage=0)
    assert [row["skipped_steps"] for row in metrics(output)] == [1, 0]
    still = [all(map(torch.equal, after[0][name], after[1][name])) for name in ("actor", "critic")]
    assert still == [not applied, applied]
    average = load_file(newest_checkpoint(output / "checkpoints") / "tensors.safetensors")
    start = list(load_policy(str(world.sft), "fp32").parameters())
    for i, first in enumerate(start):
        expected = first.detach()
        for number, state in enumerate(after):
            if number != 1 or applied:
                expected = 0.5 * expected + 0.5 * state["actor"][i]
        torch.testing.assert_close(average[f"ema.{i}"], expected)


def state_of(engine) -> list[torch.Tensor]:
    """Copies of an engine's weights and of what its optimiser keeps, but for gradients."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moments = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    weights = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
    return [tensor.detach().clone() for tensor in [*weights, *moments]] or pytest.fail("nothing to compare")


@pytest.mark.parametrize("reward", [torch.nan, torch.inf, -torch.inf])
def test_one_reward_that_is_not_finite_costs_its_own_step_alone(reward, ppo, monkeypatch):
    """Both networks skip the step of that response, and the other responses know nothing of it."""
    make, step, changed, spoiled = ppo_trainer.make_experience, PPOTrainer._optimiser_step, [], []

    def experience(scored, values, **kw):
        tokens = scored.rewards.clone()
        tokens[5, 0] = reward
        plain, _ = make(scored, values, **kw)
        found, log = make(scored._replace(rewards=tokens), values, **kw)
        sound = torch.arange(len(tokens)) != 5
        assert found.advantages[5, 0].isnan() and found.returns[5, 0].isnan()
        assert torch.equal(found.returns[sound], plain.returns[sound]) and found.advantages[sound].isfinite().all()
        assert found.advantages[sound][found.mask[sound]].mean().abs() < 1e-5
        assert all(value.isfinite() for value in log.values())
        return found, log

    def optimiser_step(self, rollouts, experience, rows, log):
        engines = (self.models.actor, self.models.critic)
        before = [state_of(engine) for engine in engines]
        step(self, rollouts, experience, rows, log)
        spoiled.append(5 in rows)
        after = [state_of(engine) for engine in engines]
        changed.append([not all(map(torch.equal, *pair)) for pair in zip(before, after, strict=True)])

    monkeypatch.setattr(ppo_trainer, "make_experience", experience)
    monkeypatch.setattr(PPOTrainer, "_optimiser_step", optimiser_step)
    ppo(train_batch_size=2, micro_batch_size=1)
    assert sorted(spoiled) == [False, False, False, True]
    # Adam has no moments before its first step; what counts is that weights stay.
    assert changed == [[not bad, not bad] for bad in spoiled]


def test_a_steps_micro_batches_are_of_like_length(ppo, monkeypatch):
    """And have all its rows between them."""
    real, steps = PPOTrainer._part, []

    def part(self, responses, experience, rows, text):
        if not steps or len(steps[-1]) == 4:
            steps.append({})
        steps[-1] |= {row: len(responses.prompt_ids[row]) + len(responses.response_ids[row]) for row in rows}
        return real(self, responses, experience, rows, text)

    monkeypatch.setattr(PPOTrainer, "_part", part)
    ppo(rollout_batch_size=8, train_batch_size=4, micro_batch_size=1, iterations=1)
    assert all([*step.values()] == sorted(step.values(), reverse=True) for step in steps)
    assert any(len({*step.values()}) > 1 for step in steps)
    assert {row for step in steps[:2] for row in step} == {*range(8)}


def test_out_of_memory_while_scoring_halves_the_micro_batch(ppo, monkeypatch):
    plain, sizes, real = ppo("plain"), [], PPOTrainer._score_rows

    def score(self, responses, critic):
        sizes.append(len(responses.texts))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, responses, critic)

    monkeypatch.setattr(PPOTrainer, "_score_rows", score)
    halved = ppo("halved")
    assert sizes == [4, 2, 1, 1, 2, 1, 1] * 2
    assert metrics(halved)[0] == pytest.approx(metrics(plain)[0], rel=1e-4, abs=1e-6)
    same_weights(plain, halved, 1e-5)


def test_a_shortage_on_one_rank_is_said_by_that_rank(world, tmp_path, monkeypatch, capsys):
    def run(options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit) as stop:
        launch(train_ppo.Options, "train-ppo", run, world.argv(tmp_path / "out"))
    assert stop.value.code == 2 and "denserl train-ppo (rank 3): out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate 2 GiB.", "DefaultCPUAllocator: can't allocate memory"]
)
def test_out_of_memory_while_training_names_memory_and_flags(words, world, tmp_path, monkeypatch, capsys):
    def step(self, *args):
        raise torch.OutOfMemoryError(words) if "CUDA" in words else RuntimeError(words)

    monkeypatch.setattr(PPOTrainer, "_optimiser_step", step)
    with pytest.raises(SystemExit) as stop:
        train_ppo.main(world.argv(tmp_path / "out", dtype="fp32"))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    assert "out of memory: this process held at most" in said and "GiB" in said
    assert "--micro_batch_size 2" in said and "--gradient_checkpointing" in said and "--dtype bf16" in said
    assert "--offload_optimizer" not in said  # it would be refused at ZeRO stage 0


@pytest.mark.parametrize("level, clip", [("segment", 0.25), ("token", 0.25), ("bandit", 0.2)])
def test_the_clip_of_values_goes_with_the_level(level, clip, world, tmp_path):
    def value_clip(name, **options):
        argv = world.argv(tmp_path / name, **LEVELS[level], **options)
        return PPOTrainer.from_config(parse(train_ppo.Options, "train-ppo", argv)).value_clip

    assert value_clip("own") == clip and value_clip("given", value_clip=0.4) == 0.4


MISTAKES = [
    ({"train_batch_size": 3}, "--rollout_batch_size 8 is no multiple of --train_batch_size 3", "use a multiple of 3"),
    ({"micro_batch_size": 3}, "--train_batch_size 8 is no multiple of --micro_batch_size 3", "use a multiple of 3"),
    ({"resume": True}, "holds no checkpoint", "leave --resume out"),
    (
        {"assignment": "even", "entropy_threshold": 5.2},
        "fits.json has no fit for peak/avg/5.2; it has: peak/avg/0, peak/avg/5.3",
        "denserl fit-normalizer",
    ),
    ({"assignment": "even", "fit": None}, "the location normaliser needs a fit, and", "denserl fit-normalizer --reward_model"),
    ({"length_norm": True}, "token level only", "--reward_level token"),
    (LEVELS["token"] | {"length_norm": True}, "--length_norm with --assignment difference_end", "--assignment even"),
    ({"agg_func": "sum"}, "the stored mean and std are of scores by the aggregation avg", "--reward_mean"),
    (
        {"assignment": "mean_last", "agg_func": "sum", "reward_mean": 0, "reward_std": 1},
        "--assignment mean_last with the scalar normaliser: its mean and std are of whole responses' scores",
        "--assignment difference",
    ),
    ({"entropy_threshold": -1}, "--entropy_threshold is -1.0; it must be at least 0", "leave --entropy_threshold out"),
    ({"warmup_ratio": 1}, "--warmup_ratio is 1.0; it must be at least 0 and below 1", "leave --warmup_ratio out"),
    ({"iterations": None}, "fill no rollout batch of 8", "--episodes"),
    ({"true_reward": "no_such_module:f", "eval_prompts": "not-read"}, "no_such_module", "module:name"),
]


@pytest.mark.parametrize("options, found, fix", MISTAKES)
def test_mistakes_are_named_with_what_mends_them(options, found, fix, ppo):
    with pytest.raises(UserError) as error:
        ppo(**options)
    assert found in error.value.found and fix in error.value.fix


def test_a_reward_model_of_another_tokenizer_is_refused(ppo, world, tmp_path):
    shutil.copytree(world.reward_model, tmp_path / "rm")
    text = (tmp_path / "rm" / "tokenizer.json").read_text()
    (tmp_path / "rm" / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|eot|>"))
    with pytest.raises(UserError, match="another tokenizer than the policy"):
        ppo(reward_model=tmp_path / "rm")


def test_a_policy_is_no_reward_model(world, tmp_path):
    argv = world.argv(tmp_path, reward_model=world.sft)
    with pytest.raises(UserError, match="no reward head"):
        tiny_models.run_command(train_ppo, "train-ppo", argv)
