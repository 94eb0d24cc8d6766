"""From the positional arguments and the table to the flags of each command. A flag of value None is left out."""

from pathlib import Path
from typing import NamedTuple

from denserl.cli.paper_scripts.arguments import one_of, output_dir, positive, reward_level
from denserl.cli.paper_scripts.table import TABLE, data_flags, entry_of, owner_of, stored_type
from denserl.errors import require
from denserl.ppo_utils.config import NORMALIZERS

Flags = dict[str, object]

# What the paper's release calls its assignments.
REWARD_TYPES = (
    "segment_normalization",
    "same_segment_last",
    "every_segment_last",
    "segment_last_avg",
    "segment_last_logsumexp",
)

OWN = "own"  # the FIT_TAG of a reward model's own fit


class Call(NamedTuple):
    """What a recipe makes its flags from."""

    given: dict[str, str]  # the positional arguments by name
    table: dict
    overridden: set[str]  # names of the flags that follow the positional arguments
    words: Flags  # what special words in the experiment's name stand for


def rm_flags(call: Call) -> Flags:
    """The flags of train-rm."""
    given, entry = call.given, entry_of(call.table, call.given["MODEL_TYPE"])
    return {
        "model": entry["sft_model"],
        **data_flags(call.table, given["DATASET"], "rm"),
        "output_dir": output_dir(given["EXP"]),
        "epochs": positive("EPOCHS", given),
        **_cut(given),
        **entry["rm"],
    }


def fit_flags(call: Call) -> Flags:
    """The flags of fit-normalizer."""
    given, reward_model = call.given, call.given["RM_PATH"].rstrip("/")
    require(
        reward_level(given["C"]) != "bandit",
        f"C is {given['C']}: a bandit reward has one place, so there is no line to fit",
        "train PPO without a fit; the mean and std of a bandit reward are in the reward model's config or in the table",
    )
    owner = owner_of(call.table, reward_model)
    entry = entry_of(call.table, owner or stored_type(call.table, reward_model))
    return {
        "reward_model": reward_model,
        **data_flags(call.table, entry["data"], "fit"),
        "output_dir": f"runs/fit/{Path(reward_model).name}-{given['C']}",
        "sft_model": entry["sft_model"] if owner else None,
        "entropy_threshold": given["C"],
        "agg_func": given["AGG_FUNC"],
        **entry["fit"],
    }


def ppo_flags(call: Call) -> Flags:
    """The flags of train-ppo."""
    given, entry = call.given, entry_of(call.table, call.given["MODEL_TYPE"])
    level, kind = reward_level(given["C"]), given["REWARD_TYPE"]
    one_of("REWARD_TYPE", kind, REWARD_TYPES)
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
        constants = {"fit": _fit(given)}
    elif normalizer == "scalar" and level == "bandit" and not own_model:
        # They belong to the table's bandit model; any other reward model brings its mean and std in its config.
        constants = entry["bandit"] or {}
    # The published bandit models hold weights alone, not where they are read; the release does so at the end-of-turn token.
    read_at = "end_of_turn" if level == "bandit" and not own_model else None
    return {
        "model": entry["sft_model"],
        "reward_model": entry["reward_models"].get(level),
        **data_flags(call.table, given["DATASET"], "ppo"),
        "output_dir": output_dir(given["EXP"]),
        "episodes": None if "iterations" in call.overridden else positive("EPISODES", given),
        **_cut(given),
        "read_at": read_at,
        "assignment": kind,
        "normalizer": normalizer,
        **constants,
        "value_clip": positive("VALUE_CLIP", given),
        **entry["ppo"],
        **call.words,
    }


def _fit(given: dict[str, str]) -> str | None:
    """The published fit that FIT_TAG names, or None for the one beside the reward model."""
    # Here, for it loads torch, which the scripts' help does without.
    from denserl.ppo_utils.normalizer import published_names

    published = [name.split("/") for name in published_names()]
    one_of("FIT_TAG", given["FIT_TAG"], [OWN, *(tag for model_type, tag in published if model_type == given["MODEL_TYPE"])])
    return None if given["FIT_TAG"] == OWN else f"{given['MODEL_TYPE']}/{given['FIT_TAG']}"


def _cut(given: dict[str, str]) -> Flags:
    level = reward_level(given["C"])
    return {
        "reward_level": level,
        "entropy_threshold": given["C"] if level == "segment" else None,
        "agg_func": given["AGG_FUNC"],
    }
