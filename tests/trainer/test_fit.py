"""The fit of a reward model: kept beside it and found there by PPO, at the lengths it was trained with, its quality said."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from safetensors.torch import load_file, save_file

from denserl.cli import fit_normalizer, train_rm
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards import pairs as reward_pairs
from denserl.trainer import fit as fits
from denserl.trainer.checkpoint import newest_checkpoint, read_state


@pytest.fixture
def reward_model(world, tmp_path) -> Path:
    """The world's, in a folder of its own, as one that was trained on short sequences."""
    folder = Path(shutil.copytree(world.reward_model, tmp_path / "rm"))
    config = json.loads((folder / "config.json").read_text())
    config["segment_reward"] |= {"max_length": 24, "max_prompt_length": 12}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def fit(reward_model, tmp_path):
    """Runs fit-normalizer in this process: options -> the record of the fit."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in tiny_models.boat_pairs(6)))
    settings = {"reward_model": reward_model, "data": pairs, "output_dir": tmp_path / "fit", "cache_dir": tmp_path / "cache"}
    return lambda **more: tiny_models.run_command(fit_normalizer, "fit-normalizer", tiny_models.as_argv(settings | more))


def test_a_fit_is_kept_beside_the_model_and_found_there(fit, ppo, reward_model, caplog):
    caplog.set_level(logging.INFO)
    record = fit()
    assert json.loads((reward_model / "fits.json").read_text()) == {"peak/avg/5.3": record}
    assert (
        f"next: denserl train-ppo --model POLICY --reward_model {reward_model} --assignment even --data PROMPTS" in caplog.text
    )
    run = ppo(reward_model=reward_model, assignment="even", fit=None, save_every=1)
    w_mu, w_sigma, b_mu, b_sigma = record["constants"]
    normalizer = f"LocationNormalizer(w_mu={w_mu}, w_sigma={w_sigma}, b_mu={b_mu}, b_sigma={b_sigma})"
    assert normalizer in read_state(newest_checkpoint(run / "checkpoints"))["settings"]["rewards of reward_model"]


def test_a_fit_of_other_weights_is_refused_where_it_was_not_asked_for(fit, ppo, reward_model, caplog):
    fit()
    weights = load_file(reward_model / "model.safetensors")
    weights["score.weight"] += 1
    save_file(weights, reward_model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="fits.json: the fit is of other weights than .*/rm has now"):
        ppo(reward_model=reward_model, assignment="even", fit=None)
    ppo(reward_model=reward_model, assignment="even", fit=reward_model / "fits.json")
    assert f"of other weights than {reward_model} has now" in caplog.text
    fit()
    caplog.clear()
    ppo("again", reward_model=reward_model, assignment="even", fit=None)
    assert "other weights" not in caplog.text


def test_pairs_are_cut_to_the_lengths_that_the_model_was_trained_with(fit, reward_model, monkeypatch, caplog):
    seen, read = [], fits.segment_rewards
    monkeypatch.setattr(fits, "segment_rewards", lambda source, pairs, *more: seen.append(pairs) or read(source, pairs, *more))
    assert load_tokenizer(str(reward_model))
    records = [fit(), fit(max_length=40)]
    longest = [max(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in pairs) for pairs in seen]
    assert [(r["max_length"], r["max_prompt_length"]) for r in records] == [(24, 12), (40, 12)]
    assert longest[0] == 24 < longest[1] <= 40
    assert [message for message in caplog.messages if "max_length" in message] == [
        f"{reward_model}: trained with max_length 24; fitted at 40"
    ]


def test_a_fit_of_steps_asks_no_language_model(fit, reward_model, tmp_path, monkeypatch):
    monkeypatch.setattr(reward_pairs, "load_policy", pytest.fail)
    config = json.loads((reward_model / "config.json").read_text())
    config["segment_reward"] |= {"segmenter": "step"}
    (reward_model / "config.json").write_text(json.dumps(config))
    record = fit(step_separator=" ")
    assert record["segments"] > record["pairs"] == 6 and not [*tmp_path.glob("cache/reference")]
    with pytest.raises(UserError, match="--sft_model .* has no effect where steps are cut"):
        fit(step_separator=" ", sft_model=tmp_path)


def test_a_fit_after_its_training_asks_the_language_model_nothing(world, tmp_path, monkeypatch, caplog):
    """Rows that the training split off and those it learned from are all found; so are those of a part of the file."""
    caplog.set_level(logging.INFO)
    pairs, cache = tmp_path / "pairs.jsonl", tmp_path / "cache"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in tiny_models.boat_pairs(24)))
    training = {"model": world.sft, "data": pairs, "output_dir": tmp_path / "rm", "eval_size": 4, "batch_size": 4}
    training |= {"lr": 1e-3, "save_steps": 0, "cache_dir": cache, "entropy_threshold": world.threshold}
    tiny_models.run_command(train_rm, "train-rm", tiny_models.as_argv(training))
    asked = [message for message in caplog.messages if "left to ask" in message]
    assert asked and not any("left to ask: 0 tokens" in message for message in asked)
    caplog.clear()
    monkeypatch.setattr(reward_pairs, "load_policy", pytest.fail)
    for limit in (None, 7):
        fit = {
            "reward_model": tmp_path / "rm",
            "data": pairs,
            "output_dir": tmp_path / "fit",
            "cache_dir": cache,
            "limit": limit,
        }
        record = tiny_models.run_command(fit_normalizer, "fit-normalizer", tiny_models.as_argv(fit))
        assert record["pairs"] == (limit or 24)
    asked = [message for message in caplog.messages if "left to ask" in message]
    assert asked and all("left to ask: 0 tokens" in message for message in asked)


def test_lines_worse_than_constants_are_said_by_the_fit_and_by_ppo(fit, ppo, reward_model, monkeypatch, caplog):
    # At nine places the reward is constant, at one it is far off: a Huber line keeps to the nine, a constant has R^2 0.
    rows = [np.array([1.0, 1, 1, 1, 1, 1, 1, 1, 1, 9]) + noise for noise in (-0.5, 0.5, -0.5, 0.5)]
    monkeypatch.setattr(fits, "segment_rewards", lambda *args: rows)
    with caplog.at_level(logging.WARNING):
        record = fit()
        ppo(reward_model=reward_model, assignment="even", fit=None)
    assert record["r2_mean"] < 0
    said = [message for message in caplog.messages if f"mean (R^2 {record['r2_mean']:.3f})" in message]
    assert len(said) == 2 and said[0] == said[1]
