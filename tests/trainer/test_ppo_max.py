"""PPO-max: iterations of the preset against a plain loop over numbers, and each switch of the losses in a run."""

import math

import pytest
import torch
from test_ppo_trainer import metrics, same_weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from denserl.ppo_utils import experience as experiences
from denserl.trainer import ppo_losses
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.reference import PolicyModule

SMALL = {"rollout_batch_size": 8, "train_batch_size": 8, "micro_batch_size": 4, "max_new_tokens": 8, "warmup_ratio": None}
PRESET = {"config": "ppo_max.yaml", "reward_level": "bandit", "entropy_threshold": None, "zero_stage": 0}


class Moments:
    """Of all scores so far, as the report's code has them: a batch is taken in before it is normalised."""

    def __init__(self):
        self.mean, self.variance, self.count = 0.0, 1.0, 1e-24

    def update(self, numbers: list[float]) -> None:
        n = len(numbers)
        mean = math.fsum(numbers) / n
        variance = math.fsum((x - mean) ** 2 for x in numbers) / n
        apart, total = mean - self.mean, self.count + n
        self.variance = (self.variance * self.count + apart**2 * self.count * n / total + variance * n) / total
        self.mean += apart * n / total
        self.count = total

    @property
    def std(self) -> float:
        return math.sqrt(self.variance * self.count / (self.count - 1))


def rewards_of(score: float, moments: Moments, logprobs: list[float], reference: list[float]) -> list[float]:
    """-eta (log pi - log pi_ref) on every token, and the normalised and clipped score on the last."""
    rewards = [-0.05 * (now - before) for now, before in zip(logprobs, reference, strict=True)]
    rewards[-1] += min(max((score - moments.mean) / moments.std, -0.8), 0.8)
    return rewards


def advantages_of(rewards: list[float], values: list[float]) -> list[float]:
    advantages, after, value_after = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        after = reward + value_after - value + 0.9 * after
        value_after = value
        advantages.insert(0, after)
    return advantages


def policy_term(now: float, old: float, advantage: float) -> float:
    ratio = math.exp(now - old)
    return max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2))


def value_term(now: float, old: float, target: float) -> float:
    near = min(max(now, old - 0.2), old + 0.2)
    return 0.5 * max((now - target) ** 2, (near - target) ** 2)


@pytest.fixture
def recorded(monkeypatch) -> list[dict]:
    """Of each iteration: responses, what models say of them, token rewards, experience; and of each step rows and outputs."""
    kept: list[dict] = []
    score, update, step, part = PPOTrainer.score, PPOTrainer.update, PPOTrainer._optimiser_step, PPOTrainer._part

    def keep_scores(self, responses, **kw):
        scored, values = score(self, responses, **kw)
        kept.append({"responses": responses, "scored": scored, "values": values, "steps": []})
        return scored, values

    def keep_experience(self, responses, experience):
        kept[-1]["experience"] = experience
        return update(self, responses, experience)

    def keep_step(self, *args):
        kept[-1]["steps"].append({"rows": [], "policy": [], "value": []})
        step(self, *args)

    def keep_rows(self, responses, experience, rows, text):
        kept[-1]["steps"][-1]["rows"] += rows
        return part(self, responses, experience, rows, text)

    def keeping(function, keep):
        return lambda first, *args, **kw: keep(first) or function(first, *args, **kw)

    def keep_output(name):
        return lambda output: kept[-1]["steps"][-1][name].extend(output.tolist())

    def keep_rewards(*args):
        kept[-1]["rewards"] = penalised(*args)
        return kept[-1]["rewards"]

    penalised = experiences.penalised_rewards
    kinds = {"score": keep_scores, "update": keep_experience, "_optimiser_step": keep_step, "_part": keep_rows}
    for name, function in kinds.items():
        monkeypatch.setattr(PPOTrainer, name, function)
    monkeypatch.setattr(experiences, "penalised_rewards", keep_rewards)
    monkeypatch.setattr(ppo_losses, "policy_loss", keeping(ppo_losses.policy_loss, keep_output("policy")))
    monkeypatch.setattr(ppo_losses, "value_loss", keeping(ppo_losses.value_loss, keep_output("value")))
    return kept


def scores_of(world, responses) -> list[float]:
    """Of whole responses, by the stock class, one unpadded row at a time."""
    stock = AutoModelForSequenceClassification.from_pretrained(world.reward_model, dtype=torch.float32).eval()
    with torch.no_grad():
        rows = zip(responses.prompt_ids, responses.response_ids, strict=True)
        return [(stock.model(torch.tensor([p + r])).last_hidden_state[0, -1] @ stock.score.weight[0]).item() for p, r in rows]


def rows_of(tensor: torch.Tensor, lengths: list[int]) -> list[list[float]]:
    return [row[:length] for row, length in zip(tensor.tolist(), lengths, strict=True)]


def test_iterations_of_the_preset_are_those_of_a_plain_loop(ppo, recorded, world):
    """Critic alone, then policy and critic, then a policy that has left its reference; two passes over each rollout."""
    settings = {"iterations": 3, "critic_warmup_iterations": 1, "ppo_epochs": 2, "actor_lr": 2e-2, "critic_lr": 1e-2}
    logged = metrics(ppo(**PRESET | SMALL, **settings))
    moments, clipped, ratios, kl = Moments(), 0, [], 0.0
    for kept, row in zip(recorded, logged, strict=True):
        lengths = [len(ids) for ids in kept["responses"].response_ids]
        names = ("logprobs", "ref_logprobs")
        logprobs, reference = (rows_of(getattr(kept["scored"], name), lengths) for name in names)
        values = rows_of(kept["values"], lengths)
        scores = scores_of(world, kept["responses"])
        moments.update(scores)
        rewards = [rewards_of(*each) for each in zip(scores, [moments] * len(scores), logprobs, reference, strict=True)]
        advantages = [advantages_of(*each) for each in zip(rewards, values, strict=True)]
        returns = [[a + v for a, v in zip(*each, strict=True)] for each in zip(advantages, values, strict=True)]
        found = kept["experience"]
        for mine, theirs in ((rewards, kept["rewards"]), (advantages, found.advantages), (returns, found.returns)):
            assert [pytest.approx(numbers, abs=1e-6) for numbers in mine] == rows_of(theirs, lengths)

        policy, value = [], []
        for step in kept["steps"]:
            of_policy, of_value = [], []
            for place, b in enumerate(step["rows"]):
                tokens = range(lengths[b])
                now = step["value"][place]
                of_value += [value_term(now[t], values[b][t], returns[b][t]) for t in tokens]
                if step["policy"]:
                    now = step["policy"][place]
                    of_policy += [policy_term(now[t], logprobs[b][t], advantages[b][t]) for t in tokens]
                    ratios += [math.exp(now[t] - logprobs[b][t]) for t in tokens]
            value.append(math.fsum(of_value) / len(of_value))
            policy += [math.fsum(of_policy) / len(of_policy)] if of_policy else []
        assert row["value_loss"] == pytest.approx(sum(value) / 2, abs=1e-6)
        assert row.get("policy_loss") == (pytest.approx(sum(policy) / 2, abs=1e-6) if policy else None)
        clipped += sum(abs(score - moments.mean) > 0.8 * moments.std for score in scores)
        kl = row["kl"]
    # Nothing that is compared is idle.
    assert 0 < clipped < 24 and abs(kl) > 0.01 and min(ratios) < 0.8 and max(ratios) > 1.2
    assert ["policy_loss" in row for row in logged] == [False, True, True]
    assert [row["running_mean"] for row in logged][-1] == pytest.approx(moments.mean, abs=1e-6)


def entropy_and_loss(world, kept) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """Mean entropy and policy loss of a first step by the stock class, one unpadded row at a time, and the model."""
    policy = AutoModelForCausalLM.from_pretrained(world.sft, dtype=torch.float32).eval()
    entropies, losses, responses = [], [], kept["responses"]
    for b, (prompt, response) in enumerate(zip(responses.prompt_ids, responses.response_ids, strict=True)):
        logits = policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = logits.gather(1, torch.tensor(response)[:, None]).squeeze(1)
        entropies.append(-(logits.exp() * logits).sum(-1).mean())
        losses.append((-(own - own.detach()).exp() * kept["experience"].advantages[b, : len(response)]).mean())
    return torch.stack(entropies).mean(), torch.stack(losses).mean(), policy


@pytest.mark.parametrize("target", [None, 0.5, 30.0])
def test_the_entropy_term_and_its_gradient_by_hand(target, ppo, recorded, world):
    """30 nats are more than any choice among these tokens has, so that the policy is drawn up; 0.5 draws it down."""
    (row,) = metrics(ppo(entropy_coef=0.7, entropy_target=target))
    entropy, loss, policy = entropy_and_loss(world, recorded[0])
    term = 0.7 * (-entropy if target is None else (entropy - target).abs())
    assert row["entropy_loss"] == pytest.approx(term.item(), rel=1e-5)
    assert row["policy_loss"] == pytest.approx(loss.item(), abs=1e-5)
    (loss + term).backward()
    norm = math.sqrt(sum((p.grad.double() ** 2).sum().item() for p in policy.parameters()))
    assert row["actor_grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_the_distance_is_that_of_the_whole_step(ppo):
    """The targets are so near the mean that some micro-batches are above and others below them."""
    (row,) = metrics(ppo("plain"))

    def output(name: str, gap: float, size: int):
        target = row["entropy"] + gap
        return ppo(name, entropy_coef=1.0, entropy_target=target, actor_lr=1e-4, micro_batch_size=size)

    whole, parts, below = output("whole", 1e-3, 8), output("parts", 1e-3, 1), output("below", -1e-3, 1)
    assert [metrics(run)[0]["entropy_loss"] for run in (whole, parts, below)] == pytest.approx([1e-3] * 3, rel=1e-2)
    assert metrics(parts)[0] == pytest.approx(metrics(whole)[0], rel=1e-3, abs=1e-5)
    # A step of 1e-4. Where a gradient is nothing but rounding, Adam moves a weight by any part of that.
    same_weights(whole, parts, 2e-5)


def test_training_spares_entropies_unless_they_are_asked_for(ppo, monkeypatch):
    asked, forward = set(), PolicyModule.forward

    def noting(self, *args, **kw):
        asked.update([kw["with_entropy"]] if torch.is_grad_enabled() else [])
        return forward(self, *args, **kw)

    monkeypatch.setattr(PolicyModule, "forward", noting)
    for coef, wanted in ((0.0, {False}), (0.1, {True})):
        asked.clear()
        ppo(f"coef {coef}", entropy_coef=coef)
        assert asked == wanted


def test_the_value_loss_is_weighed_in_the_gradient_alone(ppo):
    plain, weighed = (metrics(ppo(f"coef {coef}", value_coef=coef))[0] for coef in (1.0, 3.0))
    assert weighed["value_loss"] == plain["value_loss"]
    assert weighed["critic_grad_norm"] == pytest.approx(3 * plain["critic_grad_norm"], rel=1e-5)


def test_advantages_are_left_as_they_are_or_clipped(ppo, recorded):
    """At a first step all ratios are one: the loss is minus the mean of what the policy learns from."""
    off, clipped = ({"advantage_norm": "off", "average": "token_mean"} | more for more in ({}, {"advantage_clip": 0.3}))
    (row,), (other,) = metrics(ppo("off", **off)), metrics(ppo("clipped", **clipped))
    assert row["advantage_mean"] == other["advantage_mean"] == pytest.approx(-row["policy_loss"], abs=1e-6)
    before, after = (kept["experience"].advantages for kept in recorded)
    assert before.abs().max() > 0.3 and torch.equal(after, before.clamp(-0.3, 0.3))


def test_the_dual_clip_holds_tokens_that_plain_clipping_lets_through(ppo):
    settings = {"actor_lr": 2e-2, "ppo_epochs": 2}
    plain, dual = (metrics(ppo(f"dual {clip}", dual_clip=clip, **settings))[0] for clip in (None, 1.05))
    assert dual["clip_fraction"] > plain["clip_fraction"] and dual["policy_loss"] < plain["policy_loss"]
