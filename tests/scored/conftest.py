"""Tiny reward models of every kind."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "rewards")]
from plain_scores import MOMENTS, THRESHOLD  # noqa: E402
from reward_folders import save_pair_model, save_reward_model  # noqa: E402


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders, by kind."""
    folder = tmp_path_factory.mktemp("scored")
    sft = tiny_models.save_language_model(folder / "sft")
    how = {"entropy_threshold": THRESHOLD, "sft_model": str(sft), "agg_func": "avg"}
    steps = {"scores": "logit", "segmenter": "step", "step_separator": ["\n\n"], "agg_func": "min"}
    return SimpleNamespace(
        sft=str(sft),
        other=str(tiny_models.save_language_model(folder / "other", seed=5)),
        segment=save_reward_model(folder / "segment", sft, 1, moments=MOMENTS, **how),
        token=save_reward_model(folder / "token", sft, 2, moments=MOMENTS, **{**how, "entropy_threshold": 0.0}),
        bandit=save_reward_model(
            folder / "bandit", sft, 3, moments=MOMENTS, entropy_threshold=1000.0, read_at="end_of_turn", agg_func="avg"
        ),
        stock=save_reward_model(folder / "stock", sft, 4),
        step=save_reward_model(folder / "step", sft, 5, **steps),
        turns=save_reward_model(folder / "turns", sft, 6, **steps, context_signs="plus"),
        gated=str(tiny_models.save_gated_model(folder / "gated", sft)),
        pair=save_pair_model(folder / "pair", sft),
    )
