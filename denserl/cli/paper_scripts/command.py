"""From the arguments of a script to the command that it runs, with the checks of its words and files. Nothing runs here."""

import re
import shlex
from pathlib import Path

from denserl.cli.paper_scripts.arguments import one_of, reward_level, translate_words
from denserl.cli.paper_scripts.flags import Call, Flags
from denserl.cli.paper_scripts.recipes import RECIPES
from denserl.cli.paper_scripts.table import read_table
from denserl.cli.words import expand_config
from denserl.errors import require
from denserl.flags import as_flags


def plan(name: str, argv: list[str], check_files: bool = True) -> tuple[list[list[str]], list[str]]:
    """The command of a recipe, one list per line (launcher, then each flag with its values), and what to tell the user.

    Flags that follow the positional arguments replace the recipe's own. UserError for arguments that make no command and,
    with check_files, for local inputs that are not there.
    """
    recipe = RECIPES[name]
    first = next((i for i, word in enumerate(argv) if word.startswith("--")), len(argv))
    positional, (gpus, further) = argv[:first], _take_gpus(argv[first:])
    require(
        len(positional) == len(recipe.arguments),
        f"{len(positional)} arguments ({shlex.join(positional)}); expected {len(recipe.arguments)}: "
        f"{' '.join(recipe.arguments)}",
        f"e.g. bash examples/scripts/{recipe.script} {recipe.example}",
    )
    given = dict(zip(recipe.arguments, positional))
    one_of("SEGMENT_METHOD", given["SEGMENT_METHOD"], ["peak"])
    one_of("AGG_FUNC", given["AGG_FUNC"], ["avg"])
    reward_level(given["C"])
    further = _grouped(expand_config(further))
    overridden = {_flag_name(line[0]) for line in further}
    words = translate_words(given["EXP"], given["C"]) if name == "train-ppo" else {}
    table = read_table()
    flags = recipe.flags(Call(given, table, overridden, words))
    flags = {flag: value for flag, value in flags.items() if value is not None and flag not in overridden}
    read = {flag: Path(value) for flag, value in flags.items() if isinstance(value, str) and flag != "output_dir"}
    if "output_dir" in flags:
        _check_output(Path(str(flags["output_dir"])), read)
    if check_files:
        _check_inputs(read, {Path(made): command for made, command in table["made_by"].items()})
    launcher = ["torchrun", "--standalone", "--nproc_per_node", gpus] if gpus else ["python"]
    own = [as_flags(flag, value) for flag, value in flags.items()]
    return [[*launcher, "-m", recipe.module], *own, *further], _notes(given, words, flags)


def _notes(given: dict[str, str], words: Flags, flags: Flags) -> list[str]:
    notes = []
    if words:
        shown = shlex.join(part for flag, value in words.items() for part in as_flags(flag, value))
        notes.append(f"words in the name {given['EXP']} are translated to {shown}")
    return notes


def _flag_name(word: str) -> str:
    return word.split("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_")


def _grouped(words: list[str]) -> list[list[str]]:
    """Each flag with the values that follow it."""
    lines: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not lines:
            lines.append([word])
        else:
            lines[-1].append(word)
    return lines


def _take_gpus(words: list[str]) -> tuple[str | None, list[str]]:
    """The value of --gpus, or None, and the other words."""
    lines = _grouped([part for word in words for part in (word.split("=", 1) if word.startswith("--gpus=") else [word])])
    values = [line[1:] for line in lines if line[0] == "--gpus"]
    if not values:
        return None, words
    value = " ".join(values[-1])
    require(bool(re.fullmatch("[1-9][0-9]*", value)), f"--gpus is {value!r}; it must be a whole number > 0", "e.g. --gpus 8")
    return value, [word for line in lines if line[0] != "--gpus" for word in line]


def _check_output(output: Path, read: dict[str, Path]) -> None:
    for flag, path in read.items():
        holds = f"the run would write into {output}, which holds its --{flag} {path}"
        require(output not in (path, *path.parents), holds, "choose another EXP")


def _check_inputs(read: dict[str, Path], makers: dict[Path, str]) -> None:
    """UserError when an input that a known command makes is not there; others are for the command itself to find."""
    for flag, path in read.items():
        maker = next((command for made, command in makers.items() if made in (path, *path.parents)), None)
        require(maker is None or path.exists(), f"--{flag}: {path} does not exist", f"make it with: {maker}")
