"""Trainings whose rows have unequal lengths and come in numbers that nothing divides."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_runs import Training, start_server
from tiny_models import as_argv
from trainer.conftest import World, world  # noqa: F401

sys.path.append(str(Path(__file__).parent.parent / "rewards"))
from reward_folders import save_pair_model  # noqa: E402

WORDS = "the old kettle hums in a small garden while rain falls on stone and boats wait under the quiet bridge".split()
PAIRS, HELD_OUT, DEMONSTRATIONS, SAMPLED = 17, 7, 19, 8
# What has numbers of its own is switched on. Two passes over 8 responses, one optimiser step each, five times over.
PPO = {
    "iterations": 5,
    "rollout_batch_size": 8,
    "train_batch_size": 8,
    "micro_batch_size": 8,
    "samples_per_prompt": 2,
    "ppo_epochs": 2,
    "max_new_tokens": 16,
    "temperature": 0.9,
    "kl_coefficient": 0.1,
    "kl_target": 0.05,
    "kl_horizon": 100,
    "kl_estimator": "k2",
    "ema_decay": 0.8,
    "eval_every": 2,
    "warmup_ratio": 0.2,
    "weight_decay": 0.01,
    "advantage_clip": 2.0,
    "dual_clip": 1.5,
    "entropy_coef": 0.1,
    "entropy_target": 5.3,  # near the mean, on either side of it in the steps
}
RUNNING = {"normalizer": "running", "score_clip": 0.8}
# The other average, another way from scores to rewards, two optimiser steps a pass, a critic that begins alone.
PPO_BY_TOKEN = PPO | {
    "normalizer": "running_scale",
    "ppo_epochs": 1,
    "train_batch_size": 4,
    "micro_batch_size": 4,
    "samples_per_prompt": 1,
    "average": "token_mean",
    "reward_level": "token",
    "entropy_threshold": None,
    "penalise_longer_than": 10,
    "critic_warmup_iterations": 1,
    "advantage_norm": "off",
    "value_coef": 0.5,
    "lr_schedule": "inverse_sqrt",
    "entropy_target": None,
    "top_p": 0.9,
    "ema_decay": 0,
    "kl_target": None,
    "kl_horizon": None,
    "kl_estimator": "k3",
}
# No critic; a group is on both ranks.
PPO_OF_GROUPS = PPO | {"advantage": "grpo", "critic_lr": None, "samples_per_prompt": 4, "average": "constant"}
PPO_OF_GROUPS |= {
    "kl_in": "loss",
    "kl_estimator": None,
    "entropy_target": None,
    "reward_level": "token",
    "entropy_threshold": None,
}
# Ten steps: two passes of five, the last of which takes one pair, so that a second rank has nothing of it.
SUPERVISED = {
    "batch_size": 4,
    "micro_batch_size": 4,
    "epochs": 2,
    "lr": 1e-3,
    "warmup_ratio": 0.2,
    "weight_decay": 0.01,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 0,
    "max_length": 96,
}
RM = {
    "entropy_threshold": 5.3,
    "max_prompt_length": 48,
    "score_tokens": 200,
    "use_margin": True,
    "label_smoothing": 0.1,
    "centring": 0.01,
}

# Three prompts a step, of which a second rank has one, and two forwards of its own a first one.
META = {"meta_lr": 0.05, "meta_samples": 3, "meta_prompts": 3}
STEPS = {"input": "steps", "max_prompt_length": 48, "score_tokens": 200}
RATINGS = {"input": "ratings", "head_type": "attributes", "max_prompt_length": 48, "score_tokens": 200}
RATINGS |= {"entropy_threshold": 5.3, "rating_columns": ["long", "odd", "late"], "attribute_weights": [1, 0.5, -0.5]}
PAIR = {"input": "pair", "head_type": "label", "both_orders": True, "symmetry": 0.2, "max_length": 160, "score_tokens": 400}
LABELS = STEPS | {"context_signs": "true", "head_type": "label", "label_ce": "full", "step_average": "solutions"}


def sentence(start: int, length: int) -> str:
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(length))


def pair(i: int) -> dict:
    """A pair of preferences; over the rows all of prompt, chosen and rejected vary in length, each by itself."""
    return {
        "prompt": sentence(i, 1 + 5 * i % 7),
        "chosen": sentence(2 * i, 1 + 7 * i % 11),
        "rejected": sentence(3 * i + 1, 1 + 4 * i % 9),
        "chosen_rating": 1 + i % 4,
        "rejected_rating": 1,
        "p_chosen": (1, 0.5, 0.2)[i % 3],
        "weight": (1, 2.5, 0, 0.25, 1)[i % 5],
    }


def solution(i: int) -> dict:
    """A solution of labelled steps; prompt, number of steps, their lengths and how many have labels vary, each by itself."""
    steps = [sentence(2 * i + k, 1 + (3 * i + 5 * k) % 7) for k in range(1 + 4 * i % 5)]
    labels = [(i + k) % 3 / 2 for k in range(len(steps) - (len(steps) > 2) * (i % 2))]
    return {"prompt": sentence(i, 1 + 5 * i % 7), "completions": steps, "labels": labels}


def rated(i: int) -> dict:
    """A rated response; prompt, response and which ratings there are vary, each by itself."""
    ratings = {"long": (7 * i % 11) / 11, "odd": float(i % 2), "late": i / (PAIRS + 100)}
    kept = {name: value for k, (name, value) in enumerate(ratings.items()) if (i + k) % 4 != 3}
    return {"prompt": sentence(i, 1 + 5 * i % 7), "response": sentence(2 * i, 1 + 7 * i % 11), "attributes": kept}


def sampled(i: int) -> dict:
    """A prompt with three to five responses, all of lengths of their own."""
    return {
        "prompt": sentence(i, 1 + 5 * i % 7),
        "responses": [sentence(i + 2 * k, 1 + (7 * i + 4 * k) % 11) for k in range(3 + i % 3)],
    }


def demonstration(i: int) -> dict:
    turns = ("user", sentence(i, 1 + 5 * i % 7)), ("assistant", sentence(2 * i, 1 + 7 * i % 11))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def trainings(world, tmp_path_factory) -> dict[str, Training]:  # noqa: F811
    """See `make_trainings`."""
    start_server()
    return make_trainings(world, tmp_path_factory.mktemp("parity"))


def make_trainings(world: World, root: Path) -> dict[str, Training]:  # noqa: F811
    """Name -> training of ten optimiser steps, in one process, without ZeRO and without accumulation; its files in a folder."""
    text = write(root / "text.jsonl", [{"text": sentence(i, 3 + 5 * i % 13)} for i in range(11)])
    rows = {
        "pairs": [pair(i) for i in range(PAIRS)],
        "held-out-pairs": [pair(100 + i) for i in range(HELD_OUT)],
        "steps": [solution(i) for i in range(PAIRS)],
        "held-out-steps": [solution(100 + i) for i in range(HELD_OUT)],
        "samples": [sampled(i) for i in range(SAMPLED)],
        "held-out-samples": [sampled(100 + i) for i in range(HELD_OUT)],
        "ratings": [rated(i) for i in range(PAIRS)],
        "held-out-ratings": [rated(100 + i) for i in range(HELD_OUT)],
        "demonstrations": [demonstration(i) for i in range(DEMONSTRATIONS)],
        "held-out-demonstrations": [demonstration(100 + i) for i in range(HELD_OUT)],
    }
    files = {name: write(root / f"{name}.jsonl", found) for name, found in rows.items()}

    def argv(rows: str) -> Callable[..., list[str]]:
        sources = {"model": world.sft, "data": files[rows], "eval_data": files[f"held-out-{rows}"]}
        return lambda output, **options: as_argv({**sources, "output_dir": output, **SUPERVISED, **options})

    meta = {"meta_data": files["samples"], "meta_eval": files["held-out-samples"], "cache_dir": root / "cache"}
    held_out = {"eval_prompts": world.prompts}
    compares = {"reward_model": save_pair_model(root / "pm", world.sft), "entropy_threshold": None, "pair_opponent": "group"}
    return {
        "ppo": Training("train_ppo", world.argv, PPO | held_out | RUNNING | {"ptx_data": text}),
        "ppo-published": Training("train_ppo", world.argv, PPO | held_out | {"assignment": "even"}),
        "ppo-compared": Training("train_ppo", world.argv, PPO | held_out | compares),
        "ppo-by-token": Training("train_ppo", world.argv, PPO_BY_TOKEN | held_out),
        "ppo-of-groups": Training("train_ppo", world.argv, PPO_OF_GROUPS | held_out),
        "rm": Training("train_rm", argv("pairs"), RM | {"cache_dir": root / "cache"}),
        "disentangled": Training("train_rm", argv("pairs"), RM | {"cache_dir": root / "cache", "disentangle": "length"}),
        "meta": Training("train_rm", argv("pairs"), RM | META | meta),
        "pair": Training("train_rm", argv("pairs"), PAIR),
        "steps": Training("train_rm", argv("steps"), STEPS),
        "ratings": Training("train_rm", argv("ratings"), RATINGS | {"cache_dir": root / "cache"}),
        "labels": Training("train_rm", argv("steps"), LABELS),
        "sft": Training("train_sft", argv("demonstrations"), {}),
    }
