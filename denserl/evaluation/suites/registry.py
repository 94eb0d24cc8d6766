"""The suites by name: where their rows are, how a row becomes an item, and their headline numbers.

Scoring, intervals and result files are the same for all suites (denserl/evaluation/items.py, results.py).
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from denserl.data.bad_rows import BadRow, BadRows, LeftOut
from denserl.data.columns import Columns
from denserl.data.readers import not_read
from denserl.data.schemas import P_CHOSEN, SIDES, WEIGHT, as_preference, unread
from denserl.errors import UserError, require
from denserl.evaluation.items import Answer, Item, by_verdicts
from denserl.evaluation.results import Special, Suite
from denserl.evaluation.step_errors import StepSuite
from denserl.evaluation.stored_answers import AnswerSuite
from denserl.evaluation.strength import strengths_of
from denserl.evaluation.suites import (
    bon_answers,
    hhh,
    judgebench,
    llmbar,
    mrewardbench,
    mtbench,
    ppe,
    processbench,
    rewardbench,
    rmb,
    rmbench,
    votes,
)
from denserl.evaluation.suites.rows import ALL, Row, as_items, identity, local, read_files, read_parts, read_split, text_alone
from denserl.plugins import load_object
from denserl.terminal import visible

log = logging.getLogger(__name__)


class AnySuite(Protocol):
    """What a suite is to the command: where its rows are, what they are read as, and how that is judged.

    Items have an id, a subset and a place; judged ones have an `item`. The fields are as of `Suite`.
    """

    @property
    def rows(self) -> Callable[[str, str | None, BadRows], Iterator[Row]]: ...

    @property
    def groups(self) -> Callable[[str], tuple[str, ...]]: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...

    @property
    def rated(self) -> bool: ...

    @property
    def unread(self) -> Callable[[object], set[str]]: ...

    def read(self, row: dict, part: str) -> Any: ...

    def judge(self, items: Sequence, scorer: Any, bad_rows: BadRows) -> Sequence: ...

    def summarise(self, judged: Sequence, scorer: Any, resamples: int, seed: int) -> dict: ...

    def write(self, folder: Path, model: str, judged: Sequence, scorer: Any, summary: dict) -> None: ...

    def format(self, summary: dict) -> str: ...


def pair_item(row: dict, part: str) -> Item:
    """A preference of any shape that a reward model could be trained on; its subset is what the row calls `subset` or `source`.

    BadRow says where one could be judged as it is.
    """
    found = pair_item_as_is(row, part)
    try:
        as_preference(row)
    except BadRow as error:
        raise BadRow(str(error), "judge them as they are, equal ones as ties: add `as_is`") from error
    return found


def pair_item_as_is(row: dict, part: str) -> Item:
    """The same of a preference whose answers may be empty or equal. LeftOut where its `p_chosen` is a half."""
    pair = as_preference(row, as_is=True)
    if pair[P_CHOSEN] == 0.5:
        raise LeftOut("no answer is the better one: 'p_chosen' is 0.5")
    sides = SIDES if pair[P_CHOSEN] > 0.5 else SIDES[::-1]
    better, worse = ([Answer(pair["prompt"], text_alone(pair[side], side))] for side in sides)
    subset = next((row[key] for key in ("subset", "source") if _is_name(row.get(key))), part)
    return Item(identity(row), subset, better, worse)


def _unread_of_pair(row: Any) -> set[str]:
    weight = {WEIGHT} if isinstance(row, dict) and row.get(WEIGHT) is not None else set()
    return unread(row, as_preference, ("id", "subset", "source")) | weight


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _split(default: str):
    return lambda path, split, bad_rows: read_split(path, split or default, bad_rows)


def _rmb_files(path: str, split: str | None, bad_rows: BadRows) -> Iterator[Row]:
    # A scenario's file is at most four folders below the one that holds both sets.
    return read_files(path, bad_rows, rmb.is_part, above=4)


def _llmbar_files(path: str, split: str | None, bad_rows: BadRows) -> Iterator[Row]:
    # Tables of the hub lie in SUBSET/SPLIT/.
    return read_files(path, bad_rows, lambda part: llmbar.subset_of(part) is not None, [llmbar.JUDGEMENTS], above=2)


def _parts(names: Sequence[str]):
    """A configuration of the hub, or a folder, of each name."""
    return lambda path, split, bad_rows: read_parts(path, names, split or "test", bad_rows)


def _files(splits: Sequence[str], known: Callable[[str], bool] = lambda part: False, without: Sequence[str] = ()):
    """The files of a folder that are known, or all splits of the hub's data set, unless one split is asked for."""

    def rows(path: str, split: str | None, bad_rows: BadRows) -> Iterator[Row]:
        if local(path) is not None and split is None:
            yield from read_files(path, bad_rows, known, without)
            return
        for name in [split] if split else splits:
            yield from read_split(path, name, bad_rows, name)

    return rows


def _ppe_sets(path: str, split: str | None, bad_rows: BadRows) -> Iterator[Row]:
    """The files below folders that are named after a set, one data set of the hub, or all six of an owner."""
    if local(path) is not None:
        yield from read_files(path, bad_rows, lambda part: ppe.set_of(part) is not None, above=2)
        return
    if path and "/" not in path and ":" not in path:
        for name, (hub, default) in ppe.SETS.items():
            yield from read_split(f"{path}/{hub}", default, bad_rows, name)
        return
    name = ppe.set_of(path)
    yield from read_split(path, ppe.SETS[name][1] if name else "test", bad_rows, name or path)


_SPLIT_OF_PAIRS = "test"
_PAIRS = Suite(_split(_SPLIT_OF_PAIRS), pair_item, unread=_unread_of_pair)
_MTBENCH = Suite(_files(mtbench.SPLITS), mtbench.item, groups=mtbench.groups, sizes={ALL: mtbench.ROWS})
SUITES: dict[str, Suite | StepSuite | AnswerSuite] = {
    "pairs": _PAIRS,
    "rewardbench": Suite(
        _split("filtered"),
        rewardbench.item_1,
        headline=rewardbench.headline_1,
        sizes=rewardbench.SIZES_1,
        writers=[rewardbench.write_eval_set],
    ),
    "rewardbench2": Suite(
        _split("test"),
        rewardbench.item_2,
        credit=rewardbench.best_of_all,
        headline=rewardbench.headline_2,
        special={rewardbench.TIES: Special(rewardbench.score_of_ties, rewardbench.draws_of_ties)},
        sizes=rewardbench.SIZES_2,
        writers=[rewardbench.write_eval_set],
        by_judge=rewardbench.best_of_all,
        rated=True,
    ),
    "rmb": Suite(
        _rmb_files,
        rmb.item,
        headline=rmb.headline,
        groups=rmb.groups,
        sizes={**rmb.SIZES, **rmb.TASKS, **rmb.SCENARIOS},
        writers=[rmb.write_results],
        by_judge=functools.partial(by_verdicts, invalid=0.0),
    ),
    "hhh": Suite(_parts(list(hhh.SIZES)), hhh.item, sizes=hhh.SIZES),
    "mtbench": _MTBENCH,
    "llmbar": Suite(_llmbar_files, llmbar.item, groups=llmbar.groups, sizes=llmbar.SIZES),
    "rmbench": Suite(
        _files(["train"], lambda part: part.endswith(rmbench.WHOLE)),
        rmbench.item,
        headline=rmbench.headline,
        groups=rmbench.groups,
    ),
    "judgebench": Suite(
        _files(judgebench.SPLITS, without=[judgebench.JUDGEMENTS]),
        judgebench.item,
        headline=judgebench.headline,
        groups=judgebench.groups,
        sizes=judgebench.SIZES,
        by_judge=functools.partial(by_verdicts, tie=0.0, invalid=0.0),
    ),
    "ppe": Suite(_ppe_sets, ppe.item, headline=ppe.headline),
    "mrewardbench": Suite(_parts(mrewardbench.LANGUAGES), mrewardbench.item, headline=mrewardbench.headline),
    "votes": Suite(_split("test"), votes.item, unread=votes.unread),
    "processbench": StepSuite(
        _files(list(processbench.SIZES), lambda part: processbench.split_of(part) is not None),
        processbench.item,
        sizes=processbench.SIZES,
    ),
    "bon_answers": AnswerSuite(_split("test"), bon_answers.item),
}
KINDS = (Suite, StepSuite, AnswerSuite)
PAPER_MTBENCH = _MTBENCH._replace(item=mtbench.paper_item)
PAIRS_AS_THEY_ARE = _PAIRS._replace(item=pair_item_as_is)


def find_suite(name: str, paper_compat: bool = False, as_is: bool = False, **fields: Any) -> AnySuite:
    """The suite of a name, or the one of a user that module:NAME names. UserError where there is none.

    paper_compat: MT-Bench as GRM's paper judges it. as_is: pairs with empty and equal answers. fields: of the suite, where they
    are to be others.
    """
    if ":" in name:
        suite = load_object(name, "suite")
        require(isinstance(suite, KINDS), f"`suite` {name} is no Suite", "make one: denserl.Suite(rows=..., item=...)")
        return suite
    require(
        name in SUITES, f"there is no suite {name!r}", f"choose one of {', '.join(SUITES)}, or give module:NAME of your own"
    )
    return PAPER_MTBENCH if paper_compat else PAIRS_AS_THEY_ARE if as_is else SUITES[name]._replace(**fields)


def read_items(
    suite: AnySuite,
    path: str,
    split: str | None,
    bad_rows: BadRows,
    limit: int | None,
    columns: Mapping[str, str] = {},
) -> tuple[list, Counter]:
    """The items of a suite, at most `limit` of each subset, and how many rows are left out for which reason.

    columns: key that the suite reads -> its name in the rows.

    Raises:
        UserError: bad rows, unless they are skipped, or no row that can be used.
    """
    left_out: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    items, renamed = [], Columns(columns)
    aside: set[str] = set()

    def rows() -> Iterator[Row]:
        for part, place, row in suite.rows(path, split, bad_rows):
            found = renamed(row)
            aside.update(suite.unread(found))
            yield part, place, found

    for item in as_items(rows(), suite.read, bad_rows, left_out):
        taken[item.subset] += 1
        if limit is None or taken[item.subset] <= limit:
            items.append(item if item.id else item._replace(id=_place_in(path, item.place)))
    renamed.check()
    if aside:
        log.info("%s%s", path, not_read(aside))
    if bad_rows.total and not items and not left_out:
        place, reason = bad_rows.first[0]
        found = f"none of the {bad_rows.total} rows of {path} is of this suite; the first, {place}: {reason}"
        raise UserError(found, bad_rows.fix or "name the suite that they are of, or give another path")
    bad_rows.check()
    if left_out and not items:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in left_out.items())
        raise UserError(f"{path}: every row is left out ({reasons})", "there is nothing to judge; give another path or split")
    return items, left_out


def _place_in(path: str, place: str) -> str:
    """A place as seen from the folder of the data: the same wherever they are kept. One of the hub says enough itself."""
    root = local(path)
    if root is None:
        return place
    return place.removeprefix(visible(f"{root if root.is_dir() else root.parent}/", kept=""))


def with_strengths(suite: Any, path: str, items: Sequence[Item], split: str | None, on_bad_row: str) -> Suite:
    """A suite of pairs, with the strengths that a file, or the pairs' split of a data set, has for the items.

    Raises:
        UserError: as of `read_strength`.
    """
    return suite._replace(strength=strengths_of(path, items, split or _SPLIT_OF_PAIRS, on_bad_row))


def account(suite: AnySuite, items: Sequence, left_out: Counter) -> dict:
    """`complete`, and under `partial` what is not there in full: its name -> [found, expected]; None where no size is known."""
    subsets = Counter(item.subset for item in items)
    found = subsets + Counter({ALL: len(items) + left_out.total()})
    for subset, count in subsets.items():
        found.update(dict.fromkeys(suite.groups(subset), count))
    partial = {name: [found[name], size] for name, size in suite.sizes.items() if found[name] != size}
    return {"complete": not partial if suite.sizes else None, "partial": partial}
