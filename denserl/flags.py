"""Options as the words of a command line."""

from typing import Any

from denserl.config import Config, Option, options_of


def as_flags(name: str, value: Any) -> list[str]:
    """One option as command-line words: a boolean as --name or --no-name, a list as several words."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, (value if isinstance(value, (list, tuple)) else [value]))]


def changed_options(options: Config) -> list[tuple[Option, Any]]:
    """The options that differ from their defaults, each with its value."""
    values = [(option, getattr(options, option.name)) for option in options_of(type(options))]
    return [(option, value) for option, value in values if value != option.default]


def written_out(options: Config) -> list[str]:
    """The flags of all options that differ from their defaults."""
    return [word for option, value in changed_options(options) for word in as_flags(option.flag, value)]
