"""torch's kernel for rows of unequal length, and attention row by row, on a GPU against a loop over tokens in fp64."""

import pytest
import tiny_models
import torch
from packed_rows import HEADS, KEY_HEADS, attention_by_hand, attention_inputs, module, with_gradients

from denserl.data.batching import pad_responses
from denserl.models.packing import Packing
from denserl.models.varlen import TORCH

# As in test_varlen, and longer than the kernel's blocks of 64 and 128 tokens. Row 3 has no tokens of its own.
PROMPTS = [tiny_models.random_rows([n], seed=n)[0] for n in (70, 131, 70, 70, 131, 1)]
RESPONSES = tiny_models.random_rows([61, 2, 140, 0, 33, 0], seed=3)
BATCH = pad_responses(PROMPTS, RESPONSES, 0)
ROWS = [len(prompt) + len(response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
SCALE = 0.3
# bf16 has 8 bits: an entry is rounded by up to 2^-9 = 2e-3, and so are the weights and the sums that are made of them.
CLOSE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}


def far(found: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    """The norm of each difference, relative to that of what is expected."""
    return [((x.cpu().double() - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("width, key_heads", [(64, KEY_HEADS), (128, KEY_HEADS), (16, HEADS)])
def test_attention_on_a_gpu_is_that_of_a_loop_over_tokens(monkeypatch, shared, window, width, key_heads):
    """Outputs and gradients: by the kernel and row by row in bf16, and row by row in fp32."""
    packing = Packing(BATCH.attention_mask, BATCH.shared if shared else None)
    rows = [packing.slots[b, :length] for b, length in enumerate(ROWS)]
    exact = [x.detach().bfloat16() for x in attention_inputs(len(packing.tokens), width, key_heads)]

    def inputs(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        return [x.to(device, dtype).requires_grad_() for x in exact]

    def refused(self, kernel, why):
        raise AssertionError(f"{kernel.name} was not used: {why}")

    monkeypatch.setattr(Packing, "refused", refused)
    expected = with_gradients(lambda *x: attention_by_hand(rows, *x, SCALE, window), inputs("cpu", torch.float64))
    for kernel, dtype in ((TORCH, torch.bfloat16), (None, torch.bfloat16), (None, torch.float32)):
        packing = Packing(BATCH.attention_mask, BATCH.shared if shared else None)

        def attend(*x, kernel=kernel, packing=packing):
            of = module()
            of.num_key_value_groups = HEADS // key_heads
            return packing.attend(of, *x, kernel=kernel, scaling=SCALE, sliding_window=window)

        found = far(with_gradients(attend, inputs("cuda", dtype)), expected)
        assert max(found) < CLOSE[dtype], (kernel and kernel.name, dtype, found)
