"""Row 14: memory of attention on the CPU path for long rows: two that share a prompt, and one with a window.

One layer's forward and backward pass, of queries, keys and values made at random. Counted are the tensors that live together,
those apart that the pass is given; what a kernel takes and gives back within one operation is not seen.
"""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from harness import Options, Result, cpu_only, limited, run_alone

from denserl.data.batching import pad_responses
from denserl.memory.meta_pass import LiveBytes
from denserl.models.packing import Packing

HEADS, KEY_HEADS, WIDTH = 4, 2, 32
# A pass may need so many times the memory of one of half the tokens, for each of its tokens; and such a share of a dense mask.
REACH_GROWTH, REACH_MASKS = 1.05, 0.1
MIB = 2**20


class Case(NamedTuple):
    """Rows with a prompt in common and responses of one length; window: of attention, in tokens, or None."""

    name: str
    prompt: int
    response: int
    rows: int
    window: int | None

    def dense(self) -> int:
        """Bytes of fp32 masks of a number for each query and key, where plain causal attention does not say what is seen."""
        masked = self.rows if self.window else self.rows - 1
        return 4 * masked * self.response * (self.prompt + self.response)


CASES = (Case("8k + 8k shared", 8192, 8192, 2, None), Case("16k, window 4k", 0, 16384, 1, 4096))


class Found(NamedTuple):
    """Bytes."""

    masks: int
    peak: int


def measure(options: Options) -> list[Result]:
    """Masks against dense ones, and the peak of a pass against one of half the tokens (limits)."""
    cpu_only(options)
    return [result for case in CASES for result in of_case(case)]


def of_case(case: Case) -> list[Result]:
    whole = attended(case)
    half = attended(case._replace(prompt=case.prompt // 2, response=case.response // 2))
    dense = case.dense()
    growth = [whole.peak / half.peak / 2]
    note = ", ".join(
        f"{which}: masks {found.masks / MIB:.0f}, peak {found.peak / MIB:.0f} MiB"
        for which, found in (("whole", whole), ("half", half))
    )
    return [
        limited(14, f"masks, {case.name} (limit), MiB", [whole.masks / dense], REACH_MASKS, theirs=dense / MIB),
        limited(14, f"peak of a pass a token, {case.name}, against half (limit)", growth, REACH_GROWTH, note=note),
    ]  # fmt: skip


def attended(case: Case) -> Found:
    """One pass; a response's loss is the sum of all outputs."""
    batch = pad_responses([[1] * case.prompt] * case.rows, [[1] * case.response] * case.rows, 0)
    packing = Packing(batch.attention_mask, batch.shared)
    shapes = [(1, heads, len(packing.tokens), WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    module = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)
    with LiveBytes("cpu", inputs) as live:
        packing.attend(module, *inputs, sliding_window=case.window).sum().backward()
    return Found(sum(mask.nbytes for mask in packing.masks.made.values()), live.most)


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
