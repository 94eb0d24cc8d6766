"""Attention without padding against a loop over tokens: row by row in blocks, and all rows at once by kernels' stand-ins.

The kernels run on CUDA alone. Here functions of their signatures, written in plain torch, stand in their places.
"""

import functools
import logging
import sys
from types import ModuleType

import pytest
import tiny_models
import torch
from decoding_rows import check_against_whole_rows
from packed_rows import attention_by_hand, attention_inputs, module, with_gradients
from torch import Tensor
from transformers import AutoModelForCausalLM

from denserl.data.batching import pad_responses
from denserl.errors import UserError
from denserl.models import decoding, loading, row_attention, varlen
from denserl.models.decoding import Decoder
from denserl.models.measured import Measured
from denserl.models.packing import KERNELS, PACKED_ATTENTION, PACKED_FLASH, PACKED_ROWS, Packing, is_packed
from denserl.models.probe import probe, run_as
from denserl.models.row_attention import Masks
from denserl.models.scoring import token_rewards
from denserl.models.varlen import FLASH_ATTN, TORCH, sequences_of

WIDTH = 8
# Rows 0, 2 and 3 begin alike, and so do 1 and 4; row 3 has no tokens of its own, row 5 one token in all.
PROMPTS = [*([row for row in tiny_models.random_rows([5, 7, 1])])]
PROMPTS = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[2]]
RESPONSES = tiny_models.random_rows([4, 2, 11, 0, 3, 0], seed=3)
BATCH = pad_responses(PROMPTS, RESPONSES, 0)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: None = None,
    block_table: None = None,
    num_splits: int | None = None,
) -> Tensor:
    """What torch.nn.attention.varlen.varlen_attn is documented to do; causal masks are aligned to the lower right."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and isinstance(window_size, tuple)
    assert enable_gqa == (query.shape[1] != key.shape[1]) and key.shape[0] == value.shape[0] == int(cu_seq_k[-1])
    assert max_q >= cu_seq_q.diff().max() and max_k >= cu_seq_k.diff().max() and query.shape[0] == int(cu_seq_q[-1])
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scale, (left, right), out = query.shape[-1] ** -0.5 if scale is None else scale, window_size, []
    for i in range(len(cu_seq_q) - 1):
        q, (k, v) = query[cu_seq_q[i] : cu_seq_q[i + 1]], (x[cu_seq_k[i] : cu_seq_k[i + 1]] for x in (key, value))
        ahead = torch.arange(len(k)) - (torch.arange(len(q))[:, None] + len(k) - len(q))
        hidden = ((ahead > right) & (right >= 0)) | ((ahead < -left) & (left >= 0))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(out)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: None = None,
) -> Tensor:
    """What flash_attn's function is documented to do, without dropout."""
    assert not dropout_p
    starts = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    grouped = q.shape[1] != k.shape[1]
    return varlen_attn(
        q, k, v, *starts, scale=softmax_scale, window_size=(window_size[0], 0 if causal else -1), enable_gqa=grouped
    )


@pytest.fixture
def kernels(monkeypatch):
    """Both kernels, on the CPU and in every type."""
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr(varlen, "DEVICES", ("cpu",))
    monkeypatch.setattr(varlen, "DTYPES", (torch.float64, torch.float32, torch.bfloat16))
    forget()
    yield
    forget()


@pytest.fixture
def narrow_kernels(kernels, monkeypatch):
    """The same in bf16 alone, so that what is measured in fp32 goes row by row, as on CUDA."""
    monkeypatch.setattr(varlen, "DTYPES", (torch.bfloat16,))


def forget():
    for kept in (varlen._of_torch, varlen._of_flash_attn, varlen.tell):
        kept.cache_clear()


def tensors(packing: Packing, width: int = WIDTH) -> list[Tensor]:
    return attention_inputs(len(packing.tokens), width)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("window", [None, 1, 4, 6, 100])
@pytest.mark.parametrize("block", [2, 256])
def test_attention_is_that_of_a_loop_over_tokens(kernels, monkeypatch, shared, window, block):
    """Shared prompts, windows, grouped heads, rows of one token and without tokens of their own; gradients as well."""
    monkeypatch.setattr(row_attention, "BLOCK", block)
    packing = Packing(BATCH.attention_mask, BATCH.shared if shared else None)
    inputs, asked = tensors(packing), {"scaling": 0.4, "sliding_window": window}
    rows = [packing.slots[b, : len(p) + len(r)] for b, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))]
    expected = with_gradients(lambda *x: attention_by_hand(rows, *x, 0.4, window), inputs)
    for kernel in (None, TORCH, FLASH_ATTN):
        found = with_gradients(lambda *x, kernel=kernel: packing.attend(module(), *x, kernel=kernel, **asked), inputs)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_where_rows_stand_for_the_kernels():
    packing = Packing(BATCH.attention_mask, BATCH.shared)
    found = packing.sequences
    # Own tokens: 9, 9, 11, none, 3, 1; keys with the shared prompts of 5 and 7 tokens: 9, 9, 16, -, 10, 1.
    assert found.query_starts.tolist() == [0, 9, 18, 29, 32, 33] and (found.most_queries, found.most_keys) == (11, 16)
    assert found.key_starts.tolist() == [0, 9, 18, 34, 44, 45]
    own = [*range(18), *range(5), *range(18, 29), *range(9, 16), *range(29, 32), 32]
    assert found.keys.tolist() == own
    assert Packing(BATCH.attention_mask, None).sequences.keys is None
    counts = torch.tensor([2, 0, 3])
    alone = sequences_of(counts, torch.zeros(3, dtype=torch.long), torch.arange(3))
    assert alone.query_starts.tolist() == alone.key_starts.tolist() == [0, 2, 5]


def test_masks_grow_with_the_length_and_not_with_its_square():
    masks = Masks(8192, 16384)
    like = torch.zeros(1)
    for first in range(0, 8192, row_attention.BLOCK):
        masks.of(row_attention.BLOCK, 8192 + first + row_attention.BLOCK, None, like)
    masks.of(row_attention.BLOCK, 4096 + row_attention.BLOCK - 1, 4096, like)
    parts = [masks.of(row_attention.BLOCK, keys, None, like) for keys in (8192, 16384)]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1, "a backward pass would keep copies"
    assert [mask.shape[2:].numel() for mask in masks.made.values()] == [256 * 16384, 256 * (4096 + 255)]


@pytest.mark.parametrize("window", [None, 3, 40, 300])
def test_every_row_of_a_mask_begins_where_kernels_can_read_it(window):
    """16 bytes at a time, in bf16 and fp32."""
    masks = Masks(256, 320)
    for queries, keys in ((1, 8), (3, 9), (17, 64), (256, 320), (200, 203)):
        keys = keys if window is None else min(keys, queries + window - 1)
        mask = masks.of(queries, keys, window, torch.zeros(1, dtype=torch.bfloat16))
        assert mask.data_ptr() % 16 == 0 and all(step % 8 == 0 for step in mask.stride()[:3]) and mask.stride(3) == 1
        for query in range(queries):
            last = keys - queries + query
            seen = [key <= last and (window is None or key > last - window) for key in range(keys)]
            assert (mask[0, 0, query] == 0).tolist() == seen


@pytest.mark.parametrize(
    ("kernel", "asked", "width", "why"),
    [
        (TORCH, {"dropout": 0.1}, WIDTH, "attention dropout 0.1"),
        (TORCH, {}, 12, "heads of 12"),
        (TORCH, {}, 264, "heads of 264"),
        (FLASH_ATTN, {}, 12, "heads of 12"),
        (TORCH, {"is_causal": False}, WIDTH, "not marked as causal"),
    ],
)
def test_what_a_kernel_does_not_take_goes_row_by_row_and_is_said_once(kernels, monkeypatch, caplog, kernel, asked, width, why):
    def fails(*args, **kw):
        raise AssertionError("the kernel was called")

    packing = Packing(BATCH.attention_mask, None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            packing.attend(module(), *tensors(packing, width), kernel=kernel._replace(run=fails), **asked)
    assert [why in record.message for record in caplog.records] == [True]


def test_elsewhere_than_on_cuda_in_narrow_types_rows_go_one_by_one(caplog):
    packing = Packing(BATCH.attention_mask, BATCH.shared)
    inputs = tensors(packing)
    one, other = (packing.attend(module(), *inputs, kernel=kernel) for kernel in (TORCH, None))
    assert torch.equal(one, other) and not caplog.records


def test_a_torch_without_the_kernel_is_told(kernels, monkeypatch, caplog):
    def earlier(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        raise AssertionError("the kernel was called")

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", earlier)
    forget()
    packing = Packing(BATCH.attention_mask, None)
    packing.attend(module(), *tensors(packing), kernel=TORCH)
    assert "this torch has none" in caplog.text


def test_a_kernel_without_grouped_heads_is_given_all(kernels, monkeypatch):
    def earlier(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        assert query.shape[1] == key.shape[1]
        return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)

    packing = Packing(BATCH.attention_mask, BATCH.shared)
    inputs = tensors(packing)
    expected = packing.attend(module(), *inputs, kernel=TORCH)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", earlier)
    forget()
    torch.testing.assert_close(packing.attend(module(), *inputs, kernel=TORCH), expected)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_model_scores_alike_by_a_kernel_and_row_by_row(kernels, family, attention):
    """Scores and gradients of a whole model, with prompts that rows share."""
    results = []
    for found in (Measured(attention=attention), Measured(row_by_row="asked for")):
        model = run_as(tiny_models.classifier(family), found)
        rewards = token_rewards(model, *BATCH[:2], BATCH.shared) * BATCH.attention_mask
        rewards.square().sum().backward()
        results.append([rewards.detach(), *(p.grad for p in model.parameters())])
    name = PACKED_FLASH if attention == "flash_attention_2" else PACKED_ATTENTION
    assert model.config._attn_implementation == PACKED_ROWS and KERNELS[name] is not None
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_rows_are_decoded_by_a_kernel(kernels, monkeypatch, family, attention):
    """Without masks, and with as many keys as a row has tokens in its window."""
    monkeypatch.setattr(decoding, "sdpa", None)
    monkeypatch.setattr(decoding, "ROOM", 4)
    model = run_as(tiny_models.language_model(family), Measured(attention=attention))
    check_against_whole_rows(tiny_models.language_model(family), model)


def as_loaded_with_flash_attention(monkeypatch, model):
    """transformers lets nobody ask for it where it cannot run."""
    monkeypatch.setattr(type(model), "get_correct_attn_implementation", lambda self, name, is_init_check=False: name)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *args, **kw: None)
    model.set_attn_implementation("flash_attention_2")
    return model


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_the_kernel_is_measured_in_the_models_own_type(narrow_kernels, family):
    model = tiny_models.language_model(family).to(torch.bfloat16)
    found = probe(model)
    assert not found.row_by_row and 0 < found.apart["all rows at once"] < 2e-2
    assert not found.masked and found.apart["decoded by a kernel"] < 2e-2
    decoder = Decoder(run_as(model, found), 4)
    assert model.config._attn_implementation == PACKED_ATTENTION
    decoder.admit(PROMPTS[1:2])
    assert [past.kernel for past in decoder.groups[0].layers.values()] == [TORCH] * 2


def test_a_kernel_that_decodes_other_numbers_is_not_used_for_that(narrow_kernels, monkeypatch):
    """It sees slots that are not taken."""

    @functools.wraps(varlen_attn)
    def other(query, key, value, cu_seq_q, cu_seq_k, *args, **kw):
        if (cu_seq_q.diff() == 0).any():
            cu_seq_k = cu_seq_k.clone()
            cu_seq_k[1::2] = cu_seq_k[2::2]
        return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, *args, **kw)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", other)
    forget()
    model = tiny_models.language_model("llama").to(torch.bfloat16)
    found = probe(model)
    assert not found.row_by_row and "decoded by a kernel: apart by" in found.masked
    decoder = Decoder(run_as(model, found), 4)
    decoder.admit(PROMPTS[1:2])
    assert [past.kernel for past in decoder.groups[0].layers.values()] == [None] * 2


@pytest.mark.parametrize("fault", [{"window_size": (-1, -1)}, {"window_size": (4, 0)}])
def test_a_kernel_that_gives_other_numbers_is_not_used(narrow_kernels, monkeypatch, fault):
    """It sees tokens to come, or one too many before."""

    @functools.wraps(varlen_attn)
    def other(*args, **kw):
        return varlen_attn(*args, **{**kw, **fault})

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", other)
    forget()
    model = tiny_models.language_model("mistral-window").to(torch.bfloat16)
    found = probe(model)
    assert not found.unpacked and "all rows at once: apart by" in found.row_by_row
    assert run_as(model, found).config._attn_implementation == PACKED_ROWS and is_packed(model)


def test_flash_attention_keeps_packing(narrow_kernels, monkeypatch):
    model = as_loaded_with_flash_attention(monkeypatch, tiny_models.classifier("llama").to(torch.bfloat16))
    found = probe(model)
    assert model.config._attn_implementation == "flash_attention_2" and found.attention == "flash_attention_2"
    assert not found.unpacked and 0 < found.apart["all rows at once"] < 2e-2
    assert run_as(model, found).config._attn_implementation == PACKED_FLASH and is_packed(model)


def test_flash_attention_without_its_package_runs_on_padded_batches(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    forget()
    model = as_loaded_with_flash_attention(monkeypatch, tiny_models.classifier("llama"))
    found = probe(model)
    assert "cannot be imported" in found.unpacked and found.attention == "flash_attention_2"
    forget()


def test_heads_that_a_kernel_does_not_take_are_found_when_a_model_is_loaded(narrow_kernels):
    config = tiny_models.FAMILIES["llama"]()
    config.head_dim = 12
    found = probe(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))
    assert not found.unpacked and "heads of 12" in found.row_by_row


def test_flash_attention_in_fp32_is_refused(monkeypatch):
    monkeypatch.setattr(loading, "measure", lambda model, path: Measured(attention="flash_attention_2"))
    with pytest.raises(UserError, match="bf16 and fp16 alone"):
        loading.as_measured(tiny_models.classifier("llama"), "a path")
