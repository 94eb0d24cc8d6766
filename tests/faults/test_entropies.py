"""Two ranks killed by SIGKILL while they ask the frozen model: what is asked again is the shard that each had at hand."""

import json
import time
from pathlib import Path

import tiny_models
import torch
from datasets import Dataset
from parity.ranks import environments
from real_runs import Running

from denserl import distributed
from denserl.data import reference_store
from denserl.data.reference_cache import add_entropies

SHARD, BATCH = 60, 40  # tokens
PAIRS = 40


def pairs() -> Dataset:
    lengths = [3 + 5 * i % 17 for i in range(PAIRS)]
    columns = {name: tiny_models.random_rows(lengths, seed) for seed, name in enumerate(("prompt_ids", "chosen_ids"))}
    return Dataset.from_dict({**columns, "rejected_ids": tiny_models.random_rows(lengths[::-1], 2)})


def ask(argv: list[Path]) -> None:
    """Ask a slow model that notes what it is asked, in a file of each rank."""
    notes, cache, result = argv
    torch.distributed.init_process_group("gloo")
    reference_store.SHARD_TOKENS = SHARD

    def answer(batch):
        rows = zip(batch.input_ids.tolist(), batch.response_start.tolist(), batch.response_mask.sum(1).tolist(), strict=True)
        with notes.with_suffix(f".{distributed.rank()}").open("a") as file:
            file.write("".join(json.dumps([ids[:start], ids[start : start + many]]) + "\n" for ids, start, many in rows))
        time.sleep(0.02)
        return torch.stack([-batch.response_ids / 4, batch.response_ids / 8 + batch.response_start[:, None]], -1)

    options = {"pad_id": 0, "cache_dir": cache, "max_tokens": BATCH, "device": "cpu"}
    add_entropies(pairs(), lambda: answer, "model", **options).save_to_disk(str(result.with_suffix(f".{distributed.rank()}")))


def start(folder: Path, name: str) -> list[Running]:
    argv = [folder / f"notes-{name}", folder / "cache", folder / f"result-{name}"]
    return [Running(ask, argv, folder / f"{name}-{n}.log", **given) for n, given in enumerate(environments(2))]


def asked(folder: Path, name: str) -> list[list[tuple]]:
    """Of each rank, prompts and responses in the order in which they were asked."""
    files = [folder / f"notes-{name}.{rank}" for rank in range(2)]
    lines = [file.read_text().splitlines() if file.exists() else [] for file in files]
    return [[tuple(map(tuple, json.loads(line))) for line in of_rank] for of_rank in lines]


def stored(folder: Path) -> int:
    return sum(len(Dataset.from_file(str(path))) for path in folder.glob("cache/reference/*/responses-*.arrow"))


def test_ranks_that_are_killed_ask_again_for_no_more_than_a_shard_each(tmp_path):
    ranks = start(tmp_path, "first")
    assert ranks[0].wait_until(lambda: min(map(len, asked(tmp_path, "first"))) > PAIRS / 2)
    for rank in ranks:
        rank.process.kill()
    assert [rank.ended().code for rank in ranks] == [-9, -9]
    first, kept = asked(tmp_path, "first"), stored(tmp_path)
    ranks = start(tmp_path, "second")
    assert [rank.ended().code for rank in ranks] == [0, 0], ranks[0].log.read_text()
    # A rank that has one batch less than the other repeats the first one.
    second = {row for of_rank in asked(tmp_path, "second") for row in of_rank}
    assert len(second) == 2 * PAIRS - kept
    # Of what a rank was asked, in its own order, what is asked again stands at the end, and is no more than a shard.
    for of_rank in first:
        again = [row for row in of_rank if row in second]
        assert again == of_rank[len(of_rank) - len(again) :] and 0 < len(again) < len(of_rank)
        assert sum(len(response) for _, response in again) < SHARD + BATCH
    for rank in range(2):
        for row in Dataset.load_from_disk(str(tmp_path / f"result-second.{rank}")):
            for side in ("chosen", "rejected"):
                ids = row[f"{side}_ids"]
                assert row[f"{side}_entropy"] == [id / 8 + len(row["prompt_ids"]) for id in ids]
                assert row[f"{side}_logprob"] == -sum(ids) / 4
