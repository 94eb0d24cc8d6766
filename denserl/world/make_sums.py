"""Draws the data sets of the world of sums and writes them in the ordinary formats any user would bring.

Problems, their solutions and what is right in them are in `sums.py`.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from denserl.models.tiny import new_llama, train_tokenizer
from denserl.world import sums
from denserl.world.sums import Problem

HELD_OUT_SHARE = 0.1  # of problems
VOCAB_SIZE = 512  # more than the language needs
# A number is one token, the same wherever it stands: its spaces belong to what stands beside it.
PIECES = r"[0-9]|[^0-9]+"
Row = Callable[[random.Random, Problem, float], dict]  # of a stream, a problem and the error rate


@dataclass(frozen=True)
class SumSizes:
    """Rows of each file, and the size of the base model."""

    sft: int = 4000
    steps: int = 12000
    heldout_steps: int = 1000
    outcomes: int = 12000
    heldout_outcomes: int = 1000
    pairs: int = 4000
    heldout_pairs: int = 500
    heldout_answers: int = 200
    prompts: int = 4000
    heldout_prompts: int = 256
    hidden_size: int = 64
    num_layers: int = 3


@dataclass(frozen=True)
class Solution:
    """A solution as the rows of data sets have it."""

    problem: Problem
    totals: list[int]

    @classmethod
    def drawn(cls, rng: random.Random, problem: Problem, error_rate: float) -> "Solution":
        return cls(problem, sums.draw_totals(rng, problem, error_rate))

    @property
    def steps(self) -> list[str]:
        return sums.write_steps(self.problem, self.totals)

    @property
    def text(self) -> str:
        return sums.SEPARATOR.join(self.steps)

    @property
    def labels(self) -> list[int]:
        """1 where a step's total is the true one."""
        return [int(total == true) for total, true in zip(self.totals, self.problem.totals, strict=True)]

    @property
    def is_right(self) -> bool:
        """Whether the last total is."""
        return bool(self.labels[-1])


def right(rng: random.Random, problem: Problem, error_rate: float) -> dict:
    """A demonstration without errors."""
    return {"prompt": problem.prompt, "response": Solution(problem, problem.totals).text}


def erring(rng: random.Random, problem: Problem, error_rate: float) -> dict:
    """A demonstration with errors."""
    return {"prompt": problem.prompt, "response": Solution.drawn(rng, problem, error_rate).text}


def labelled(rng: random.Random, problem: Problem, error_rate: float) -> dict:
    """A record of steps, each labelled as right or wrong."""
    drawn = Solution.drawn(rng, problem, error_rate)
    about = {"final": int(drawn.is_right), "answer": str(problem.totals[-1])}
    return {"prompt": problem.prompt, "steps": drawn.steps, "labels": drawn.labels, **about}


def soft_labelled(rng: random.Random, problem: Problem, error_rate: float) -> dict:
    """A record of steps, each labelled with the chance that its solution ends right."""
    totals = sums.draw_totals(rng, problem, error_rate)
    row = {"prompt": problem.prompt, "steps": sums.write_steps(problem, totals)}
    return {**row, "labels": sums.chances(problem, totals, error_rate)}


def judged(rng: random.Random, problem: Problem, error_rate: float) -> dict:
    """A solution and whether it ends right."""
    drawn = Solution.drawn(rng, problem, error_rate)
    return {"question": problem.prompt, "answer": drawn.text, "label": int(drawn.is_right)}


def compared(rng: random.Random, problem: Problem, error_rate: float) -> dict:
    """A pair of solutions, the chosen one without errors and the rejected one ending wrong."""
    wrong = Solution.drawn(rng, problem, error_rate)
    while wrong.is_right:
        wrong = Solution.drawn(rng, problem, error_rate)
    return {"prompt": problem.prompt, "chosen": Solution(problem, problem.totals).text, "rejected": wrong.text}


def located(rng: random.Random, problem: Problem, error_rate: float) -> dict:
    """A solution and the place of its first error, in the columns of ProcessBench."""
    drawn = Solution.drawn(rng, problem, error_rate)
    about = {"id": f"sums-{rng.getrandbits(48):012x}", "generator": "denserl make-world", "problem": problem.prompt}
    first = next((place for place, label in enumerate(drawn.labels) if not label), -1)
    return {**about, "steps": drawn.steps, "final_answer_correct": drawn.is_right, "label": first}


def answered(rng: random.Random, problem: Problem, error_rate: float) -> dict:
    """A problem with many solutions, each labelled as ending right or wrong."""
    drawn = [Solution.drawn(rng, problem, error_rate) for _ in range(16)]
    return {"prompt": problem.prompt, "answers": [s.text for s in drawn], "label": [int(s.is_right) for s in drawn]}


def asked(rng: random.Random, problem: Problem, error_rate: float) -> dict:
    """A problem."""
    return {"prompt": problem.prompt}


class File(NamedTuple):
    """A file of rows. stream: whose random numbers it is drawn with, where two files hold the same solutions."""

    name: str
    row: Row
    size: str
    stream: str = ""


# Of problems that are held out, which occur in no file of the others.
HELD_OUT = (
    File("steps_test", labelled, "heldout_steps"),
    File("processbench", located, "heldout_steps"),
    File("outcomes_test", judged, "heldout_outcomes"),
    File("preferences_test", compared, "heldout_pairs"),
    File("answers_test", answered, "heldout_answers"),
    File("prompts_heldout", asked, "heldout_prompts"),
)
TRAINING = (
    File("sft", right, "sft"),
    File("sft_erring", erring, "sft"),
    File("steps_train", labelled, "steps"),
    File("steps_train_soft", soft_labelled, "steps", "steps_train"),
    File("outcomes_train", judged, "outcomes"),
    File("preferences_train", compared, "pairs"),
    File("prompts_train", asked, "prompts"),
)


def write_world(output_dir: str | Path, seed: int = 0, sizes: SumSizes = SumSizes(), error_rate: float = 0.15) -> dict:
    """Write the data files of the world of sums and its base model to output_dir; returns what `world.json` holds.

    error_rate: probability that a step of a solution with errors errs.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*HELD_OUT, *TRAINING):
        rng = random.Random(f"{seed} {file.stream or file.name}")  # one stream per file: the size of one changes no other
        problems = _problems(rng, seed, file in HELD_OUT)
        rows = [file.row(rng, next(problems), error_rate) for _ in range(getattr(sizes, file.size))]
        (folder / f"{file.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = train_tokenizer(_tokenizer_texts(), VOCAB_SIZE, 1, PIECES)
    model = new_llama(tokenizer, sizes.hidden_size, sizes.num_layers, max_position_embeddings=256, seed=seed)
    tokenizer.save_pretrained(folder / "base")
    model.save_pretrained(folder / "base")
    world = {"kind": "sums", "seed": seed, "sizes": asdict(sizes), "error_rate": error_rate}
    (folder / "world.json").write_text(json.dumps(world, indent=2) + "\n", encoding="utf-8")
    return world


def is_held_out(problem: Problem, seed: int) -> bool:
    """Whether a problem is among those held out in the world of a seed, whatever else is drawn."""
    return random.Random(f"{seed} {problem.prompt}").random() < HELD_OUT_SHARE


def _problems(rng: random.Random, seed: int, held_out: bool) -> Iterator[Problem]:
    while True:
        problem = sums.draw_problem(rng)
        if is_held_out(problem, seed) == held_out:
            yield problem


def _tokenizer_texts() -> list[str]:
    """What stands between numbers."""
    problem = Problem(4, (2, -1))
    return [problem.prompt, sums.SEPARATOR.join(sums.write_steps(problem, problem.totals))]
