"""Options as fields of dataclasses: type, default, help, bound, condition and group of one stand together with it.

A room keeps its options in a file `config.py` beside what they set, light to import; commands inherit them and make flags of
them. Bounds are those of annotated-types, in `Annotated`, beside the marks of this file:

    lr: Annotated[float, Ge(0), FIRST] = 1e-6
    \"""Peak learning rate.\"""

In messages a name in backticks, as in `lr`, is an option; the command line shows it as the flag --lr.
"""

import dataclasses
import functools
import math
import os
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import annotated_types
from annotated_types import Ge, Gt, Interval, Le

from denserl.errors import UserError

Level = Literal["segment", "token", "bandit"]
Precision = Literal["auto", "fp32", "bf16"]
OnOff = Literal["on", "off"]


@dataclass(frozen=True)
class Only:
    """A condition without which an option does nothing, so that giving it is refused.

    when: the case in which it has no effect, in words. has_effect: whether it has one, of the config.
    of: the options it holds for; default: the one that it stands with.
    """

    when: str
    has_effect: Callable[[Any], object]
    of: tuple[str, ...] = ()


class Mark:
    """A property of an option: see FIRST and RESUMABLE."""


FIRST = Mark()  # among those that everyone sets, which --help lists first
INPUT = Mark()  # names a file, folder or hub repository that is read, of which an output folder keeps the fingerprint
MODEL = Mark()  # the same, of models alone
RESUMABLE = Mark()  # may change when a run is resumed: at most the rounding of what is learned depends on it


@dataclass(kw_only=True)
class Config:
    """The base of all options. A list of texts may be given as one text; numbers and choices are checked by `check`."""

    group: ClassVar[str] = "further"

    def __post_init__(self):
        for option in options_of(type(self)):
            setattr(self, option.name, _as_typed(option, getattr(self, option.name)))

    def check(self) -> None:
        """UserError for a value that is not among the choices or out of bounds, and for an option that would be ignored."""
        check_values(self)
        options = options_of(type(self))
        defaults = {option.name: option.default for option in options}
        for option in options:
            for only in _marks(option, Only):
                self._check_effect(only, only.of or (option.name,), defaults)

    def _check_effect(self, only: Only, names: tuple[str, ...], defaults: dict[str, Any]) -> None:
        for name in names:
            value = getattr(self, name)
            if value and value != defaults[name] and not only.has_effect(self):
                shown = f"`{name}`" if value is True else f"`{name}` {value}"
                raise UserError(f"{shown} has no effect {only.when}", f"leave `{name}` out, or change what it goes with")


class Option(typing.NamedTuple):
    """One field of a config class."""

    name: str
    type: Any  # without marks
    marks: tuple
    default: Any  # MISSING where it must be given
    owner: type[Any]  # the class that declares it

    @property
    def flag(self) -> str:
        """Its name on the command line; `with_` is a field because `with` is a word of Python."""
        return self.name.rstrip("_")

    @property
    def group(self) -> str:
        """Under which heading --help lists it."""
        return "main" if FIRST in self.marks else self.owner.group


def options_of(config: type) -> tuple[Option, ...]:
    """The options of a config class, in order."""
    return _options_of(config)


@functools.cache
def _options_of(config: type) -> tuple[Option, ...]:
    hints = typing.get_type_hints(config, include_extras=True)
    found = []
    for option in dataclasses.fields(config):
        kind, *marks = typing.get_args(hints[option.name]) if _is_annotated(hints[option.name]) else (hints[option.name],)
        owner = next(base for base in config.__mro__ if option.name in vars(base).get("__annotations__", ()))
        default = option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
        found.append(Option(option.name, kind, tuple(marks), default, owner))
    return tuple(found)


def check_values(options: Any) -> None:
    """UserError for a field of a dataclass that is not among its choices or out of its bounds."""
    for option in options_of(type(options)):
        _check_value(option, getattr(options, option.name))


def resumable_options(config: type[Config]) -> frozenset[str]:
    """Names of the options that may change when a run is resumed."""
    return frozenset(option.name for option in options_of(config) if RESUMABLE in option.marks)


def is_list(kind: Any) -> bool:
    """Whether a type is a list of texts, or that or None."""
    return any(part == list[str] for part in (kind, *typing.get_args(kind)))


def bounds_in_words(marks: tuple) -> str:
    """`at least 0 and below 1`, of the bounds among an option's marks; empty where there are none."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[kind]} {limit:g}" for kind, limit in _limits(marks))


def _as_typed(option: Option, value: Any) -> Any:
    """The value as the option's type has it: paths as text, one text as a list. UserError for one of another type."""
    if is_list(option.type) and not isinstance(value, (list, tuple, type(None))):
        value = [value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, (list, tuple)):
        value = type(value)(os.fspath(part) if isinstance(part, os.PathLike) else part for part in value)
    if any(_choices(option.type)):
        return value  # which choices there are is said by `check`
    # Here, since --help needs none of it.
    from pydantic import ValidationError

    try:
        return _adapter(option.type).validate_python(value)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(f"`{option.name}` is {value!r}: {wrong['msg']}", f"correct `{option.name}`") from error


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _check_value(option: Option, value: Any) -> None:
    for choices in _choices(option.type):
        if value is not None and (unknown := [v for v in _each(value) if v not in choices]):
            known = ", ".join(map(str, choices))
            raise UserError(f"`{option.name}` is {unknown[0]!r}; it must be one of {known}", f"choose one for `{option.name}`")
    for number in _each(value):
        if isinstance(number, (int, float)) and not isinstance(number, bool) and not _is_within(option.marks, number):
            must = bounds_in_words(option.marks) or "finite"
            has, which = ("has", "each") if isinstance(value, (list, tuple)) else ("is", "it")
            raise UserError(
                f"`{option.name}` {has} {number}; {which} must be {must}", f"leave `{option.name}` out for its default"
            )


def _is_within(marks: tuple, number: float) -> bool:
    tests = {"ge": float.__ge__, "gt": float.__gt__, "le": float.__le__, "lt": float.__lt__}
    return math.isfinite(number) and all(tests[kind](float(number), float(limit)) for kind, limit in _limits(marks))


def _limits(marks: tuple) -> Iterator[tuple[str, float]]:
    for mark in marks:
        if isinstance(mark, (Ge, Gt, Le, annotated_types.Lt, Interval)):
            for kind in ("ge", "gt", "le", "lt"):
                limit = getattr(mark, kind, None)
                if limit is not None:
                    yield kind, limit


def _choices(kind: Any) -> Iterator[tuple]:
    """The choices of each Literal in a type."""
    if typing.get_origin(kind) is Literal:
        yield typing.get_args(kind)
    else:
        for part in typing.get_args(kind):
            yield from _choices(part)


def _each(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _marks(option: Option, kind: type) -> list:
    return [mark for mark in option.marks if isinstance(mark, kind)]


def _is_annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated


@dataclass(kw_only=True)
class ModelSourceConfig(Config):
    """How models are read."""

    group: ClassVar[str] = "device and loading"

    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel; flash_attention_2 needs CUDA, bf16 and the extra denserl[flash]."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model folder or hub repository."""
    revision: Annotated[
        str | None,
        RESUMABLE,
        Only("where no model is a hub name without a revision of its own", lambda c: c.has_pinned()),
    ] = None
    """Commit, tag or branch of the models that are hub names; of one of several: NAME@REVISION in the place of its name."""

    def __post_init__(self):
        super().__post_init__()
        if self.revision:
            for name in self._model_options():
                value = getattr(self, name)
                setattr(self, name, list(map(self._pinned, value)) if isinstance(value, (list, tuple)) else self._pinned(value))

    def has_pinned(self) -> bool:
        """Whether `revision` is that of a model."""
        named = [name for option in self._model_options() for name in _each(getattr(self, option)) if name]
        return any(name.endswith(f"@{self.revision}") and not os.path.exists(name) for name in named)

    def _model_options(self) -> list[str]:
        return [option.name for option in options_of(type(self)) if MODEL in option.marks]

    def _pinned(self, name: str | None) -> str | None:
        """A hub name with the revision, as `data.hub.split_revision` reads it; a folder, an address, or a name that has one, as
        it is."""
        return name if not name or "@" in name or "://" in name or os.path.exists(name) else f"{name}@{self.revision}"

    def tokenizer_source(self) -> dict[str, Any]:
        """The arguments that the loading of tokenizers and configs takes."""
        return {"trust_remote_code": self.trust_remote_code}

    def model_source(self) -> dict[str, Any]:
        """The arguments that the loading of models takes."""
        return {"trust_remote_code": self.trust_remote_code, "attn_implementation": self.attention}


@dataclass(kw_only=True)
class TemplateConfig(Config):
    """How conversations are written for the model, where another way is wanted than the one that is saved with it."""

    group: ClassVar[str] = "chat template"

    chat_template: Annotated[str | None, INPUT] = None
    """File with a chat template (Jinja) in the place of the model's own; saved with what is trained."""
    system_prompt: str | None = None
    """System message of conversations that have none; saved in the chat template. Empty: none, whatever was saved."""
    template_date: str | None = None
    """Day (YYYY-MM-DD) that a chat template which writes the date is given; saved in it. Default: the saved one, or today."""

    def template(self) -> dict[str, Any]:
        """What `data.templates.set_template` is given."""
        return {"file": self.chat_template, "system_prompt": self.system_prompt, "date": self.template_date}


@dataclass(kw_only=True)
class DeviceConfig(ModelSourceConfig, TemplateConfig):
    """Where and how models run."""

    group: ClassVar[str] = "device and loading"

    device: Annotated[Literal["auto", "cpu", "cuda"], RESUMABLE] = "auto"
    """Where to run; auto takes CUDA where torch sees it."""
    dtype: Annotated[Precision, RESUMABLE] = "auto"
    """Precision of weights in forward and backward; auto is bf16 on CUDA, fp32 on CPU."""


@dataclass(kw_only=True)
class RunConfig(DeviceConfig):
    """What every run has."""

    group: ClassVar[str] = "device and loading"

    output_dir: Annotated[str, FIRST, RESUMABLE]
    """Folder for what the run makes."""
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 42
    """Seed of every random choice."""
