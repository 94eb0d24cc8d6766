"""The words of a command line: a --config file written out as flags, switches with their values, settings as words."""

import itertools
import logging
import os
from pathlib import Path

import yaml

from denserl.cli.names import check_name
from denserl.config import Config, OnOff, options_of
from denserl.errors import UserError, require
from denserl.flags import as_flags

log = logging.getLogger(__name__)

PRESETS = Path(__file__).parent.parent / "presets"


def presets(options_class: type[Config] | None = None) -> dict[str, Path]:
    """The files of options that come with the package, by their names; those that hold options of a class alone."""
    found = {path.name: path for path in sorted(PRESETS.glob("*.yaml"))}
    if options_class is None:
        return found
    names = {option.name for option in options_of(options_class)}
    return {name: path for name, path in found.items() if names.issuperset(yaml.safe_load(path.read_text(encoding="utf-8")))}


def expand_config(argv: list[str], options_class: type[Config] | None = None) -> list[str]:
    """The arguments with `--config FILE` replaced by the flags that it lists, put first. UserError for a bad file.

    options_class: where it is given, a key that names none of its options is refused, with the file that holds it, and on and
        off, which YAML takes for true and false, are words of the options that have these.
    """
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" not in argv:
        return argv
    at = argv.index("--config")
    path = _config_file(argv[at + 1] if at + 1 < len(argv) else "", options_class)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no UTF-8, no such date, nested too deeply
        raise UserError(f"{path} is not YAML: {error}", "write option: value lines") from error
    require(isinstance(settings, dict), f"{path} holds a {type(settings).__name__}", "write option: value lines")
    again = "config" in settings or "--config" in argv[at + 2 :]
    require(not again, f"--config {path}: another --config in it or after it", "write all options into one file, or as flags")
    for name in settings if options_class else ():
        check_name(options_class, "--help", str(name).replace("-", "_"), str(path))
    if options_class:
        settings |= _on_and_off(settings, options_class)
    flags = [flag for name, value in settings.items() if value is not None for flag in as_flags(name, value)]
    # An option of several values would take words that stand without a flag for more of them.
    bare = len(list(itertools.takewhile(lambda word: not word.startswith("-"), argv)))
    return [*argv[:bare], *flags, *argv[bare:at], *argv[at + 2 :]]


def _config_file(name: str, options_class: type[Config] | None) -> Path:
    """A file that is there, or else the preset of the package by this file name; the log says which. UserError for neither."""
    path = Path(name) if Path(name).is_file() else presets().get(name)
    if path is None:
        preset = f", or a preset of the package: {', '.join(names)}" if (names := presets(options_class)) else ""
        raise UserError(
            f"--config: {name or 'nothing'} is no file, and no preset", f"give a YAML file of option: value lines{preset}"
        )
    if os.environ.get("RANK", "0") == "0":
        log.info("options from %s", path)
    return path


def _on_and_off(settings: dict, options_class: type[Config]) -> dict[str, str]:
    """The words of the options that are on or off, where YAML has made booleans of them."""
    names = {option.flag for option in options_of(options_class) if option.type in (OnOff, OnOff | None)}
    return {name: "on" if value else "off" for name, value in settings.items() if name in names and isinstance(value, bool)}


def spelled_out(argv: list[str], options_class: type[Config]) -> list[str]:
    """The arguments with --name and --no-name of switches that have a third state, which is their default, given a value."""
    names = {option.name for option in options_of(options_class) if option.type == bool | None}
    words = []
    for word, after in zip(argv, [*argv[1:], ""]):
        name = word.removeprefix("--").replace("-", "_")
        on = name.removeprefix("no_")
        bare = word.startswith("--") and on in names and after not in ("True", "False", "None")
        words += [f"--{on}", str(on == name)] if bare else [word]
    return words
