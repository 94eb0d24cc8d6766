"""Decoding against whole forwards of one row at a time: rows that join, rows that leave, groups, windows, shared prompts.

As it is, recorded (on the CPU by a stand-in for graphs), and on a GPU.
"""

import pytest
import tiny_models
import torch
from op_recorder import op_graph

from denserl.models import decoding, recording
from denserl.models.decoding import Decoder

PROMPTS = tiny_models.random_rows([12, 11, 11, 5, 2], seed=5)
LATER = [PROMPTS[0], PROMPTS[0], PROMPTS[3]]


def whole(model, rows: list[list[int]]) -> torch.Tensor:
    """(rows, V) logits after each row, each run alone, without padding or cache."""
    return torch.stack([model(torch.tensor([row])).logits[0, -1].float() for row in rows])


GROWING = ("llama", "mistral-window", "gpt2")  # by a token at a time; the other families in `make faults`
FAMILIES = [family for family in tiny_models.FAMILIES if family != "gemma2"]


@pytest.mark.parametrize(
    "family, room",
    [
        *((family, 64) for family in FAMILIES),
        *((family, 1) if family in GROWING else pytest.param(family, 1, marks=pytest.mark.long) for family in FAMILIES),
    ],
)
def test_logits_are_those_of_whole_rows(family, room, monkeypatch):
    monkeypatch.setattr(decoding, "ROOM", room)
    check_against_whole_rows(family)


@pytest.mark.parametrize("family, room", [("llama", 8), ("mistral-window", 4)])
def test_recorded_logits_are_those_of_whole_rows(family, room, monkeypatch):
    records = []
    monkeypatch.setattr(decoding, "ROOM", room)
    monkeypatch.setitem(recording.RECORDS, "cpu", lambda function: records.append(function) or op_graph(function))
    check_against_whole_rows(family)
    # Of four stretches between joins and leaves, and of those in which there was room for more than one token.
    assert len(records) >= 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_on_a_gpu_are_those_of_whole_rows(family, monkeypatch, caplog):
    monkeypatch.setattr(decoding, "ROOM", 8)
    check_against_whole_rows(family, "cuda", tolerance=1e-3)
    assert "kernel by kernel" not in caplog.text


def check_against_whole_rows(family: str, device: str = "cpu", tolerance: float = 1e-4):
    """Rows that join, leave and grow, step by step."""
    plain, generator = tiny_models.language_model(family), torch.Generator().manual_seed(0)
    model = tiny_models.probed(tiny_models.language_model(family)).to(device)
    decoder, rows = Decoder(model, 10), [list(prompt) for prompt in PROMPTS]

    def check(logits, rows):
        torch.testing.assert_close(logits.cpu(), whole(plain, rows), rtol=tolerance, atol=tolerance)

    def go_on(steps: int) -> None:
        for _ in range(steps):
            tokens = torch.randint(4, tiny_models.VOCABULARY, (len(rows),), generator=generator)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                row.append(token)
            check(decoder.step(tokens.to(device)), rows)

    with torch.no_grad():
        check(decoder.admit(PROMPTS), PROMPTS)
        assert [len(group) for group in decoder.groups] == [3, 2]
        go_on(4)
        decoder.keep([0, 2, 3])
        rows = [rows[0], rows[2], rows[3]]
        go_on(3)
        check(decoder.admit(LATER), LATER)
        rows += [list(prompt) for prompt in LATER]
        go_on(3)
        decoder.keep([3, 5])
        rows = [rows[3], rows[5]]
        go_on(3)
        assert [len(group) for group in decoder.groups] == [1, 1]


def test_a_prompt_of_several_rows_is_read_once():
    model, widths = tiny_models.probed(tiny_models.language_model("llama")), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    with torch.no_grad():
        Decoder(model, 4).admit(LATER)
    assert widths == [len(PROMPTS[0]) + len(PROMPTS[3])]


def test_prompts_are_read_by_tokens(monkeypatch):
    """No more than 16 at a time, or one prompt; padding to the longest counts."""
    model, widths = tiny_models.probed(tiny_models.language_model("llama")), []
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
