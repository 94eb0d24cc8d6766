"""RRM's causal augmentation: responses are paired across prompts, so that what wins whatever the prompt stands on both sides
alike (arXiv 2409.13156).

It works on rows of messages; nothing is rendered, and so nothing has to be found again in a text. What a model is asked, to
keep only rows that it has wrong, is trainer/augmented.py.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
from datasets import Dataset

from denserl.data.features import CHUNK, build_dataset
from denserl.data.schemas import SIDES, same_response
from denserl.errors import require
from denserl.streams import Purpose, stream

log = logging.getLogger(__name__)

# Numbers of the responses of an example and its two partners: its own two, then those of each partner.
OWN, FOREIGN = range(2), range(2, 6)
DECISIVE = tuple(product(OWN, FOREIGN))
NEUTRAL = tuple(combinations(FOREIGN, 2))
# Of random exchanges of partners, each of which every row takes part in: they forget their start after about log n of them.
ROUNDS = 32


def augment_pairs(pairs: Dataset, *, ratio: float = 1.0, neutrals: bool = True, seed: int = 0) -> Dataset:
    """Rows that put to each prompt x_i its own responses and those of two partners, j and k, without the pairs themselves.

    Each example makes 8 in which an own response, also the worse one, beats a foreign one (p_chosen 1), and 6 of two foreign
    ones, equally bad (p_chosen 0.5). i, j and k are of three groups; every row is j once, and k once (`partners`).

    Args:
        pairs: columns prompt, chosen, rejected, margin, p_chosen, weight, place, and `group`, whose texts part the rows; else
            prompts do.
        ratio: share of each example's rows that are kept. neutrals: whether the equal ones are made.

    Returns: the same columns; margin 0, weight and group of example i. A row of two equal responses is left out.

    Raises:
        UserError: more than a third of the pairs are of one group, so that some have no two partners; or the rows hold numbers
            that rows made of several do not have.
    """
    known = {"prompt", *SIDES, "margin", "p_chosen", "weight", "group", "place"}
    others = ", ".join(sorted(set(pairs.column_names) - known))
    require(not others, f"`augment`: an objective reads {others}, which augmented rows do not have", "leave one of the two out")
    groups = group_numbers(pairs)
    _check_groups(groups, pairs)
    rng = np.random.default_rng(stream(seed, Purpose.AUGMENTATION))
    found = partners(groups, rng)
    kinds = (*DECISIVE, *NEUTRAL) if neutrals else DECISIVE
    kept = draw_share(len(pairs), len(kinds), ratio, rng)
    made = build_dataset(_rows(pairs, found, kinds, kept), pairs.features)
    equal = int(kept.sum()) - len(made)
    log.info(
        "augmentation: %d rows of %d pairs%s", len(made), len(pairs), f"; {equal} of equal responses left out" * bool(equal)
    )
    return made


def is_unknown(chances: np.ndarray, p_chosen: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) bool: where what a model says of rows is at least `threshold` from their labels, |P - P*|.

    Args:
        chances: (n,) that the chosen response is the better one, as the model says. p_chosen: (n,) the same as it is, 1 or 0.5.
    """
    return np.abs(chances - p_chosen) >= threshold


def group_numbers(pairs: Dataset) -> np.ndarray:
    """(n,) numbers of the rows' groups, from 0 on: of the column `group`, or of the prompts."""
    key = "group" if "group" in pairs.column_names else "prompt"
    numbers: dict[bytes, int] = {}
    # Digests, since the texts are in memory already.
    digests = (hashlib.blake2b(_as_bytes(row[key]), digest_size=16).digest() for row in pairs.select_columns(key))
    return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], dtype=np.int64)


def partners(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) rows j and k for each row i, such that i, j, k are of three groups, and each column has every row once.

    There are such where no group has more than a third of the rows: in each of the n triples it stands once at most, and in all
    of them three times for each of its rows. Then rows in order of their groups, on a circle, meet those a third and two thirds
    further on. From there partners are exchanged at random, as far as groups allow; of five groups or more, all are as likely.

    Args:
        groups: (n,) the number of each row's group.
    """
    rows = len(groups)
    circle = np.lexsort((rng.random(rows), rng.permutation(groups.max() + 1)[groups]))
    found = np.empty((rows, 2), dtype=np.int64)
    for side in range(2):
        found[circle, side] = np.roll(circle, -(side + 1) * (rows // 3))
    for side in [0, 1] * ROUNDS:
        a, b = rng.permutation(rows)[: rows // 2 * 2].reshape(2, -1)
        # The groups that neither may meet: their own, and that of the partner they keep.
        fits = np.ones(len(a), dtype=bool)
        for one, other in ((a, b), (b, a)):
            new = groups[found[other, side]]
            fits &= (new != groups[one]) & (new != groups[found[one, 1 - side]])
        a, b = a[fits], b[fits]
        found[a, side], found[b, side] = found[b, side], found[a, side]
    return found


def draw_share(rows: int, kinds: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(rows, kinds) bool: of each row so many kinds, at random, that on average they are `ratio` of all, to less than one."""
    order = rng.random((rows, kinds)).argsort(axis=1)
    return order < np.floor(ratio * kinds + rng.random((rows, 1)))


def _rows(pairs: Dataset, found: np.ndarray, kinds: tuple, kept: np.ndarray) -> Iterator[dict]:
    """The kept rows of every example, in order; texts are read by the chunk."""
    for first in range(0, len(pairs), CHUNK):
        block = np.arange(first, min(first + CHUNK, len(pairs)))
        examples = [pairs.select(rows) for rows in (block, found[block, 0], found[block, 1])]
        for number, (own, *others) in zip(block, zip(*examples, strict=True), strict=True):
            responses = [row[side] for row in (own, *others) for side in SIDES]
            place = f"{own['place']} beside {' and '.join(row['place'] for row in others)}"
            for (a, b), is_kept in zip(kinds, kept[number], strict=True):
                if is_kept and not same_response(responses[a], responses[b]):
                    p_chosen = 1.0 if a in OWN else 0.5
                    made = {"chosen": responses[a], "rejected": responses[b], "p_chosen": p_chosen, "margin": 0.0}
                    yield {**own, **made, "place": place}


def _check_groups(groups: np.ndarray, pairs: Dataset) -> None:
    sizes = np.bincount(groups)
    most, whose = int(sizes.max()), pairs[int(np.argmax(groups == sizes.argmax()))]["place"]
    of_groups = f"`augment` rrm: the {len(groups)} pairs are of {len(sizes)} groups"
    fix = "give more of other groups, or let `augment_group` name a column whose texts say what belongs together"
    require(len(sizes) >= 3, f"{of_groups}; each needs partners of two others", fix)
    require(
        3 * most <= len(groups),
        f"{of_groups}, of which that of {whose} has {most}; with more than a third of all some have no two partners of others",
        fix,
    )


def _as_bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
