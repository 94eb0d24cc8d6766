"""Scores, log-probabilities, entropies, their gradients and rollouts on a GPU, against the stock models in fp64 on the CPU."""

from collections.abc import Callable

import pytest
import tiny_models
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3Config

from denserl.data.batching import pad_responses
from denserl.models.kernels import use_liger_kernel
from denserl.models.packing import is_packed
from denserl.models.probe import AT_ONCE, BY_KERNEL, probe, run_as
from denserl.models.scoring import token_logprob_entropy, token_rewards
from denserl.rollouts.policy import PolicySampler

FAMILIES = ["llama", "llama-tied", "mistral", "mistral-window", "qwen2", "phi3", "gemma"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
# Rows 0, 2 and 3 begin alike.
STARTS = [tiny_models.random_rows([n], seed=n)[0] for n in (9, 21)]
PROMPTS = [STARTS[0], STARTS[1], STARTS[0], STARTS[0]]
RESPONSES = tiny_models.random_rows([30, 7, 1, 18], seed=3)
BATCH = pad_responses(PROMPTS, RESPONSES, 0)
WEIGHTS = torch.randn(BATCH.response_mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
# Relative to the norm of what is expected; gradients go twice through what is rounded to bf16.
VALUES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
GRADIENTS = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


def far(found: Tensor, expected: Tensor) -> float:
    return ((found.detach().cpu().double() - expected.detach()).norm() / expected.detach().norm()).item()


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.cpu().double().flatten() for p in model.parameters()])


def on_gpu(model: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The model in a type on the GPU, without padding; and one of the same weights in fp64 on the CPU, as it came."""
    model = model.to(dtype)
    with torch.random.fork_rng(devices=[]):
        exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    model = model.cuda()
    found = probe(model)
    assert is_packed(run_as(model, found)) and not found.row_by_row
    return model, exact


@DTYPES
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_entropies_are_those_of_the_stock_model(family, dtype):
    model, exact = on_gpu(tiny_models.language_model(family), dtype)
    found = token_logprob_entropy(model, *BATCH.to("cuda")[:3], WEIGHTS.shape[1], shared=BATCH.shared)
    expected = torch.zeros(2, *WEIGHTS.shape, dtype=torch.float64)
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits = exact(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        chosen = logits.gather(1, torch.tensor(response)[:, None]).squeeze(1)
        expected[0, b, : len(response)], expected[1, b, : len(response)] = chosen, -(logits.exp() * logits).sum(1)
    assert max(map(far, found, expected)) < VALUES[dtype]
    (WEIGHTS * (expected[0] - expected[1])).sum().backward()
    (WEIGHTS.float().cuda() * (found[0] - found[1])).sum().backward()
    assert far(gradients(model), gradients(exact)) < GRADIENTS[dtype]


@DTYPES
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_stock_model(family, dtype):
    model, exact = on_gpu(tiny_models.classifier(family), dtype)
    mask = BATCH.attention_mask.double()
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * mask
    found = token_rewards(model, *BATCH.to("cuda")[:2], BATCH.shared)
    expected = torch.zeros_like(mask)
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        hidden = exact.base_model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        expected[b, : len(hidden)] = exact.score(hidden)[:, 0]
    assert far(found.cpu() * mask, expected) < VALUES[dtype]
    (weights * expected).sum().backward()
    (weights.float().cuda() * found).sum().backward()
    assert far(gradients(model), gradients(exact)) < GRADIENTS[dtype]


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3"])
def test_models_run_without_padding_by_the_kernel(family):
    """As measured: in fp32 row by row, in bf16 all rows at once, whose numbers differ by rounding."""
    if family == "qwen3":
        model = AutoModelForCausalLM.from_config(Qwen3Config(**tiny_models.SIZES, head_dim=16), dtype=torch.float32)
    else:
        model = tiny_models.language_model(family)
    for dtype in (torch.float32, torch.bfloat16):
        found = probe(model.to("cuda", dtype))
        assert (found.unpacked, found.row_by_row, found.masked, found.generates, found.unsteady) == ("", "", "", "", ""), found
        assert all(value < (2e-2 if what in (AT_ONCE, BY_KERNEL) else 1e-4) for what, value in found.apart.items()), found
    assert found.apart[AT_ONCE] > 0 and found.apart[BY_KERNEL] > 0


@DTYPES
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_scores_by_ligers_kernels_are_those_of_the_stock_model(family, dtype):
    pytest.importorskip("liger_kernel")
    model, exact = on_gpu(tiny_models.classifier(family), dtype)
    use_liger_kernel(model)
    mask = BATCH.attention_mask.double()
    found = token_rewards(model.train(), *BATCH.to("cuda")[:2], BATCH.shared)
    expected = torch.zeros_like(mask)
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        hidden = exact.base_model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        expected[b, : len(hidden)] = exact.score(hidden)[:, 0]
    assert far(found.cpu() * mask, expected) < VALUES[dtype]
    (expected**2).sum().backward()
    (found * mask.float().cuda()).square().sum().backward()
    assert far(gradients(model), gradients(exact)) < GRADIENTS[dtype]


# What the sampled responses begin with, and what ends them.
SAMPLED, STOPS = tiny_models.random_rows([3, 17, 6, 6, 11, 1, 20, 9], seed=5), [*range(5, 20)]


def sampler(model: nn.Module, **settings) -> Callable:
    sample = PolicySampler(lambda: model, STOPS, 0, 24, batch_size=3, **settings)
    return lambda: sample(SAMPLED, [(11, row) for row in range(len(SAMPLED))])


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9}, {}], ids=str)
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma"])
def test_responses_are_those_that_the_cpu_samples(family, settings):
    """In fp32, by the same random numbers, to the token."""
    here, there = (tiny_models.probed(tiny_models.language_model(family).to(device)) for device in ("cpu", "cuda"))
    expected, found = sampler(here, **settings)(), sampler(there, **settings)()
    assert found == expected
    # Rows leave, and others join, at different times.
    assert len({len(response) for response in found.responses}) > 1


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma"])
def test_greedy_responses_in_bf16_are_the_most_likely_to_rounding(family):
    model, exact = on_gpu(tiny_models.language_model(family), torch.bfloat16)
    found = sampler(model, temperature=0.0)()
    for prompt, response in zip(found.prompts, found.responses, strict=True):
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        short = logits.amax(1) - logits.gather(1, torch.tensor(response)[:, None]).squeeze(1)
        assert short.max() < 0.05 * (logits.amax() - logits.amin())
