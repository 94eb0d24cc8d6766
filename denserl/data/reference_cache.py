"""Outputs of the frozen reference model on a dataset: each response is asked once, by all ranks, and kept as it comes.

Entropies of all response tokens, and log-probabilities of whole responses. The model comes in as a function of batches; how its
answers are kept is said in reference_store.py.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from denserl import distributed
from denserl.data.batching import ResponseBatch, in_rank_batches, length_batches, pad_responses
from denserl.data.distinct import PROMPT, Distinct, distinct_responses, take
from denserl.data.fingerprints import DIGEST, prompt_key, response_key
from denserl.data.reference_store import ReferenceStore, ShardWriter
from denserl.data.schemas import SIDES
from denserl.errors import require

log = logging.getLogger(__name__)

FOLDER = "reference"  # of the cache


class _Work(NamedTuple):
    """What the model is asked for: numbers of responses, all of the first side first, and the tokens that a batch has."""

    batches: list[list[int]]
    tokens: list[int]


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

    What the model says is stored by the ids of prompt and response: whatever has been asked serves every threshold, and every
    data set that the response is in. Each rank asks for its share of what is missing, and writes it while it goes on. The
    columns are memory-mapped from a table that rank 0 makes of that; the cache folder must be seen by all ranks.

    Args:
        dataset: columns prompt_ids, chosen_ids, rejected_ids.
        sides: what the columns of a row's responses begin with.
        reference_function: called only when something is missing; loads the model and returns batch -> (B, T, 2), the
            log-probability of each response token and the entropy of what predicts it.
        model_fingerprint: of the weights and how they are read (`reading_fingerprint`).
        cache_dir: where answers are kept.
        together: the model is in shares, so that ranks compute together.

    Raises:
        UserError: a rank does not see rank 0's cache folder.
    """
    folder = Path(cache_dir) / FOLDER / hashlib.blake2b(model_fingerprint.encode(), digest_size=DIGEST).hexdigest()
    asked = dataset.select_columns([PROMPT, *(f"{side}_ids" for side in sides)])
    # Rank 0 decides for all: another run may be writing to the store.
    home = _Home(folder, asked, sides)
    table, work = distributed.by_rank_0(lambda: home.look_up(max_tokens))
    distributed.check_shared(folder, "cache_dir")
    if table is None:
        if work.batches:
            ask = functools.partial(_ask, asked, sides, work, reference_function, folder, pad_id, device, together)
            distributed.in_own_time(ask)
        table = distributed.by_rank_0(home.write_table)
    log.info("reference model: what it says is in %s", table)
    return concatenate_datasets([dataset, Dataset.from_file(str(table))], axis=1)


class _Home:
    """What rank 0 knows: the responses, and what the store has of them."""

    def __init__(self, folder: Path, dataset: Dataset, sides: Sequence[str]):
        self.folder, self.dataset, self.sides = folder, dataset, sides

    @functools.cached_property
    def store(self) -> ReferenceStore:
        return ReferenceStore(self.folder)

    @functools.cached_property
    def responses(self) -> Distinct:
        return distinct_responses(self.dataset, self.sides)

    @functools.cached_property
    def name(self) -> str:
        """What tells the table of these responses, in the order of the rows, from others of the model."""
        digest = hashlib.blake2b(" ".join(self.sides).encode(), digest_size=DIGEST)
        digest.update(self.responses.place.astype(np.int64).tobytes())
        digest.update(self.responses.keys.buffers()[1])
        return digest.hexdigest()

    def look_up(self, max_tokens: int) -> tuple[Path | None, _Work]:
        """The table, or what is to be asked before it can be written."""
        if table := self.store.table(self.name):
            return table, _Work([], [])
        keys, first, tokens = self.responses.keys, self.responses.first, self.responses.lengths
        missing = self.store.places(keys) < 0
        said = "reference model: of %d responses, %d are in %s; left to ask: %d tokens, prompts included"
        log.info(said, len(missing), len(missing) - missing.sum(), self.folder, tokens[missing].sum())
        batches = missing_batches(tokens, self.responses.prompts, missing, max_tokens)
        return None, _Work([first[rows].tolist() for rows in batches], [int(tokens[rows].sum()) for rows in batches])

    def write_table(self) -> Path:
        places = self.store.places(self.responses.keys)
        require((places >= 0).all(), f"shards have gone from {self.folder} while they were written", "start again")
        of_sides = places[self.responses.place].reshape(len(self.sides), -1)
        return self.store.write_table(self.name, dict(zip(self.sides, of_sides, strict=True)))


def missing_batches(lengths: np.ndarray, prompts: np.ndarray, missing: np.ndarray, max_tokens: int) -> list[list[int]]:
    """Batches (`length_batches`) of the rows that are missing.

    What is missing of a run that was ended is computed in the batches that it would have had, for the same numbers to the bit;
    rows that are alone among stored ones are put together. The smallest batch comes first, so that it is soon known how long
    all of them take.

    Args: (n,) each; prompts as `groups` of `length_batches`.
    """
    every = length_batches(lengths, max_tokens, prompts)
    every = [every[0][:1], every[0][1:], *every[1:]] if every else []
    batches = [batch for batch in every if batch and missing[batch].all()]
    others = missing.copy()
    others[[row for batch in batches for row in batch]] = False
    left = np.flatnonzero(others)
    batches += [left[batch].tolist() for batch in length_batches(lengths[left], max_tokens, prompts[left])]
    batches.sort(key=lambda batch: -lengths[batch].max())
    if batches:
        batches.insert(0, batches.pop(int(np.argmin([lengths[batch].sum() for batch in batches]))))
    return batches


def _ask(
    dataset: Dataset,
    sides: Sequence[str],
    work: _Work,
    reference_function: Callable[[], Callable[[ResponseBatch], Tensor]],
    folder: Path,
    pad_id: int,
    device: torch.device | str,
    together: bool,
) -> None:
    """Every rank asks for its share of the batches, and writes shards."""
    function = reference_function()

    def answers(numbers: list[int]) -> list[tuple[bytes, np.ndarray]]:
        prompts, responses = take(dataset, sides, numbers, "ids")
        found = function(pad_responses(prompts, responses, pad_id).to(device)).float().cpu().numpy()
        keys = [response_key(prompt_key(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]
        return [(key, found[slot, : len(responses[slot])]) for slot, key in enumerate(keys)]

    shares = together and distributed.world_size() > 1
    with ShardWriter(folder) as shards:
        for part in in_rank_batches(answers, *work, progress="reference model", together=shares):
            for key, values in part:
                shards.add(key, values)
