"""A decoder's logits against whole forwards of one row at a time."""

import tiny_models
import torch

from denserl.models.decoding import Decoder

PROMPTS = tiny_models.random_rows([12, 11, 11, 5, 2], seed=5)
LATER = [PROMPTS[0], PROMPTS[0], PROMPTS[3]]


def whole(model, rows: list[list[int]]) -> torch.Tensor:
    """(rows, V) logits after each row, each run alone, without padding or cache."""
    return torch.stack([model(torch.tensor([row])).logits[0, -1].float() for row in rows])


def check_against_whole_rows(plain, model, tolerance: float = 1e-4):
    """Rows that join, leave and grow, step by step.

    Args:
        plain: in fp32 on the CPU. model: of the same weights, packed, on any device.
        tolerance: of a row's logits, relative to them.
    """
    generator = torch.Generator().manual_seed(0)
    decoder, rows = Decoder(model, 10), [list(prompt) for prompt in PROMPTS]

    def check(logits, rows):
        expected = whole(plain, rows)
        assert ((logits.cpu() - expected).norm(dim=1) / expected.norm(dim=1)).max() < tolerance

    def go_on(steps: int) -> None:
        for _ in range(steps):
            tokens = torch.randint(4, tiny_models.VOCABULARY, (len(rows),), generator=generator)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                row.append(token)
            check(decoder.step(tokens.to(model.device)), rows)

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
