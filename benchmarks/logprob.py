"""Row 2: log-probabilities and entropies of given tokens, against logits of all positions, log_softmax, gather and entropy.

Time is taken in turn in this process, peak memory in a process of its own for each side and pass. On CUDA in bf16.
"""

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from harness import Options, Pairs, Result, alternate, floors, limited, run_alone, timed
from torch import Tensor, nn

from denserl.models.logprob import chunked_logprob_entropy

# Ours at most so many times the other side's.
TIME = {"forward": 1.0, "gradient": 1.35}
MEMORY = {"forward": 1 / 8, "gradient": 1 / 4}
# Largest difference, as a share of the largest value.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Case(NamedTuple):
    """A head, how many positions it is read at, and how often that is timed."""

    vocabulary: int
    hidden: int
    positions: int
    repeats: int

    def __str__(self) -> str:
        return f"vocabulary {self.vocabulary}, hidden {self.hidden}, {self.positions} positions"


CASES = {
    "cpu": (Case(32000, 1024, 1024, 5), Case(32000, 4096, 256, 3), Case(128256, 1024, 256, 3), Case(128256, 4096, 256, 2)),
    "cuda": tuple(Case(v, h, 8192, 10) for v in (32000, 128256) for h in (1024, 4096)),
}


class Work:
    """One case's head, hidden states and tokens, and both ways to read them."""

    def __init__(self, case: Case, device: str):
        torch.manual_seed(0)
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.head = nn.Linear(case.hidden, case.vocabulary, bias=False, device=device, dtype=self.dtype)
        self.hidden = torch.randn(case.positions, case.hidden, device=device).to(self.dtype).requires_grad_()
        self.tokens = torch.randint(case.vocabulary, (case.positions,), device=device)

    def ours(self, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        return chunked_logprob_entropy(self.hidden, self.tokens, self.head, lambda logits: logits, 1.0, with_entropy)

    def plain(self, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        logprobs = torch.log_softmax(self.head(self.hidden).float(), -1)
        own = logprobs.gather(1, self.tokens[:, None]).squeeze(1)
        return own, -(logprobs.exp() * logprobs).sum(-1) if with_entropy else None

    def run(self, side: str, passes: str) -> tuple[Tensor, ...]:
        """Forward: log-probabilities and entropies. Gradient: of the hidden states and the head, for the log-probabilities."""
        of = {"ours": self.ours, "plain": self.plain}[side]
        if passes == "forward":
            with torch.no_grad():
                return of(True)
        self.hidden.grad = self.head.weight.grad = None
        of(False)[0].sum().backward()
        return self.hidden.grad, self.head.weight.grad


def measure(options: Options) -> list[Result]:
    """Log-probability and entropy of given tokens: time and peak memory, forward and with gradient."""
    return [result for case in CASES[options.device] for of in (_times, _peaks) for result in of(case, options)]


def _times(case: Case, options: Options) -> list[Result]:
    work, results = Work(case, options.device), []
    for passes, reach in TIME.items():
        difference = _difference(work, passes)
        ours, plain = (timed(partial(work.run, side, passes)) for side in ("ours", "plain"))
        pairs = alternate(ours, plain, options.repeats or case.repeats, warm_up=0)  # the comparison was one
        note = f"{_floors(case, passes, pairs, work)}\nlargest difference {difference:.1e} of the largest value"
        results.append(_limit(f"{passes} seconds, {case}", pairs.ours, pairs.theirs, reach, note))
    return results


def _peaks(case: Case, options: Options) -> list[Result]:
    results = []
    for passes, reach in MEMORY.items():
        ours, plain = ([_in_new_process(case, side, passes, options)] for side in ("ours", "plain"))
        kept = "weights" if passes == "forward" else "weights and their gradient"
        results.append(_limit(f"{passes} peak MB above {kept}, {case}", ours, plain, reach, ""))
    return results


def _limit(name: str, ours: list[float], theirs: list[float], reach: float, note: str) -> Result:
    shares = [a / b for a, b in zip(ours, theirs, strict=True)]
    return limited(2, f"limit: {name}", shares, reach, theirs=sorted(theirs)[len(theirs) // 2], note=note)


def _difference(work: Work, passes: str) -> float:
    """The largest difference between the sides, as a share of the largest value; AssertionError above the tolerance."""
    pairs = zip(work.run("ours", passes), work.run("plain", passes), strict=True)
    difference = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    assert difference <= TOLERANCE[work.dtype], f"the two sides differ by {difference:.1e} of the largest value"
    return difference


def _floors(case: Case, passes: str, pairs: Pairs, work: Work) -> str:
    """Of one product, or of three, and of reading the weight once, or also writing its gradient."""
    products, transfers = (1, 1) if passes == "forward" else (3, 3)
    weight = case.vocabulary * case.hidden
    measured = sorted(pairs.ours)[len(pairs.ours) // 2]
    moved = transfers * weight * work.dtype.itemsize
    return floors(measured, 2 * products * case.positions * weight, moved, work.hidden.device.type, work.dtype)


def _in_new_process(case: Case, side: str, passes: str, options: Options) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_megabytes, case, side, passes, options.device, options.threads).result()


def peak_megabytes(case: Case, side: str, passes: str, device: str, threads: int) -> float:
    """Peak memory of one run above what stands before it, less the weight's gradient, which either side leaves behind."""
    torch.set_num_threads(threads)
    work = Work(case, device)
    # What the libraries set up once is not counted.
    small = Work(Case(256, 256, 256, 1), device)
    for each in ("ours", "plain"):
        small.run(each, passes)
    before = _memory(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak (VmHWM) anew
    work.run(side, passes)
    gradient = work.head.weight.nbytes if passes == "gradient" else 0
    return (_memory(device, peak=True) - before - gradient) / 2**20


def _memory(device: str, peak: bool = False) -> int:
    """Bytes in use, or the most since the peak was reset."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    field = "VmHWM" if peak else "VmRSS"
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
