"""What a judge is shown: templates, by name or from a user's file, filled with a prompt and answers to it.

A template is data: texts with placeholders, which are filled in one pass, so that nothing in an answer is a placeholder. What
closes an answer is read off the template, and is broken where an answer holds it (see `Template.messages`).
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from denserl.data.messages import whole_text
from denserl.data.responses import Messages
from denserl.errors import UserError, require
from denserl.judging.contract import Said

Kind = Literal["compare", "rate"]
# What a mark says of a comparison; by far: where a template tells that apart.
Mark = Literal["first", "second", "tie", "first by far", "second by far"]
# A text, all turns that follow the prompt, or one message, which may hold tool calls and the like.
Answer = Said | dict

BUILT_IN = Path(__file__).parent / "template_files"
ANSWERS: dict[str, tuple[str, ...]] = {"compare": ("answer_1", "answer_2"), "rate": ("answer",)}
_KEYS = {"compare": {"kind", "messages", "marks", "again", "one_token"}, "rate": {"kind", "messages", "scale"}}
_PLACEHOLDER = re.compile(r"\{([A-Za-z]\w*)\}")
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_QUOTES = re.compile(r"([\"'`])\1{2,}")
_LONGEST_FILE = 1_000_000  # bytes
_SHORTEST_CLOSING = 3  # characters; fewer stand in any text
_LABEL = "[turn"
# With what chat templates part messages. A server may take them for its own tokens, also inside a message.
_CHAT_MARKS = (
    r"<[|｜][^|｜<>\s]{1,40}[|｜]?>",
    r"<[^|｜<>\s]{1,40}[|｜]>",
    r"\[\|[a-z]{1,40}\|\]",
    r"</?s>",
    r"<</?SYS>>",
    r"<(?:start|end)_of_(?:turn|utterance)>",
    r"<(?:bos|eos|pad|unk|sop|bos_token|special_\d+)>",
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",
    r"\[(?:BOS|gMASK)\]",
    r"\]~!?b[\[\]]",
    r"\[e~\[",
)


class Template(NamedTuple):
    """What a judge is shown, and what its verdicts mean.

    hash: of all that it says, not of its name, comments or layout.
    turns: role and text of each message; a text has the placeholders prompt, answer_1 and answer_2 or answer, and reference.
    marks: of a comparison: a verdict as the judge writes it -> what it says.
    scale: of a rating: the lowest and the highest number.
    one_token: the marks are single tokens, and the judge says nothing else.
    again: what a judge is asked that wrote no mark, where it is asked a second time.
    """

    name: str
    hash: str
    kind: Kind
    turns: tuple[tuple[str, str], ...]
    marks: Mapping[str, Mark]
    scale: tuple[int, int] | None
    one_token: bool
    again: str | None

    @property
    def takes_reference(self) -> bool:
        """Whether it has a place for a reference answer."""
        return "reference" in _names(self.turns)

    def messages(self, prompt: Messages, answers: Sequence[Answer], reference: Answer | None = None) -> Messages:
        """What the judge is sent: the template filled with all turns of the prompt, and the answers in their order.

        Texts are shown as they are but for three things, in which a backslash is put behind the first character: what opens or
        closes a placeholder in the template (the lines around it), labels of turns, and marks that chat templates set. So no
        text looks like what stands around it, in whatever case and blanks.

        A prompt of one user's turn is shown bare, turns of others under numbered labels. A paragraph of the template with
        {reference} is left out where there is none.

        reference: a right answer to the last turn, or a whole conversation as it should go.

        Raises:
            UserError: a reference for a template without a place for it.
        """
        require(
            reference is None or self.takes_reference,
            f"the template {self.name} has no place for a reference answer",
            "put a paragraph with {reference} into it, or take another template (docs/judging.md)",
        )
        turns = _form(self.turns, reference is not None)
        broken = functools.partial(_breaker(turns).sub, r"\1\\")
        start = len(prompt) + 1
        texts = {"prompt": _shown(prompt, 1, broken)}
        texts |= {name: _shown(answer, start, broken) for name, answer in zip(ANSWERS[self.kind], answers, strict=True)}
        texts["reference"] = "" if reference is None else _shown(reference, 1, broken)
        return [{"role": role, "content": _PLACEHOLDER.sub(lambda found: texts[found[1]], text)} for role, text in turns]

    def once_more(self, asked: Messages, text: str) -> Messages:
        """What a judge is sent after a text without a mark; of a template with `again`."""
        return [*asked, {"role": "assistant", "content": text}, {"role": "user", "content": self.again}]


def built_in() -> list[str]:
    """The names of the templates that come with denserl."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def find_template(name: str, kind: Kind | None = None) -> Template:
    """A template that comes with denserl, by its name, or one of a user's file.

    kind: the one that is needed.

    Raises:
        UserError: neither is there, the file is no template, or it is of another kind.
    """
    path = BUILT_IN / f"{name}.yaml" if name in built_in() else Path(name)
    fix = f"give a file, or one of: {', '.join(built_in())}"
    require(path.is_file(), f"there is no template {name!r}, neither with denserl nor as a file", fix)
    template = read_template(path, name if path.parent == BUILT_IN else path.name)
    does = {"compare": "compares two answers", "rate": "rates one answer"}
    found = f"the template {name} {does[template.kind]}; expected is one that {does.get(kind, '')}"
    require(kind in (None, template.kind), found, "name another (docs/judging.md)")
    return template


def read_template(path: Path, name: str) -> Template:
    """The template of a file (docs/judging.md). UserError where it is none."""
    fix = "write it as docs/judging.md shows, with marks in quotes"
    require(path.stat().st_size <= _LONGEST_FILE, f"{path} is too large for a template", fix)
    try:
        return _template(name, yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{path} is no template: line {error.problem_mark.line + 1}: {error.problem}", fix) from error
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is no template: {error}", fix) from error


def _template(name: str, content: Any) -> Template:
    """ValueError where something is missing or unknown."""
    _check(isinstance(content, dict), "it holds no keys")
    kind = content.get("kind")
    _check(kind in get_args(Kind), f"`kind` is {kind!r}, expected compare or rate")
    unknown = sorted(map(str, content.keys() - _KEYS[kind]))
    _check(not unknown, f"a template that is to {kind} has no key {', '.join(unknown)}")
    turns = tuple(_turns(content.get("messages")))
    for with_reference in (True, False):
        _check_placeholders(_form(turns, with_reference), {"prompt", *ANSWERS[kind]})
    marks = _marks(content.get("marks")) if kind == "compare" else {}
    scale = _scale(content.get("scale")) if kind == "rate" else None
    one_token = content.get("one_token", False)
    _check(isinstance(one_token, bool), "`one_token` is neither true nor false")
    again = content.get("again")
    _check(again is None or (isinstance(again, str) and again.strip()), "`again` is no text")
    said = json.dumps([kind, turns, list(marks.items()), scale, one_token, again], ensure_ascii=False)
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return Template(name, digest, kind, turns, marks, scale, one_token, again and again.strip())


def _check_placeholders(turns: Sequence[tuple[str, str]], needed: set[str]) -> None:
    """ValueError unless the turns have those that are needed, no other one, and something behind each that closes it."""
    names = _names(turns)
    unknown, missing = sorted(names - needed - {"reference"}), sorted(needed - names)
    _check(
        not unknown, f"{_braced(unknown)} is no placeholder; those of this kind are {_braced([*sorted(needed), 'reference'])}"
    )
    _check(not missing, f"no message has {_braced(missing)}, or not without the paragraphs that hold {{reference}}")
    _check(turns[-1][0] == "user", f"the last message is of role {turns[-1][0]}, expected user")
    for _ in _closings(turns):
        pass


def _braced(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def _check(condition: object, found: str) -> None:
    if not condition:
        raise ValueError(found)


def _turns(messages: Any) -> Iterator[tuple[str, str]]:
    _check(isinstance(messages, list) and messages, "`messages` is no list of messages")
    for message in messages:
        _check(isinstance(message, dict) and len(message) == 1, "a message is not written as `role: text`")
        ((role, text),) = message.items()
        _check(role in ("system", "user", "assistant"), f"a message is of role {role!r}, expected system, user or assistant")
        _check(isinstance(text, str) and text.strip(), f"a message of role {role} has no text")
        yield role, text.strip()


def _marks(marks: Any) -> dict[str, Mark]:
    _check(isinstance(marks, dict) and marks, "`marks` is no list of `mark: what it says`")
    known = get_args(Mark)
    for mark, says in marks.items():
        _check(isinstance(mark, str) and mark.strip(), f"the mark {mark!r} is no text; write it in quotes")
        _check(says in known, f"the mark {mark} says {says!r}, expected one of: {', '.join(known)}")
    missing = sorted({"first", "second"} - {says.split()[0] for says in marks.values()})
    _check(not missing, f"no mark says {' or '.join(missing)}")
    return {mark.strip(): says for mark, says in marks.items()}


def _scale(scale: Any) -> tuple[int, int]:
    whole = isinstance(scale, list) and len(scale) == 2 and all(type(number) is int for number in scale)
    _check(whole and 0 <= scale[0] < scale[1], "`scale` is not the lowest and the highest whole number, as [1, 10]")
    return scale[0], scale[1]


def _names(turns: Sequence[tuple[str, str]]) -> set[str]:
    return {name for _, text in turns for name in _PLACEHOLDER.findall(text)}


def _form(turns: Sequence[tuple[str, str]], with_reference: bool) -> tuple[tuple[str, str], ...]:
    """The turns without the paragraphs that hold {reference}, or with them."""
    if with_reference:
        return tuple(turns)
    kept = ((role, "\n\n".join(part for part in _PARAGRAPHS.split(text) if "{reference}" not in part)) for role, text in turns)
    return tuple((role, text) for role, text in kept if text)


def _closings(turns: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What stands behind each placeholder: quotes, the rest of its line, or the next line that is not empty.

    ValueError where that is nothing that could close it. The end of a message closes what ends with it.
    """
    for _, text in turns:
        _, *parts = _PLACEHOLDER.split(text)
        names, behind = parts[::2], [part.strip() for part in parts[1::2]]
        for place, (name, after) in enumerate(zip(names, behind), 1):
            quotes = _QUOTES.match(after)
            closing = quotes[0] if quotes else after.split("\n")[0].strip()
            if closing or place < len(names):
                fits = len(closing) >= _SHORTEST_CLOSING and "\\" not in closing
                _check(fits, f"{closing!r} behind {{{name}}} cannot close it; put a line of its own there, without a backslash")
                yield closing


def _openings(turns: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The lines right above placeholders that begin a line."""
    for _, text in turns:
        for before in _PLACEHOLDER.split(text)[:-1:2]:
            line = before.split("\n")[-2].strip() if before.endswith("\n") else ""
            yield from [line] if line and "\\" not in line else []


@functools.lru_cache(maxsize=64)
def _breaker(turns: tuple[tuple[str, str], ...]) -> re.Pattern:
    """Finds the first character of whatever no text may hold; it has no backslash, so that one put behind it breaks it."""
    closings = list(_closings(turns))
    # The end of a text that would make up a closing with the beginning of the true one: one quote before three.
    begun = [text[:end] for text in closings for end in range(1, len(text)) if (text[:end] + text).startswith(text)]
    unwanted = [
        *map(_loosely, [*closings, _LABEL]),
        *(rf"{_loosely(text)}\Z" for text in begun),
        *(rf"{_loosely(line)}[^\S\n]*$" for line in _openings(turns)),
        *_CHAT_MARKS,
    ]
    return re.compile(rf"(?=(?:{'|'.join(unwanted)}))(.)", re.IGNORECASE | re.DOTALL | re.MULTILINE)


def _loosely(text: str) -> str:
    """A pattern of a text with any blanks between its words."""
    return r"\s+".join(map(re.escape, text.split()))


def _shown(said: Answer, number: int, broken: Callable[[str], str]) -> str:
    """A text, or messages under labels; number: of the first message."""
    if isinstance(said, (str, dict)):
        return broken(whole_text(said))
    if len(said) == 1 and said[0]["role"] == ("user" if number == 1 else "assistant"):
        return broken(whole_text(said[0]))
    labelled = (
        f"{_LABEL} {place}: {message['role']}]\n{broken(whole_text(message))}" for place, message in enumerate(said, number)
    )
    return "\n\n".join(labelled)
