"""Runs of PPO without a critic: what the policy learns from, what there is not, resumes, and what cannot act together."""

import pytest
import reference_loops as loops
import torch
from trainer.test_ppo_trainer import FULL, go_on_from_the_middle, metrics, same_bits

from denserl.errors import UserError
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_trainer import PPOTrainer

SAMPLES = {"samples_per_prompt": 4, "critic_lr": None}


@pytest.fixture
def learned(monkeypatch) -> list:
    """What each update learns from."""
    kept, update = [], PPOTrainer.update

    def keep(self, responses, experience):
        kept.append(experience)
        return update(self, responses, experience)

    monkeypatch.setattr(PPOTrainer, "update", keep)
    return kept


@pytest.mark.parametrize("kind", ["rloo", "grpo", "reinforce"])
def test_the_policy_learns_from_returns_against_those_of_the_prompt(kind, ppo, scored, learned):
    """Of rewards of segments; there is no KL yet, so that returns are of what was paid. At ratio 1 a token's loss is -A."""
    output = ppo(**SAMPLES, advantage=kind, gamma=0.9)
    ((responses, rollouts),), (experience,), (row,) = scored, learned, metrics(output)
    assert responses.prompt_ids[0] == responses.prompt_ids[3] and list(responses.groups) == [0, 0, 0, 0, 1, 1, 1, 1]
    returns = loops.returns(rollouts.rewards, rollouts.mask, 0.9)
    expected = torch.zeros(rollouts.mask.shape, dtype=torch.float64)
    for b, found in enumerate(loops.against_group(returns, responses.groups, kind)):
        expected[b, : len(found)] = torch.tensor(found)
    if kind == "reinforce":
        expected = torch.tensor(loops.whiten(expected, rollouts.mask))
    torch.testing.assert_close(experience.advantages, expected.float(), rtol=1e-4, atol=1e-4)
    by_response = experience.advantages.sum(1) / rollouts.mask.sum(1)
    assert row["policy_loss"] == pytest.approx(-by_response.mean().item(), rel=1e-4, abs=1e-6)
    assert row["return"] == pytest.approx(sum(found[0] for found in returns) / 8, rel=1e-4, abs=1e-5)
    assert not [key for key in row if "value" in key or "critic" in key or key == "explained_variance"]
    assert not (output / "critic").exists()


def test_a_kl_in_the_loss_and_a_constant_in_the_place_of_lengths(ppo, scored, learned):
    """At ratio 1: -A of all tokens over 8 responses of 8 tokens at most; nothing is taken off rewards, and k3 begins at 0."""
    options = {"advantage": "grpo", "group_std": "off", "average": "constant", "kl_in": "loss", "kl_coefficient": 0.5}
    output = ppo(**SAMPLES, **options, iterations=2)
    for (responses, rollouts), experience, row in zip(scored, learned, metrics(output), strict=True):
        returns = loops.returns(rollouts.rewards, rollouts.mask, 1.0)
        for b, found in enumerate(loops.against_group(returns, responses.groups, "grpo", False)):
            assert experience.advantages[b, : len(found)].tolist() == pytest.approx(found, abs=1e-4)
        assert row["policy_loss"] == pytest.approx(-experience.advantages.sum().item() / 64, rel=1e-4, abs=1e-6)
        gap = (rollouts.logprobs - rollouts.ref_logprobs)[rollouts.mask]
        assert row["kl_loss"] == pytest.approx((torch.expm1(-gap) + gap).sum().item() / 64, rel=1e-3, abs=1e-6)
        assert row["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert row["kl_loss"] > 1e-4
    without = ppo("without", **SAMPLES, **options | {"kl_in": "reward", "kl_coefficient": 0.0}, iterations=2)
    assert metrics(without)[0]["policy_loss"] == pytest.approx(metrics(output)[0]["policy_loss"])
    assert metrics(without)[1]["actor_grad_norm"] != pytest.approx(metrics(output)[1]["actor_grad_norm"], rel=1e-4)


def test_what_is_written_beside_the_policy_is_said(ppo, caplog):
    caplog.set_level("INFO")
    folder = ppo(**SAMPLES, advantage="rloo", save_every=0)
    assert f"  policy in {folder}, beside it metrics.jsonl, samples.jsonl" in caplog.messages


def test_a_resumed_run_without_a_critic_ends_with_the_same_bits(ppo, world):
    options = FULL | {"advantage": "rloo", "critic_lr": None, "zero_stage": 2, "eval_prompts": world.prompts}
    output = ppo(**options)
    same_bits(go_on_from_the_middle(ppo, output, **options), output)
    assert not (output / "critic").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage": "rloo", "samples_per_prompt": 1}, "`advantage` rloo has no effect with `samples_per_prompt` 1"),
        ({"advantage": "grpo", "samples_per_prompt": 1}, "`advantage` grpo has no effect with `samples_per_prompt` 1"),
        ({"advantage": "rloo", "group_std": "off"}, "`group_std` off has no effect without `advantage` grpo"),
        ({"average": "constant", "entropy_coef": 0.1, "entropy_target": 1.0}, "no effect with `average` constant"),
        ({"kl_in": "loss", "kl_estimator": "k2"}, "`kl_estimator` k2 has no effect with `kl_in` loss"),
        *(
            ({name: value, "kl_coefficient": 0.0}, f"`{name}` {value} has no effect with `kl_coefficient` 0")
            for name, value in {"kl_in": "loss", "kl_estimator": "k3", "kl_target": 3.0}.items()
        ),
        ({"advantage": "remax"}, "`advantage` is 'remax'; it must be one of gae, rloo, grpo, reinforce"),
        *(
            ({"advantage": "reinforce", name: value}, f"`{name}` {value} has no effect without a critic")
            for name, value in {
                "critic_lr": 1e-5,
                "critic_init": "reward_model",
                "critic_warmup_iterations": 1,
                "value_clip": 0.3,
                "value_coef": 0.5,
                "lam": 0.9,
            }.items()
        ),
    ],
)
def test_what_cannot_act_is_refused(options, message):
    needed = {"model": "m", "reward_model": "r", "data": "d", "output_dir": "o"}
    with pytest.raises(UserError, match=message):
        PPOConfig(**needed | {"samples_per_prompt": 4} | options).check()


def test_reinforce_needs_no_group():
    PPOConfig(model="m", reward_model="r", data="d", output_dir="o", advantage="reinforce", samples_per_prompt=1).check()
