"""Outputs of the frozen reference model on a dataset, computed once, shared among ranks and cached by fingerprint.

Entropies of all response tokens, and log-probabilities of whole responses. The model comes in as a function of
batches.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch import Tensor

from denserl import distributed
from denserl.data.batching import ResponseBatch, map_responses
from denserl.data.fingerprints import rows_fingerprint
from denserl.data.schemas import SIDES
from denserl.errors import UserError
from denserl.files import flush

log = logging.getLogger(__name__)


def add_entropies(
    dataset: Dataset,
    reference_function: Callable[[], Callable[[ResponseBatch], Tensor]],
    model_fingerprint: str,
    *,
    pad_id: int,
    cache_dir: str | Path,
    max_tokens: int,
    device: torch.device | str,
    together: bool = False,
    sides: Sequence[str] = SIDES,
) -> Dataset:
    """Add the reference model's entropies and log-probabilities to tokenised responses, in columns of each of them.

    chosen_entropy, rejected_entropy: nats, one for each response token.
    chosen_logprob, rejected_logprob: log-probability of the response, summed over its tokens.

    The cache key is made of the token ids, so that one entry serves every threshold. Each rank computes
    its share; rank 0 joins them; the cache folder must be seen by all ranks.

    Args:
        dataset: columns prompt_ids, chosen_ids, rejected_ids.
        sides: what the columns of a row's responses begin with.
        reference_function: called only when nothing is stored; loads the model and returns batch -> (B, T, 2), the
            log-probability of each response token and the entropy of what predicts it.
        model_fingerprint: of the weights and how they are read (`reading_fingerprint`).
        cache_dir: where entries and fingerprints are kept.
        together: the model is in shares, so that ranks compute together.

    Raises:
        UserError: a rank does not see rank 0's cache folder.
    """
    target, is_stored = None, False
    # Rank 0 decides for all: another run may be writing the same entry.
    if distributed.rank() == 0:
        ids = dataset.select_columns(["prompt_ids", *(f"{side}_ids" for side in sides)])
        target = Path(cache_dir) / f"reference-{rows_fingerprint(ids, model_fingerprint)[:32]}"
        is_stored = target.is_dir()
    target, is_stored = distributed.gather_objects((target, is_stored))[0]
    if not is_stored:
        _compute(dataset, reference_function(), target, pad_id, max_tokens, device, together, sides)
        distributed.barrier()
    else:
        log.info("reference model: found %s", target)
    stored = load_from_disk(str(_seen(target)))
    return concatenate_datasets([dataset, stored], axis=1)


def _compute(
    dataset: Dataset,
    function: Callable[[ResponseBatch], Tensor],
    target: Path,
    pad_id: int,
    max_tokens: int,
    device: torch.device | str,
    together: bool,
    sides: Sequence[str],
) -> None:
    """Every rank writes its share beside the target; rank 0 joins the shares and renames the whole into place."""
    prompts = list(dataset["prompt_ids"]) * len(sides)
    responses = [row for side in sides for row in dataset[f"{side}_ids"]]
    # Of responses that are in several pairs of a prompt it is asked once.
    first, place = _distinct(prompts, responses)
    prompts, responses = ([rows[i] for i in first] for rows in (prompts, responses))
    rank, world = distributed.rank(), distributed.world_size()
    work = _work_folder(target)
    values = map_responses(
        prompts,
        responses,
        function,
        pad_id=pad_id,
        max_tokens=max_tokens,
        device=device,
        progress="reference model",
        together=together and distributed.world_size() > 1,
    )
    np.savez(
        work / f"rank{rank}.npz",
        rows=np.array(list(values), dtype=np.int64),
        lengths=np.array([len(v) for v in values.values()], dtype=np.int64),
        values=np.concatenate([*values.values(), np.zeros((0, 2), np.float32)]),
    )
    distributed.barrier()
    if rank == 0:
        _join(work, target, place, world, sides)


def _distinct(prompts: list[list[int]], responses: list[list[int]]) -> tuple[list[int], list[int]]:
    """The rows of different ids, and for each of all rows its number among them."""
    number: dict[bytes, int] = {}
    place: list[int] = []
    first: list[int] = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids = np.array([len(prompt), *prompt, *response], dtype=np.int64)
        place.append(number.setdefault(hashlib.blake2b(ids.tobytes(), digest_size=16).digest(), len(number)))
        if len(number) > len(first):
            first.append(row)
    return first, place


def _work_folder(target: Path) -> Path:
    """A folder beside the target for this run's shares, the same on all ranks; other runs may be at the same rows."""
    name = ""
    if distributed.rank() == 0:
        target.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)
    return _seen(Path(distributed.gather_objects(name)[0]))


def _seen(folder: Path) -> Path:
    """The folder, which rank 0 has. UserError on a rank that does not see it."""
    if not folder.is_dir():
        raise UserError(
            f"{folder.parent} is not the same folder on all hosts: rank {distributed.rank()} does not see {folder.name}",
            "give a `cache_dir` that all hosts share",
        )
    return folder


def _join(work: Path, target: Path, place: list[int], world: int, sides: Sequence[str]) -> None:
    """place: for each response, all of the first side first, its number in the shares."""
    rows = len(place) // len(sides)
    distinct: list = [None] * (max(place, default=-1) + 1)
    for rank in range(world):
        with np.load(work / f"rank{rank}.npz", allow_pickle=False) as share:
            pieces = np.split(share["values"], np.cumsum(share["lengths"])[:-1]) if len(share["rows"]) else []
            for row, piece in zip(share["rows"], pieces, strict=True):
                distinct[row] = piece
    found = [distinct[number] for number in place]
    columns: dict[str, list] = {}
    for i, side in enumerate(sides):
        own = found[i * rows : (i + 1) * rows]
        columns[f"{side}_entropy"] = [piece[:, 1] for piece in own]
        columns[f"{side}_logprob"] = [piece[:, 0].sum(dtype=np.float64) for piece in own]
    joined = work / "joined"
    Dataset.from_dict(columns).save_to_disk(str(joined))
    (joined / "origin.json").write_text(json.dumps({"rows": rows, "ranks": world}))
    # After a power failure the target must be complete or absent.
    for path in (*joined.iterdir(), joined):
        flush(path)
    try:
        os.replace(joined, target)
    except OSError:
        # Another run was first, with the same result.
        if not target.is_dir():
            raise
    shutil.rmtree(work)
    log.info("reference model: stored in %s", target)
