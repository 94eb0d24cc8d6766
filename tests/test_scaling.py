"""What the scaling benchmark makes of its measurements, on times and peaks made by formula."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import scaling
from harness import Options
from scaling import Size, memory_growth, quadratic_part, sized, time_growth

TOKENS = np.array([512, 1024, 2048, 4096, 8192], dtype=float)


def test_the_quadratic_part_of_a_time_is_found():
    attention = 3e-9 * TOKENS**2
    assert quadratic_part(TOKENS, 0.02 + 1e-4 * TOKENS + attention) == pytest.approx(attention, rel=1e-6)
    # Less than linear: there is no attention to take off.
    assert (quadratic_part(TOKENS, 1e-4 * TOKENS**0.8) == 0).all()


@pytest.mark.parametrize("power, met", [(1.0, True), (1.2, False)])
def test_growth_of_time_is_that_of_further_tokens(power, met):
    sizes = [sized("RM step", "batch", doubling) for doubling in range(5)]
    # Half a second whatever the size does not count.
    result = time_growth(Options(), "batch", sizes, [[0.5 + 1e-4 * size.tokens**power] for size in sizes])
    # Sizes are 1, 2, 4, 8 and 16 times the first.
    expected = (16**power - 8**power) / 8 / ((8**power - 1) / 7)
    assert result.ratio == pytest.approx(expected) and result.met == met


def test_growth_of_memory_is_that_of_further_tokens():
    sizes = [sized("RM step", "length", doubling) for doubling in range(5)]
    assert [size.tokens for size in sizes] == TOKENS.tolist()
    # What does not grow is not counted.
    flat = memory_growth("length", sizes, [10**8 + 1000 * size.tokens for size in sizes])
    steep = memory_growth("length", sizes, [10**8 + size.tokens**2 for size in sizes])
    assert flat.ratio == pytest.approx(1) and flat.met
    # (8192^2 - 4096^2) / 4096 against (1024^2 - 512^2) / 512.
    assert steep.ratio == pytest.approx(8) and not steep.met


def test_pairs_have_the_tokens_that_are_counted():
    size = Size("RM step", 6, 64)
    rows = scaling.random_pairs(size.sequences // 2, size.length, 100)
    lengths = [len(row["prompt_ids"]) + len(row[f"{side}_ids"]) for row in rows for side in ("chosen", "rejected")]
    assert lengths == [64] * 6 and sum(lengths) == size.tokens
    assert all(len(row["chosen_ids"]) == len(row["chosen_entropy"]) for row in rows)
