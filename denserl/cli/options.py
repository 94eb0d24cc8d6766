"""From the arguments of a command to its options: --config files, unknown names, grouped --help, checks."""

import dataclasses
import functools
import inspect
import re
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, TypeVar

import docstring_parser
import tyro

from denserl.cli.names import check_names, flag_name
from denserl.cli.words import expand_config, presets, spelled_out
from denserl.config import Config, Option, options_of
from denserl.errors import UserError
from denserl.terminal import visible

Options = TypeVar("Options", bound=Config)

MAIN = "main"
# For what is known only when a command is called, which no type checker can follow.
_ANNOTATED: Any = Annotated


def parse(options_class: type[Options], command: str, argv: list[str], program: str = "denserl") -> Options:
    """The options of a command from its arguments. `--config file.yaml` stands for the flags it lists; later flags win.

    program: what runs the command.

    Raises:
        UserError: an option that the command does not have, out of bounds, or without effect; it names the flag.
    """
    # The deepspeed launcher adds --local_rank, which the environment says as well.
    given = [part for part in argv if not part.startswith("--local_rank=")]
    argv = expand_config(given, options_class)
    # Help texts are given; looking for comments in the source of classes that have none takes a third of the time.
    marks = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)
    settings: dict[str, Any] = {"prog": f"{program} {command}", "use_underscores": True, "config": marks}
    check_names(options_class, f"{program} {command} --help", argv)
    argv = spelled_out(argv, options_class)
    values = _values(options_class, argv, settings)
    try:
        options = options_class(**values)
        options.check()
    except UserError as error:
        raise with_file(with_flags(error, options_class), given) from error
    return options


def _values(options_class: type, argv: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """The values of the options that are named, by tyro; it ends the process where they are not of their types."""
    if (shown := [visible(word) for word in argv]) != argv:
        tyro.cli(grouped_class(options_class), args=shown, **settings)  # complains without characters that act on a terminal
    named = frozenset(flag_name(word).removeprefix("no_") for word in argv if word.startswith("--"))
    try:
        # The others have their defaults; a parser of them all takes ten times as long to make.
        return vars(tyro.cli(named_class(options_class, named), args=argv, console_outputs=False, **settings))
    except SystemExit:
        groups = vars(tyro.cli(grouped_class(options_class), args=argv, **settings))
    return {name: value for group in groups.values() for name, value in vars(group).items() if name != "config"}


def with_flags(error: UserError, options_class: type[Config]) -> UserError:
    """The error with the options that it names in backticks as flags of a command."""
    flags = {option.name: f"--{option.flag}" for option in options_of(options_class)}

    def flag(found: re.Match) -> str:
        return flags.get(found[1], found[0])

    found, fix = (re.sub(r"`(\w+)`", flag, text) for text in (error.found, error.fix))
    return UserError(found, fix, error.one_rank)


def with_file(error: UserError, given: list[str]) -> UserError:
    """The error with the --config file of these words, where the option that it begins with stands in that alone."""
    words = [part for word in given for part in word.split("=", 1)]
    flag = error.found.split(" ", 1)[0]
    if "--config" not in words or not flag.startswith("--") or flag in words:
        return error
    file = words[words.index("--config") + 1]
    return UserError(
        error.found, f"{error.fix}; {flag} stands in --config {file}, of which a copy may be changed", error.one_rank
    )


@functools.cache
def named_class(options_class: type, flags: frozenset[str]) -> type:
    """A dataclass of the options of some flags, and of those that must be given or need no flag. Without help texts."""
    fields = [
        _as_field(option, "")
        for option in options_of(options_class)
        if option.default is MISSING or any(map(_is_tyro, option.marks)) or option.flag in flags
    ]
    return dataclasses.make_dataclass(options_class.__name__, fields, kw_only=True)


@functools.cache
def grouped_class(options_class: type) -> type:
    """A dataclass with one field a group, for --help: the options that everyone sets first, then group by group."""
    help_texts = help_of(options_class)
    groups: dict[str, list] = {MAIN: []}
    # What must be given, then the options of a class before those that it inherits.
    rank = options_class.__mro__.index
    order = sorted(options_of(options_class), key=lambda option: (option.default is not MISSING, rank(option.owner)))
    for option in order:
        groups.setdefault(option.group, []).append(_as_field(option, help_texts[option.name]))
    preset = f", or a preset of the package ({', '.join(names)})" if (names := presets(options_class)) else ""
    help_text = f"YAML file of option: value lines{preset}; later flags win."
    config = ("config", Annotated[Path | None, tyro.conf.arg(help=help_text)])
    groups[MAIN].append((*config, dataclasses.field(default=None)))
    parts = []
    for number, (group, fields) in enumerate(groups.items()):
        part = dataclasses.make_dataclass(f"Group{number}", fields, kw_only=True)
        part.__doc__ = " "
        parts.append((f"group{number}", Annotated[part, tyro.conf.arg(name=group)]))
    whole = dataclasses.make_dataclass(options_class.__name__, parts, kw_only=True)
    whole.__doc__ = inspect.cleandoc(options_class.__doc__ or "")
    return whole


def help_of(options_class: type[Config]) -> dict[str, str]:
    """The help text of each option: the string that stands under it in the class that declares it."""
    found: dict[str, str] = {}
    for base in reversed(options_class.__mro__[:-1]):
        for entry in docstring_parser.parse_from_object(base).params:
            if entry.args[0] == "attribute" and entry.description:
                found[entry.arg_name] = " ".join(entry.description.split())
    return found


def _as_field(option: Option, text: str) -> tuple:
    shown = f"| --no-{option.name}" if option.type == bool | None else None
    parts = (
        option.type,
        *(mark for mark in option.marks if _is_tyro(mark)),
        tyro.conf.arg(name=option.flag, help=text, metavar=shown),
    )
    kind = _ANNOTATED[parts]
    if option.default is MISSING:
        return option.name, kind
    mutable = isinstance(option.default, list)
    default = dataclasses.field(default_factory=option.default.copy) if mutable else dataclasses.field(default=option.default)
    return option.name, kind, default


def _is_tyro(mark: Any) -> bool:
    return type(mark).__module__.startswith("tyro")
