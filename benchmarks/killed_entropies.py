"""Row 12: what is asked of the frozen model a second time, where a run is killed in the middle of its entropies.

One process after the other asks a random model of the same pairs and is ended by SIGKILL on the way, until one comes to the
end. Shards are small, for there to be many; what is lost is a part of one, whatever its size.
"""

import multiprocessing
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import fixtures
import torch
from datasets import Dataset
from harness import Options, Result, limited, run_alone
from transformers import AutoTokenizer

from denserl.data import reference_store
from denserl.data.batching import ResponseBatch
from denserl.data.reference_cache import FOLDER, add_entropies
from denserl.models.loading import load_policy
from denserl.models.scoring import response_logprobs_entropies

SHAPE, PAIRS = "4x128", 64
SHARD_TOKENS, BATCH_TOKENS = 4000, 512
# What of the responses has been asked when a run is killed.
MOMENTS = (0.3, 0.5, 0.8)
REACH = 1.0
SECONDS = 300


class Responses(NamedTuple):
    """How many, and their tokens."""

    rows: int
    tokens: int


def measure(options: Options) -> list[Result]:
    """What a kill costs in tokens of responses that are asked again, against what is asked until a shard is written."""
    shape = options.models(SHAPE)[0]
    policy = fixtures.language_model(options, shape)
    _, pairs = fixtures.pairs(options, AutoTokenizer.from_pretrained(policy), PAIRS)
    columns = {name: [row[name] for row in pairs] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    with TemporaryDirectory() as scratch:
        cache, notes = Path(scratch) / "cache", Path(scratch) / "notes"
        lost = [killed(int(2 * PAIRS * moment), columns, policy, cache, notes, options) for moment in MOMENTS]
        rest = killed(None, columns, policy, cache, notes, options)
        shards, batch = stored(cache), max(part.tokens for part in noted(notes))
    assert rest == Responses(0, 0), f"{rest} are not stored at the end"
    whole, at_hand = total(shards), SHARD_TOKENS + batch
    again = ", ".join(f"{part.rows} ({part.tokens} tokens)" for part in lost)
    note = f"{whole.rows} responses, {whole.tokens} tokens in {len(shards)} shards; asked again after the kills: {again}"
    most = max(part.tokens for part in lost) / at_hand
    return [limited(12, "asked again after a kill, in shards, limit", [most], REACH, note=note)]


def killed(moment: int | None, columns: dict, policy: Path, cache: Path, notes: Path, options: Options) -> Responses:
    """What was asked in vain by a process that is killed when it has asked so many responses; None: it comes to its end.

    moment: counts what the store has already.
    """
    before = total(stored(cache))
    notes.write_text("")
    process = multiprocessing.get_context("spawn").Process(target=ask, args=(columns, policy, cache, notes, options))
    process.start()
    until = time.monotonic() + SECONDS
    while process.is_alive() and time.monotonic() < until:
        if moment is not None and before.rows + total(noted(notes)).rows >= moment:
            process.kill()
        time.sleep(0.001)
    process.join()
    assert (process.exitcode == 0) == (moment is None), f"a process ended with status {process.exitcode}"
    after, during = total(stored(cache)), total(noted(notes))
    return Responses(during.rows - (after.rows - before.rows), during.tokens - (after.tokens - before.tokens))


def ask(columns: dict, policy: Path, cache: Path, notes: Path, options: Options) -> None:
    """Entropies of the pairs, as a command asks for them; each batch is noted before it is answered."""
    reference_store.SHARD_TOKENS = SHARD_TOKENS
    torch.set_num_threads(options.threads)

    def load():
        model = load_policy(str(policy), "fp32").eval().to(options.device)

        def answer(batch: ResponseBatch) -> torch.Tensor:
            with notes.open("a") as file:
                file.write(f"{len(batch.response_mask)} {int(batch.response_mask.sum())}\n")
            return response_logprobs_entropies(model, batch)

        return answer

    settings = {"pad_id": 0, "cache_dir": cache, "max_tokens": BATCH_TOKENS, "device": options.device}
    add_entropies(Dataset.from_dict(columns), load, policy.name, **settings)


def noted(notes: Path) -> list[Responses]:
    """What each batch asked for, where its line is whole."""
    return [Responses(*map(int, line.split())) for line in notes.read_text().splitlines(True) if line.endswith("\n")]


def stored(cache: Path) -> list[Responses]:
    """What each shard holds."""
    shards = [Dataset.from_file(str(path)) for path in cache.glob(f"{FOLDER}/*/{reference_store.SHARDS}-*.arrow")]
    return [Responses(len(shard), sum(map(len, shard["entropy"]))) for shard in shards]


def total(parts: list[Responses]) -> Responses:
    return Responses(sum(part.rows for part in parts), sum(part.tokens for part in parts))


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
