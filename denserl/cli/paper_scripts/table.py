"""The table of model types, model_types.yaml: reading it, and what is looked up there. What flags it makes is in flags.py."""

import json
from pathlib import Path

import yaml

from denserl.errors import UserError, require

TABLE = Path(__file__).parents[1] / "model_types.yaml"
ENTRY_KEYS = ("sft_model", "reward_models", "bandit", "data", "rm", "fit", "ppo")


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


def entry_of(table: dict, model_type: str) -> dict:
    """The entry of a model type. UserError where there is none."""
    types = table["model_types"]
    fix = f"use one of {', '.join(types)}, or add an entry to {TABLE}"
    require(model_type in types, f"MODEL_TYPE is {model_type!r}, which the table of model types does not have", fix)
    return types[model_type]


def data_flags(table: dict, name: str, use: str) -> dict[str, object]:
    """The flags of a name of data; a name that the table does not have is a path or hub name. use: rm, fit or ppo."""
    flags = table["data"].get(name, {"data": name})
    return flags.get(use, flags)


def owner_of(table: dict, reward_model: str) -> str | None:
    """The model type whose reward model this is, or None."""
    types = table["model_types"]
    return next((name for name, entry in types.items() if reward_model in entry["reward_models"].values()), None)


def stored_type(table: dict, reward_model: str) -> str:
    """The model type whose SFT model a local reward model was trained from, by its config. UserError where there is none."""
    types, config = table["model_types"], Path(reward_model) / "config.json"
    known = [name for entry in types.values() for name in entry["reward_models"].values()]
    require(
        config.is_file(),
        f"RM_PATH {reward_model} is neither a model folder (no {config}) nor one of {', '.join(known)}",
        "train one with train_seg_rm.sh, or call denserl fit-normalizer with the flags of your model",
    )
    try:
        sft_model = str(json.loads(config.read_text(encoding="utf-8"))["segment_reward"]["sft_model"])
    except (ValueError, KeyError, TypeError):
        sft_model = ""
    found = [name for name, entry in types.items() if Path(entry["sft_model"]).absolute() == Path(sft_model).absolute()]
    require(
        found,
        f"{config} names the SFT model {sft_model!r}, which is of no model type of the table: {', '.join(types)}",
        f"add an entry to {TABLE}, or call denserl fit-normalizer with the flags of your model",
    )
    return found[0]
