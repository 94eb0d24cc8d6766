"""Decoding on a GPU, recorded as a graph, against whole forwards of one row at a time on the CPU."""

import pytest
import tiny_models
import torch
from decoding_rows import check_against_whole_rows

from denserl.models import decoding
from denserl.models.probe import run_as

FAMILIES = ["llama", "llama-tied", "mistral", "mistral-window", "qwen2", "phi3", "gemma", "gpt2"]


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    monkeypatch.setattr(decoding, "ROOM", 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_by_masks_in_fp32_are_those_of_whole_rows(family, caplog):
    model = tiny_models.probed(tiny_models.language_model(family)).cuda()
    check_against_whole_rows(tiny_models.language_model(family), model, 1e-3)
    assert "kernel by kernel" not in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_by_a_kernel_in_bf16_are_those_of_whole_rows_to_rounding(family, monkeypatch, caplog):
    measured = tiny_models.probed(tiny_models.language_model(family)).measured
    plain = tiny_models.language_model(family).bfloat16().float()
    model = run_as(tiny_models.language_model(family).to("cuda", torch.bfloat16), measured)
    monkeypatch.setattr(decoding, "sdpa", None)
    check_against_whole_rows(plain, model, 5e-2)
    assert "kernel by kernel" not in caplog.text
