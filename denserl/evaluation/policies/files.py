"""The files of AlpacaEval, Arena-Hard, MT-Bench and prompts of one's own: questions, answers and judgements, read and written.

What a row holds is said in a file for each suite.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from denserl.data.bad_rows import BadRow, BadRows, LeftOut, finish
from denserl.data.file_rows import without_suffix
from denserl.errors import UserError, require
from denserl.evaluation.policies import alpacaeval, arenahard, mtbench, prompts
from denserl.evaluation.policies.answers import Answers, Id, PolicyAnswer, Question
from denserl.evaluation.policies.arenahard import Shape
from denserl.evaluation.suites.rows import ALL, read_split
from denserl.files import replace_whole
from denserl.terminal import visible

log = logging.getLogger(__name__)
T = TypeVar("T")
MANIFEST = "answers.json"  # in a folder of answers: the policy's name, the files of its samples, how they were drawn
_QUESTIONS = "question.jsonl"  # in the folders of the originals
_SHOWN = 60  # characters of an id that a message shows


class Kind(NamedTuple):
    """The files of a suite.

    question: row and its number -> Question. answers: row -> the policy's name, where it says it, and its answers.
    row: question, answer, name and shape -> row.
    split: of a hub data set or folder that holds the questions. hub: where they are published as such a data set.
    """

    question: Callable[[dict, int], Question]
    answers: Callable[[dict], tuple[str | None, list[PolicyAnswer]]]
    row: Callable[[Question, PolicyAnswer, str, Shape], dict]
    suffix: str = ".jsonl"
    split: str = "train"
    hub: str | None = None
    in_one_file: bool = False  # all samples; otherwise each of them has a file
    shapes: bool = False  # whether answers have more than one
    counted: bool = False  # whether answers say how long and how marked up they are
    stripped: bool = True  # whether answers have no blanks around them


KINDS: dict[str, Kind] = {
    "alpacaeval": Kind(
        alpacaeval.question,
        alpacaeval.answers,
        lambda question, answer, name, shape: alpacaeval.answer_row(question, answer, name),
        suffix=".json",
        split="eval",
        hub="tatsu-lab/alpaca_eval:alpaca_eval_gpt4_baseline",
    ),
    "arenahard": Kind(arenahard.question, arenahard.answers, arenahard.answer_row, shapes=True, counted=True),
    "mtbench": Kind(
        arenahard.question,
        arenahard.choices,
        lambda question, answer, name, shape: arenahard.choice_row(question, answer, name),
    ),
    "prompts": Kind(
        prompts.question,
        prompts.answers,
        lambda question, answer, name, shape: prompts.answer_row(question, answer),
        in_one_file=True,
        stripped=False,
    ),
}


def read_questions(suite: str, source: str) -> list[Question]:
    """The questions of a file, of the original's folder, of answers that hold them, or of a hub data set, in their order.

    Raises:
        UserError: there are none, a row is none, or two have one id.
    """
    folder = Path(source)
    answered = (folder / MANIFEST).is_file() and not (folder / _QUESTIONS).is_file()
    inside = folder / (_read_manifest(folder, suite)["files"][0] if answered else _QUESTIONS)
    found: dict[Id, Question] = {}

    def add(row: dict, number: int) -> None:
        question = KINDS[suite].question(row, number)
        if question.id in found:
            raise BadRow(f"the question {shown(question.id)} is there already")
        found[question.id] = question

    _each_row(str(inside) if inside.is_file() else source, add, KINDS[suite].split)
    return list(found.values())


def read_answers(suite: str, path: str) -> Answers:
    """A policy's answers from a file, or from the folder of `denserl answer`, with all samples.

    Null answers are none, and are counted in the log. A policy that no row names is called as the file is.

    Raises:
        UserError: there are none, a row is none, a question is answered twice, or by several policies.
    """
    manifest = _read_manifest(Path(path), suite) if Path(path).is_dir() else None
    files = [str(Path(path) / name) for name in manifest["files"]] if manifest else [path]
    found: dict[Id, list[PolicyAnswer]] = {}
    names: dict[str, None] = {}
    for number, file in enumerate(files):
        found_here, names_here = _read_file(suite, file)
        names |= names_here
        for answer in found_here:
            found.setdefault(answer.question, []).append(answer if number == 0 else answer._replace(sample=number))
    fix = "give each a file of its own"
    require(manifest or len(names) < 2, f"{path} holds answers of several: {', '.join(map(shown, names))}", fix)
    name = manifest["name"] if manifest else next(iter(names), without_suffix(Path(path).name))
    return Answers(name, {id: sorted(samples, key=lambda answer: answer.sample) for id, samples in found.items()})


def write_answers(
    suite: str, folder: Path, name: str, questions: Sequence[Question], answers: Answers, shape: Shape = "newer"
) -> list[str]:
    """Write the answers, question by question, as the original program reads them; returns the names of the files.

    Sample 0 goes to `<name>`, sample j to `<name>-s<j>`, where each has a file of its own.
    """
    kind = KINDS[suite]
    files: dict[str, list[dict]] = {}
    for question in questions:
        for answer in answers.by_question[question.id]:
            called = name if kind.in_one_file or answer.sample == 0 else f"{name}-s{answer.sample}"
            files.setdefault(called + kind.suffix, []).append(kind.row(question, answer, called, shape))
    for file, rows in files.items():
        write_rows(folder / file, rows)
    return list(files)


def write_rows(path: Path, rows: Sequence[Mapping]) -> None:
    """Write a file whole: an array where it is called .json, else JSON lines."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    replace_whole(path, json.dumps(rows, indent=2) + "\n" if path.suffix == ".json" else lines)


def read_annotations(path: str) -> list[alpacaeval.Annotation]:
    """AlpacaEval's annotations. UserError as of `read_questions`."""
    return _read(path, alpacaeval.annotation)


def read_judgments(path: str) -> list[arenahard.Judgment]:
    """Arena-Hard's judgments, of either shape. UserError as of `read_questions`."""
    return _read(path, arenahard.judgment)


def read_grades(path: str) -> list[mtbench.Grade]:
    """MT-Bench's grades of single answers. UserError as of `read_questions`."""
    return _read(path, mtbench.grade)


def read_votes(path: str) -> list[mtbench.Vote]:
    """MT-Bench's votes between two answers. UserError as of `read_questions`."""
    return _read(path, mtbench.vote)


def _read(path: str, convert: Callable[[dict], T]) -> list[T]:
    found: list[T] = []
    _each_row(path, lambda row, number: found.append(convert(row)))
    return found


def _read_file(suite: str, path: str) -> tuple[list[PolicyAnswer], dict[str, None]]:
    """The answers of a file, and the names of those who gave them."""
    found: dict[tuple[Id, int], PolicyAnswer] = {}
    names: dict[str, None] = {}
    null: list[int] = []

    def add(row: dict, number: int) -> None:
        name, answers = KINDS[suite].answers(row)
        names.update({name: None} if name else {})
        null.extend([number] if not answers else [])
        for answer in answers:
            if (answer.question, answer.sample) in found:
                raise BadRow(f"the question {shown(answer.question)} is answered already")
            found[answer.question, answer.sample] = answer

    _each_row(path, add)
    if null:
        log.warning("%s: %d answers are null, and taken for missing", path, len(null))
    return list(found.values()), names


def _each_row(source: str, use: Callable[[dict, int], object], split: str = ALL) -> None:
    """Give each row, and its number, to be used. UserError with the first that cannot be (BadRow), or where there are none."""
    bad_rows = BadRows("stop")
    used = left_out = 0
    for number, (place, row) in enumerate(_rows(source, split, bad_rows)):
        try:
            if not isinstance(row, dict):
                raise BadRow("the row is not an object")
            use(row, number)
            used += 1
        except BadRow as error:
            bad_rows.add(place, str(error), error.fix)
        except LeftOut:
            left_out += 1
    finish(bad_rows, source, used, left_out)


def _rows(source: str, split: str, bad_rows: BadRows) -> Iterator[tuple[str, Any]]:
    for _, place, row in read_split(source, split, bad_rows):
        yield place, row


def _read_manifest(folder: Path, suite: str) -> dict:
    """What a folder of answers says of itself. UserError where it says nothing, or of another suite."""
    fix = f"give a file of answers to {suite}, or the folder that denserl answer wrote"
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder} holds no {MANIFEST} to be read ({error})", fix) from error
    files = found.get("files") if isinstance(found, dict) else None
    # Names of files that are in the folder.
    named = isinstance(files, list) and files and all(isinstance(name, str) and Path(name).name == name for name in files)
    require(named and isinstance(found.get("name"), str), f"{folder / MANIFEST} names no files of a policy", fix)
    require(found.get("suite") == suite, f"{folder} holds answers to {found.get('suite')!r}; expected {suite}", fix)
    return found


def shown(id: Id) -> str:
    """An id as messages show it."""
    text = visible(str(id), kept="")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
