"""Precision of bf16 engines: sums of gradients, what reward heads give, and a policy against its own reference."""

import copy

import pytest
import tiny_models
import torch
from deepspeed.utils import safe_get_full_grad
from torch import nn

from denserl.data.batching import pad_responses
from denserl.models.gathering import gathered
from denserl.models.heads import Fp32Linear, Head
from denserl.models.loading import load_policy
from denserl.models.reward_models import new_reward_model
from denserl.models.scoring import read_rewards, score_head, token_rewards
from denserl.trainer import engine as engines
from denserl.trainer.config import OptimisationConfig
from denserl.trainer.reference import PolicyModule

MICRO_BATCHES = 128
STAGES = [0, 1, 2, 3]
MLP = Head("mlp", layers=1, width=64, dropout=0.0)


@pytest.fixture(autouse=True)
def process_group():
    with tiny_models.restored_environment():
        engines.init_distributed(torch.device("cpu"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny_models.save_language_model(tmp_path_factory.mktemp("sft"), hidden=64))


def engine_of(module: nn.Module, stage: int, accumulation: int = 1, **options) -> nn.Module:
    config = OptimisationConfig(zero_stage=stage, max_grad_norm=1e9, warmup_ratio=0.0, **options)
    of_engine = engines.deepspeed_config(config, "bf16", 4, accumulation)
    return engines.train_engine(module, of_engine, config, lr=1e-3, total_steps=9)


@pytest.mark.parametrize("stage, offload", [(0, False), (1, True), (2, False), (3, False)])
def test_gradients_of_many_micro_batches_are_added_up_in_fp32(stage, offload):
    """Against sums in fp64 of the same micro-batches' gradients; sums in bf16 are 1 % off."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 1)).bfloat16()
    plain, inputs = copy.deepcopy(module), torch.randn(MICRO_BATCHES, 4, 32).bfloat16()
    engine = engine_of(module, stage, MICRO_BATCHES, offload_optimizer=offload)
    exact = [torch.zeros_like(p, dtype=torch.float64) for p in plain.parameters()]
    half = [torch.zeros_like(p) for p in plain.parameters()]
    for i, batch in enumerate(inputs):
        engine.backward(engine(batch).float().square().mean())
        if i + 1 == MICRO_BATCHES:
            got = torch.cat([safe_get_full_grad(p).double().flatten() for p in engine.module.parameters()])
        engine.step()
        (plain(batch).float().square().mean() / MICRO_BATCHES).backward()
        for total, rounded, parameter in zip(exact, half, plain.parameters(), strict=True):
            total += parameter.grad
            rounded += parameter.grad
            parameter.grad = None
    norm = engine.get_global_grad_norm()
    engine.destroy()
    expected, rounded = (torch.cat([part.double().flatten() for part in parts]) for parts in (exact, half))
    assert norm == pytest.approx(expected.norm().item(), rel=1e-6)
    assert (got - expected).norm() < 1e-6 * expected.norm() and (rounded - expected).norm() > 5e-3 * expected.norm()


def of_head(x: torch.Tensor, weight: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    """One linear layer, or two with a ReLU between them."""
    if not more:
        return x @ weight.T
    bias, second, last = more
    return (x @ weight.T + bias).relu() @ second.T + last


@pytest.mark.parametrize("head", [pytest.param(Head(), marks=pytest.mark.long), MLP], ids=["linear", "mlp"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_bf16_critic_gives_values_in_fp32(folder, stage, head):
    """Against fp64 on the same hidden states, before and after a step; a bf16 head rounds values by 2e-3 of their spread."""
    critic = new_reward_model(folder, "bf16", seed=1, head=head)
    with torch.no_grad():
        for layer in critic.score.modules():
            if isinstance(layer, Fp32Linear):
                layer.weight.mul_(20)
    engine = engine_of(critic, stage)
    batch = pad_responses(*([tiny_models.random_rows(lengths, seed=3, vocabulary=300) for lengths in ([5, 9], [12, 7])]), 0)
    for _ in range(2):
        values = token_rewards(engine, batch.input_ids, batch.attention_mask)
        # All hidden states: at one place of each row after another.
        places = [torch.full((2,), place) for place in range(batch.input_ids.shape[1])]
        with torch.no_grad():
            hidden = [read_rewards(engine, *batch[:3], logprob_rows=0, hidden_at=place).hidden for place in places]
        with gathered(list(score_head(engine).parameters())):
            weights = [parameter.detach().double().clone() for parameter in score_head(engine).parameters()]
        on = batch.attention_mask.bool()
        expected = of_head(torch.stack(hidden, 1).double(), *weights).squeeze(-1)[on]
        got = values[on]
        assert got.dtype == torch.float32 and hidden[0].dtype == torch.bfloat16
        assert (got - expected).std() < 1e-6 * expected.std() < (expected.bfloat16() - expected).std()
        engine.backward(values[on].square().mean())
        engine.step()
    engine.destroy()


@pytest.mark.parametrize("stage", STAGES)
def test_an_untrained_bf16_policy_is_its_reference_to_the_bit(folder, stage):
    """DeepSpeed to 0.19.0 rounds the frequencies of rotary positions, which shows at 64 tokens and more."""
    rows = tiny_models.random_rows([40, 60], seed=5, vocabulary=300), tiny_models.random_rows([200, 70], seed=6, vocabulary=300)
    batch = pad_responses(*rows, 0)
    policy, reference = (PolicyModule(load_policy(folder, "bf16")) for _ in range(2))
    engine = engine_of(policy, stage)
    frozen = engines.frozen_engine(
        reference, engines.deepspeed_config(OptimisationConfig(zero_stage=stage), "bf16", 4, 1), torch.device("cpu")
    )
    engine.eval()
    with torch.no_grad():
        (ours, entropy), (theirs, of_reference) = (
            model(*batch[:3], response_length=batch.response_mask.shape[1]) for model in (engine, frozen)
        )
    assert torch.equal(ours, theirs) and torch.equal(entropy, of_reference) and ours[batch.response_mask].std() > 0.1
    engine.destroy()
