"""The scripts in examples/scripts: from their positional arguments to one full denserl command, printed and run.

Models, data and hyper-parameters of each model type are in model_types.yaml; training is the commands' business.
"""

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

from denserl.cli.common import as_flags, expand_config, require
from denserl.cli.effects import NORMALIZERS
from denserl.errors import UserError
from denserl.terminal import say

TABLE = Path(__file__).with_name("model_types.yaml")
ENTRY_KEYS = ("sft_model", "reward_models", "bandit", "normalizer", "data", "rm", "fit", "ppo")
# What the paper's release calls its assignments.
REWARD_TYPES = (
    "segment_normalization",
    "same_segment_last",
    "every_segment_last",
    "segment_last_avg",
    "segment_last_logsumexp",
)
LAUNCHERS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
Flags = dict[str, object]  # a flag of value None is left out


class Call(NamedTuple):
    """What a recipe makes its flags from."""

    given: dict[str, str]  # the positional arguments by name
    table: dict
    overridden: set[str]  # names of the flags that follow the positional arguments
    words: Flags  # what special words in the experiment's name stand for


class Recipe(NamedTuple):
    """One script."""

    script: str
    module: str  # of the command that it runs
    arguments: tuple[str, ...]
    example: str
    flags: Callable[[Call], Flags]
    writes: tuple[str, ...] = ("output_dir",)  # the other flags that name files are read


def read_table() -> dict:
    """model_types.yaml: model_types, data and made_by. UserError for an entry that lacks a key."""
    try:
        table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{TABLE} is not YAML: {error}", "mend the line it names") from error
    for name, entry in table["model_types"].items():
        missing = [key for key in ENTRY_KEYS if key not in entry]
        require(not missing, f"{TABLE}: model type {name} lacks {', '.join(missing)}", "give every key (see the file's top)")
    return table


def reward_level(threshold: str) -> str:
    """The level of an entropy threshold C: 0 token, 1000 or more bandit, else segment. UserError unless C >= 0."""
    try:
        value = float(threshold)
    except ValueError:
        value = math.nan
    fix = "0 is the token level, 1000 bandit, between them segments (1.75 for phi3-instruct, 2 for Llama-3)"
    require(0 <= value < math.inf, f"C is {threshold!r}; it must be an entropy in nats, >= 0", fix)
    return "token" if value == 0 else "bandit" if value >= 1000 else "segment"


def translate_words(experiment: str, threshold: str) -> Flags:
    """The flags for special words in an experiment's name (spec dense-rlhf, section 5). UserError for length_norm at C > 0."""

    def found(word: str) -> re.Match | None:
        return re.search(rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])", experiment)

    flags: Flags = {}
    if found("no_normalization"):
        flags["normalizer"] = "none"
    if found("length_norm"):
        require(
            reward_level(threshold) == "token",
            f"EXP {experiment!r} says length_norm and C is {threshold}; length_norm is defined for the token level only",
            "use C = 0, or take the word out of the name",
        )
        flags["length_norm"] = True
    if penalty := found(r"end_penalty_m(\d+)d(\d+)"):
        flags |= {"penalise_unfinished": True, "penalty": f"{penalty[1]}.{penalty[2]}"}
    if longest := found(r"len_thres_(\d+)"):
        flags["penalise_longer_than"] = longest[1]
    return flags


def rm_flags(call: Call) -> Flags:
    """The flags of train-rm."""
    given, entry = call.given, _entry(call.table, call.given["MODEL_TYPE"])
    return {
        "model": entry["sft_model"],
        **_data(call.table, given["DATASET"], "rm"),
        "output_dir": _output_dir(given["EXP"]),
        "model_type": given["MODEL_TYPE"],
        "epochs": _positive("EPOCHS", given),
        **_cut(given),
        **entry["rm"],
    }


def fit_flags(call: Call) -> Flags:
    """The flags of fit-normalizer. A reward model of the table is fitted under the table's tag, another under its own name."""
    given, reward_model = call.given, call.given["RM_PATH"].rstrip("/")
    require(
        reward_level(given["C"]) != "bandit",
        f"C is {given['C']}: a bandit reward has one place, so there is no line to fit",
        "train PPO without a fit; the mean and std of a bandit reward are in the reward model's config or in the table",
    )
    types = call.table["model_types"]
    owner = next((name for name, entry in types.items() if reward_model in entry["reward_models"].values()), None)
    entry = _entry(call.table, owner or _stored_type(reward_model, types))
    known = {"model_type": owner, "sft_model": entry["sft_model"]} if owner else {}
    return {
        "reward_model": reward_model,
        **_data(call.table, entry["data"], "fit"),
        "output_dir": f"runs/fit/{Path(reward_model).name}-{given['C']}",
        **known,
        "dataset_tag": entry["normalizer"]["fit_tag"] if owner else Path(reward_model).name,
        "params": entry["normalizer"]["params"],
        "segment_method": given["SEGMENT_METHOD"],
        "entropy_threshold": given["C"],
        "agg_func": given["AGG_FUNC"],
        **entry["fit"],
    }


def ppo_flags(call: Call) -> Flags:
    """The flags of train-ppo."""
    given, entry = call.given, _entry(call.table, call.given["MODEL_TYPE"])
    level, kind = reward_level(given["C"]), given["REWARD_TYPE"]
    _one_of("REWARD_TYPE", kind, REWARD_TYPES)
    own_model = "reward_model" in call.overridden
    require(
        own_model or level in entry["reward_models"],
        f"{given['MODEL_TYPE']} has no reward model of the {level} level in {TABLE.name}",
        "add --reward_model PATH at the end",
    )
    # Who chooses another normaliser by flag gives its constants by flag too.
    normalizer = None if "normalizer" in call.overridden else call.words.get("normalizer", NORMALIZERS[kind])
    constants: Flags = {}
    if normalizer == "location":
        constants = entry["normalizer"] | {"fit_tag": given["FIT_TAG"]}
    elif normalizer == "scalar" and level == "bandit" and not own_model:
        # They belong to the table's bandit model; any other reward model brings its mean and std in its config.
        constants = entry["bandit"] or {}
    return {
        "model": entry["sft_model"],
        "reward_model": entry["reward_models"].get(level),
        **_data(call.table, given["DATASET"], "ppo"),
        "output_dir": _output_dir(given["EXP"]),
        "episodes": None if "iterations" in call.overridden else _positive("EPISODES", given),
        **_cut(given),
        "model_type": given["MODEL_TYPE"],
        "assignment": kind,
        "normalizer": normalizer,
        **constants,
        "value_clip": _positive("VALUE_CLIP", given),
        **entry["ppo"],
        **call.words,
    }


RECIPES = {
    "train-rm": Recipe(
        "train_seg_rm.sh",
        "denserl.cli.train_rm",
        ("EXP", "MODEL_TYPE", "DATASET", "EPOCHS", "SEGMENT_METHOD", "C", "AGG_FUNC"),
        "train_seg_rm phi3-instruct preference_700K 1 peak 1.75 avg --gpus 8",
        rm_flags,
    ),
    "fit-normalizer": Recipe(
        "run_fit_function.sh",
        "denserl.cli.fit_normalizer",
        ("RM_PATH", "SEGMENT_METHOD", "C", "AGG_FUNC"),
        "yyqoni/Phi-3-mini-4k-instruct-segment-rm-700k peak 1.75 avg --gpus 8",
        fit_flags,
        writes=("output_dir", "params"),
    ),
    "train-ppo": Recipe(
        "train_ppo_segment.sh",
        "denserl.cli.train_ppo",
        tuple("EXP MODEL_TYPE DATASET EPISODES SEGMENT_METHOD C AGG_FUNC REWARD_TYPE VALUE_CLIP FIT_TAG".split()),
        "ppo_segment phi3-instruct Ultrafeedback 2 peak 1.75 avg segment_normalization 0.25 preference700k_60000 --gpus 8",
        ppo_flags,
    ),
}


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
    _one_of("SEGMENT_METHOD", given["SEGMENT_METHOD"], ["peak"])
    _one_of("AGG_FUNC", given["AGG_FUNC"], ["avg"])
    reward_level(given["C"])
    further = _grouped(expand_config(further))
    overridden = {_flag_name(line[0]) for line in further}
    words = translate_words(given["EXP"], given["C"]) if name == "train-ppo" else {}
    table = read_table()
    flags = recipe.flags(Call(given, table, overridden, words))
    flags = {flag: value for flag, value in flags.items() if value is not None and flag not in overridden}
    read = {flag: Path(value) for flag, value in flags.items() if isinstance(value, str) and flag not in recipe.writes}
    if "output_dir" in flags:
        _check_output(Path(flags["output_dir"]), read)
    if check_files:
        model = flags.get("reward_model", "RM_PATH")
        makers = {Path(made): command.format(rm=model, C=given["C"]) for made, command in table["made_by"].items()}
        _check_inputs(read, makers)
    launcher = ["torchrun", "--standalone", "--nproc_per_node", gpus] if gpus else ["python"]
    own = [as_flags(flag, value) for flag, value in flags.items()]
    return [[*launcher, "-m", recipe.module], *own, *further], _notes(given, words, flags)


def main(argv: list[str] | None = None) -> None:
    """Print a recipe's command and become it; DRY_RUN=1 in the environment only prints."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name not in RECIPES:
        say(f"denserl.cli.recipes: no recipe {name!r}; expected one of: {', '.join(RECIPES)}", sys.stderr)
        raise SystemExit(2)
    recipe, dry = RECIPES[name], os.environ.get("DRY_RUN", "") not in ("", "0")
    if not rest or rest[0] in ("-h", "--help"):
        say(_usage(name, recipe))
        return
    try:
        lines, notes = plan(name, rest, check_files=not dry)
    except UserError as error:
        say(f"{recipe.script}: {error}", sys.stderr)
        raise SystemExit(2) from None
    for note in notes:
        say(f"# {note}")
    say(" \\\n    ".join(map(shlex.join, lines)))
    if not dry:
        launcher, *words = [word for line in lines for word in line]
        # Replaces this process, so that signals and the exit status are the command's own.
        os.execv(sys.executable, [*LAUNCHERS[launcher], *words])


def _usage(name: str, recipe: Recipe) -> str:
    types = ", ".join(read_table()["model_types"])
    return (
        f"usage: bash examples/scripts/{recipe.script} {' '.join(recipe.arguments)} [--gpus N] [FLAGS]\n"
        f"  e.g. bash examples/scripts/{recipe.script} {recipe.example}\n\n"
        f"  MODEL_TYPE      {types} (denserl/cli/model_types.yaml)\n"
        "  SEGMENT_METHOD  peak\n"
        "  C               entropy threshold: 0 token level, 1000 bandit, between them segments\n"
        "  AGG_FUNC        avg\n"
        + (f"  REWARD_TYPE     {', '.join(REWARD_TYPES)}\n" if "REWARD_TYPE" in recipe.arguments else "")
        + "  --gpus N        run on N GPUs of this host, through torchrun\n"
        f"  FLAGS           any of `denserl {name} --help`; they replace the recipe's own\n"
        "  DRY_RUN=1 in the environment only prints the command."
    )


def _notes(given: dict[str, str], words: Flags, flags: Flags) -> list[str]:
    notes = []
    if words:
        shown = shlex.join(part for flag, value in words.items() for part in as_flags(flag, value))
        notes.append(f"words in the name {given['EXP']} are translated to {shown}")
    if "dataset_tag" in flags:
        notes.append(f"FIT_TAG of this fit for train_ppo_segment.sh: {flags['dataset_tag']}")
    return notes


def _one_of(argument: str, value: str, known) -> None:
    require(value in known, f"{argument} is {value!r}; it must be one of: {', '.join(known)}", f"use {next(iter(known))}")


def _positive(argument: str, given: dict[str, str]) -> str:
    try:
        value = float(given[argument])
    except ValueError:
        value = math.nan
    require(0 < value < math.inf, f"{argument} is {given[argument]!r}; it must be a number > 0", "e.g. 1")
    return given[argument]


def _entry(table: dict, model_type: str) -> dict:
    types = table["model_types"]
    fix = f"use one of {', '.join(types)}, or add an entry to {TABLE}"
    require(model_type in types, f"MODEL_TYPE is {model_type!r}, which the table of model types does not have", fix)
    return types[model_type]


def _data(table: dict, name: str, use: str) -> Flags:
    flags = table["data"].get(name, {"data": name})
    return flags.get(use, flags)


def _output_dir(experiment: str) -> str:
    plain = re.fullmatch(r"[^/\\]+", experiment) and experiment != "." and ".." not in experiment
    require(bool(plain), f"EXP is {experiment!r}; it names the output folder runs/EXP", "leave out slashes and '..'")
    return f"runs/{experiment}"


def _cut(given: dict[str, str]) -> Flags:
    level = reward_level(given["C"])
    return {
        "reward_level": level,
        "segment_method": given["SEGMENT_METHOD"],
        "entropy_threshold": given["C"] if level == "segment" else None,
        "agg_func": given["AGG_FUNC"],
    }


def _stored_type(reward_model: str, types: dict) -> str:
    """The model type that train-rm wrote into the config of a local reward model."""
    config = Path(reward_model) / "config.json"
    known = [name for entry in types.values() for name in entry["reward_models"].values()]
    require(
        config.is_file(),
        f"RM_PATH {reward_model} is neither a model folder (no {config}) nor one of {', '.join(known)}",
        "train one with train_seg_rm.sh, or call denserl fit-normalizer with the flags of your model",
    )
    try:
        model_type = json.loads(config.read_text(encoding="utf-8"))["segment_reward"]["model_type"]
    except (ValueError, KeyError, TypeError):
        model_type = None
    require(
        model_type in types,
        f"{config} names the model type {model_type!r}; the table has {', '.join(types)}",
        f"add an entry to {TABLE}, or call denserl fit-normalizer with the flags of your model",
    )
    return model_type


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


if __name__ == "__main__":
    main()
