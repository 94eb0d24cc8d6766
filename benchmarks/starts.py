"""Row 9: what it costs to come to the first step of a reward-model training, the second time against the first.

Each start is a process of its own, of one rank, with the real config and trainer; it ends after the first optimiser step. The
first one reads, checks and tokenises the pairs, the second finds them as tables. Costs are CPU seconds of the process and of
those that it forks, from where its libraries are loaded on; what loading takes is said beside.
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fixtures
from harness import Options, Result, cpu_only, limited, run_alone

SHAPE = "1x32"
PAIRS = 4000
# How many times more the first start takes, and the seconds that the second may take, libraries and all.
REACH, REACH_SECONDS = 20.0, 20.0
# Characters of prompt and responses together, by which a row of the data is one of some 400 to 800 tokens.
SIZES = range(1600, 3300)


class Started(NamedTuple):
    """Of a process up to its first step. CPU seconds with those of forked processes; bytes are its own."""

    loading: float  # seconds, of the libraries
    seconds: float  # after that
    anonymous: int  # most bytes that no file backs, above those after loading
    resident: int  # most bytes, pages of mapped files among them
    rows: int


def measure(options: Options) -> list[Result]:
    """Two starts on the same pairs."""
    cpu_only(options)
    first, second = in_two_starts(options, options.pairs or PAIRS)
    size = f"{options.pairs or PAIRS} pairs"
    note = (
        f"CPU seconds: {first.seconds:.1f}, then {second.seconds:.1f}; before that, to load the libraries, {second.loading:.1f}"
    )
    ratio = first.seconds / second.seconds
    return [
        Result(9, f"second start, {size}", second.seconds, first.seconds, ratio, (ratio, ratio), REACH, ratio >= REACH, note),
        limited(
            9, f"second start, {size}, CPU seconds with libraries (limit)", [second.loading + second.seconds], REACH_SECONDS
        ),
    ]


def in_two_starts(options: Options, pairs: int) -> tuple[Started, Started]:
    """What a start costs without tables and with them, which go afterwards."""
    model = fixtures.language_model(options, SHAPE)
    data = pairs_of_size(options, pairs)
    cache, output = options.runs / "starts/cache", options.runs / "starts/output"
    shutil.rmtree(cache, ignore_errors=True)
    found = []
    for _ in range(2):
        shutil.rmtree(output, ignore_errors=True)
        found.append(in_a_process(str(model), str(data), str(cache), str(output)))
    shutil.rmtree(cache)
    return found[0], found[1]


def pairs_of_size(options: Options, count: int) -> Path:
    """A file of so many pairs, each of some 400 to 800 tokens: rows of the data, numbered, again and again."""

    def make(folder: Path) -> None:
        rows = [json.loads(line) for line in fixtures.pairs_file(options).read_text(encoding="utf-8").splitlines()]
        keys = ("prompt", "chosen", "rejected")
        texts = [tuple(row[key] for key in keys) for row in rows if isinstance(row["chosen"], str)]
        texts = [row for row in texts if sum(map(len, row)) in SIZES and all(row) and row[1] != row[2]]
        draw = random.Random(0)
        with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
            for number in range(count):
                prompt, chosen, rejected = draw.choice(texts)
                file.write(json.dumps(dict(zip(keys, (f"{number}. {prompt}", chosen, rejected)))) + "\n")

    return fixtures.kept(options.runs / f"data/pairs-{count}", make) / "pairs.jsonl"


def in_a_process(*arguments: str) -> Started:
    """What `start` sends of itself."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=start, args=(there, *arguments))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def start(pipe, model: str, data: str, cache: str, output: str) -> None:
    """Begin a training, up to its first step, and send a `Started`."""
    from transformers import TrainerCallback

    from denserl.trainer.reward_config import RewardConfig
    from denserl.trainer.reward_trainer import RewardTrainer

    class StopAtOnce(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            control.should_training_stop = True

    import deepspeed  # noqa: F401

    lengths = {"max_length": fixtures.LONGEST, "max_prompt_length": fixtures.LONGEST_PROMPT_OF_PAIR}
    sizes = {"batch_size": 2, "micro_batch_size": 2, "save_steps": 0, "eval_steps": 0, "device": "cpu"}
    config = RewardConfig(
        model=model, data=[data], output_dir=output, cache_dir=cache, reward_level="bandit", **lengths, **sizes
    )
    loading = cpu_seconds()
    with peak_of_anonymous() as peak:
        trainer = RewardTrainer.from_config(config)
        trainer.add_callback(StopAtOnce)
        trainer.train()
    status = memory_status()
    rows = len(trainer.train_dataset) + len(trainer.eval_dataset)
    pipe.send(Started(loading, cpu_seconds() - loading, peak[1] - peak[0], status["VmHWM"], rows))
    pipe.close()


def cpu_seconds() -> float:
    """Of this process and of those that it forked and that have ended."""
    return sum(os.times()[:4])


def memory_status() -> dict[str, int]:
    """The bytes that the kernel counts for this process, by their names in its status."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


@contextlib.contextmanager
def peak_of_anonymous(pause: float = 0.02) -> Iterator[list[int]]:
    """Bytes of memory that no file backs: at the beginning, and at most, looked at every so many seconds."""
    found = [memory_status()["RssAnon"]] * 2
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(pause):
            found[1] = max(found[1], memory_status()["RssAnon"])

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield found
    finally:
        ended.set()
        looking.join()


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
