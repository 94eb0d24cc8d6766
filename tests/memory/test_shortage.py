"""Whether what is trained fits a GPU at all: by hand, and where it is said."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from denserl.memory.formulas import Sharding, Size
from denserl.memory.shortage import least_bytes, shortage
from denserl.models.config import AdapterConfig
from denserl.trainer.config import OptimisationConfig
from denserl.trainer.start import warn_of_shortage

N = 8_000_000_000
MODEL = Size(N, N)
GIB = 2**30


def test_one_model_by_hand():
    """fp32 without ZeRO: weights 4, moments 8, gradients 4, and 4 more in Adam's step."""
    assert least_bytes([MODEL], [], Sharding(1, 0, 4)) == 20 * N
    assert least_bytes([MODEL], [MODEL], Sharding(1, 0, 4)) == 24 * N
    # Two that are trained keep the other's gradients through a step.
    assert least_bytes([MODEL, MODEL], [], Sharding(1, 0, 4)) == 2 * 16 * N + 4 * N
    # Adapters: hardly more than the weights.
    assert least_bytes([Size(N, 10**6)], [], Sharding(1, 0, 4)) == 4 * N + 16 * 10**6


def test_what_does_not_fit_is_said_with_what_would():
    said = shortage([MODEL], [], Sharding(8, 0, 4), 80 * GIB)
    # fp32, ZeRO 1 on 8: weights 4 N, an eighth of 12 N, and the gradients twice at the reduction.
    assert said.startswith(
        "weights, gradients and optimiser alone need 149.0 GiB of each GPU at `zero_stage` 0, and it has 80.0;"
    )
    assert "`zero_stage` 3 needs" in said and "denserl plan" in said
    assert shortage([MODEL], [], Sharding(8, 0, 4), 150 * GIB) == ""
    assert shortage([MODEL], [], Sharding(1, 0, 4), 30 * GIB).endswith(
        "`zero_stage` 0, and it has 30.0; no stage is enough on 1 GPU(s)"
    )


def test_every_stage_that_is_named_fits():
    for gpus in (1, 2, 8, 64):
        for memory in (20, 40, 80, 160):
            said = shortage([MODEL, MODEL], [MODEL], Sharding(gpus, 0, 2), memory * GIB)
            if "`zero_stage` " in (rest := said.partition("; ")[2]):
                other = Sharding(gpus, int(rest.split()[1]), 2, "offload_optimizer" in rest)
                assert least_bytes([MODEL, MODEL], [MODEL], other) <= memory * GIB


@pytest.mark.parametrize("device, warned", [("cpu", False), ("cuda", True)])
def test_it_is_said_at_the_start_on_a_gpu_that_is_too_small(device, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10_000))
    model = nn.Linear(30, 30)  # 930 parameters, of 20 bytes each
    with caplog.at_level(logging.WARNING):
        warn_of_shortage(OptimisationConfig(), "fp32", torch.device(device), [model])
    assert [message.startswith("weights, gradients and optimiser alone need 0.0 GiB") for message in caplog.messages] == [
        True
    ] * warned
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=930 * 20))
    caplog.clear()
    warn_of_shortage(OptimisationConfig(), "fp32", torch.device(device), [model])
    assert not caplog.messages and AdapterConfig().gradient_checkpointing is None


def test_partitioned_parameters_count_whole():
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.empty(0)
    model.weight.ds_numel = 4
    assert Size.of(model) == Size(4, 4)
