"""Decoding against whole forwards of one row at a time: rows that join, rows that leave, groups, windows, shared prompts.

As it is, and recorded by a stand-in for graphs; tests/cuda has the same on a GPU, and test_varlen.py by kernels.
"""

import pytest
import tiny_models
import torch
from decoding_rows import LATER, PROMPTS, check_against_whole_rows, whole
from op_recorder import op_graph

from denserl.models import decoding, recording
from denserl.models.decoding import Decoder

GROWING = ("llama", "mistral-window", "gpt2")  # by a token at a time; the other families in `make faults`
FAMILIES = [family for family in tiny_models.FAMILIES if family != "gemma2"]


def probed(family: str):
    return tiny_models.probed(tiny_models.language_model(family))


@pytest.mark.parametrize(
    "family, room",
    [
        *((family, 64) for family in FAMILIES),
        *((family, 1) if family in GROWING else pytest.param(family, 1, marks=pytest.mark.long) for family in FAMILIES),
    ],
)
def test_logits_are_those_of_whole_rows(family, room, monkeypatch):
    monkeypatch.setattr(decoding, "ROOM", room)
    check_against_whole_rows(tiny_models.language_model(family), probed(family))


@pytest.mark.parametrize("family, room", [("llama", 8), ("mistral-window", 4)])
def test_recorded_logits_are_those_of_whole_rows(family, room, monkeypatch):
    records = []
    monkeypatch.setattr(decoding, "ROOM", room)
    monkeypatch.setitem(recording.RECORDS, "cpu", lambda function: records.append(function) or op_graph(function))
    check_against_whole_rows(tiny_models.language_model(family), probed(family))
    # Of four stretches between joins and leaves, and of those in which there was room for more than one token.
    assert len(records) >= 4


def test_a_prompt_of_several_rows_is_read_once():
    model, widths = probed("llama"), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    with torch.no_grad():
        Decoder(model, 4).admit(LATER)
    assert widths == [len(PROMPTS[0]) + len(PROMPTS[3])]


def test_prompts_are_read_by_tokens(monkeypatch):
    """No more than 16 at a time, or one prompt; padding to the longest counts."""
    model, widths = probed("llama"), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    monkeypatch.setattr(decoding, "PROMPT_TOKENS", 16)
    prompts = tiny_models.random_rows([20, 8, 8, 7, 6, 3], seed=2)
    prompts.insert(1, prompts[0])
    plain = tiny_models.language_model("llama")
    with torch.no_grad():
        decoder = Decoder(model, 30)
        torch.testing.assert_close(decoder.admit(prompts), whole(plain, prompts), rtol=1e-4, atol=1e-4)
        assert widths == [20, 16, 13, 3]
        # A group may have rows of several passes, and a pass rows of several groups.
        assert [len(group) for group in decoder.groups] == [2, 5]
        rows = [[*prompt, 5] for prompt in prompts]
        logits = decoder.step(torch.full((len(rows),), 5))
        torch.testing.assert_close(logits, whole(plain, rows), rtol=1e-4, atol=1e-4)
