"""Options that do nothing because of what others are: refused by name, since who gives one expects something of it.

Ranges of single options are in common.py.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from denserl.errors import UserError

Settings = dict[str, object]


# The normaliser that goes with what an assignment pays: single segments by their place, or the score of the response.
NORMALIZERS = {
    **dict.fromkeys(("even", "repeat", "end", "even_mean"), "location"),
    **dict.fromkeys(("segment_normalization", "same_segment_last", "every_segment_last"), "location"),
    **dict.fromkeys(("difference", "difference_end", "score_last", "mean_last", "logsumexp_last"), "scalar"),
    **dict.fromkeys(("segment_last_avg", "segment_last_logsumexp"), "scalar"),
}


def assignment_kind(level: str, kind: str | None) -> str:
    """The assignment of a reward level, unless one is given."""
    return kind or ("mean_last" if level == "bandit" else "difference_end")


def normalizer_kind(level: str, assignment: str | None, kind: str | None) -> str:
    """The normaliser of an assignment, unless one is given; a bandit reward has no place to be normalised by."""
    return kind or ("scalar" if level == "bandit" else NORMALIZERS[assignment_kind(level, assignment)])


def _normalizes_by(kind: str) -> Callable[[Settings], bool]:
    # fit-normalizer has no normaliser to choose, and writes what train-ppo reads under the same name.
    return lambda s: "normalizer" not in s or normalizer_kind(s["reward_level"], s["assignment"], s["normalizer"]) == kind


def _has_split(*sources: list[str] | None) -> bool:
    """Whether one of the sources has splits to choose from: a folder or a hub dataset, not a file."""
    return any(not Path(source).is_file() for part in sources for source in part or [])


def _is_split(settings: Settings) -> bool:
    sources = [settings["path"]] if "path" in settings else settings["data"]
    return settings.get("suite") not in ("rmb", "llmbar") and _has_split(sources, settings.get("ptx_data"))


# Option -> when it has no effect, in words, and the test of the settings that it has one.
EFFECTS: dict[str, tuple[str, Callable[[Settings], object]]] = {
    **dict.fromkeys(("lora_alpha", "lora_dropout", "lora_targets"), ("without --lora_rank", lambda s: s["lora_rank"])),
    # The trunk has no adapters to train, and no text-generation term moves it.
    **dict.fromkeys(("lora_rank", "reg_type"), ("with --freeze_trunk", lambda s: not s.get("freeze_trunk"))),
    **dict.fromkeys(("reg_coef", "reg_logp"), ("without --reg_type", lambda s: s["reg_type"] != "none")),
    "reg_beta": ("without --reg_type sft, dpo or dpo_noref", lambda s: s["reg_type"] not in ("none", "sft_plain")),
    **dict.fromkeys(
        ("head_layers", "head_width", "head_dropout"),
        ("without --head_type mlp", lambda s: s["head_type"] == "mlp"),
    ),
    # plan tries all stages.
    "offload_optimizer": ("with --zero_stage 0", lambda s: s.get("zero_stage", True)),
    "split": ("where there are no splits: folders and hub datasets have some, files do not", _is_split),
    **dict.fromkeys(
        ("sft_model", "entropy_threshold", "max_length", "score_tokens"),
        ("with --scorer length or random", lambda s: not {"length", "random"} & {*s.get("scorer", [])}),
    ),
    "paper_compat": ("but on mtbench", lambda s: s["suite"] == "mtbench"),
    "eval_split": (
        "without a folder or hub dataset of held-out rows",
        lambda s: _has_split(s.get("eval_data"), s.get("eval_prompts")),
    ),
    "eval_steps": ("without --eval_data", lambda s: s["eval_data"] or "eval_size" in s),
    "eval_size": ("beside --eval_data", lambda s: not s["eval_data"]),
    "eval_every": ("without --eval_prompts", lambda s: s["eval_prompts"]),
    **dict.fromkeys(
        ("eval_limit", "true_reward", "gold_reward_model"),
        # Best-of-n has its prompts under --data.
        (
            "without --eval_prompts, or with --eval_every 0",
            lambda s: s.get("eval_prompts", True) and s.get("eval_every", True),
        ),
    ),
    "ensemble": ("with a single reward model", lambda s: len(s.get("reward_model") or s.get("scorer") or []) > 1),
    "ensemble_weight": ("without --ensemble mean_std", lambda s: s["ensemble"] == "mean_std"),
    "episodes": ("beside --iterations", lambda s: not s["iterations"]),
    "kl_horizon": ("without --kl_target", lambda s: s["kl_target"]),
    "ptx_coef": ("without --ptx_data", lambda s: s["ptx_data"]),
    "penalty": (
        "without --penalise_unfinished or --penalise_longer_than",
        lambda s: s["penalise_unfinished"] or s["penalise_longer_than"],
    ),
    "tau": (
        "without --assignment logsumexp_last",
        lambda s: s["assignment"] in ("logsumexp_last", "segment_last_logsumexp"),
    ),
    **dict.fromkeys(("reward_mean", "reward_std"), ("without --normalizer scalar", _normalizes_by("scalar"))),
    **dict.fromkeys(("fit_tag", "params"), ("without --normalizer location", _normalizes_by("location"))),
}


def check_effects(options) -> None:
    """UserError for an option that is set, not to its default nor to nothing, and would be ignored."""
    settings: Settings = dataclasses.asdict(options)
    for field in dataclasses.fields(options):
        value = settings[field.name]
        if field.name not in EFFECTS or not value or value == field.default:
            continue
        when, has_effect = EFFECTS[field.name]
        if not has_effect(settings):
            shown = f"--{field.name}" if value is True else f"--{field.name} {value}"
            raise UserError(f"{shown} has no effect {when}", f"leave --{field.name} out, or change what it goes with")
