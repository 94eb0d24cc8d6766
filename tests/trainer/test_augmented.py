"""Reward models that are trained on pairs made of others."""

import json

import numpy as np
import pytest
import tiny_models

from denserl.cli import train_rm
from denserl.data.bad_rows import BadRow
from denserl.data.preferences import load_preferences
from denserl.errors import UserError
from denserl.rewards.scorer import RewardScorer
from denserl.trainer.augmented import augmented
from denserl.trainer.reward_config import RewardConfig


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A language model, and twelve pairs of six kinds."""
    root = tmp_path_factory.mktemp("augmented")
    tiny_models.save_language_model(root / "sft")
    rows = [
        {**row, "chosen": f"{row['chosen']} {i}", "kind": f"kind {i % 6}"} for i, row in enumerate(tiny_models.boat_pairs(12))
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def train(files, tmp_path):
    """Runs train-rm in this process: options -> output folder."""

    def run(name="rm", **options):
        given = {"model": files / "sft", "data": files / "pairs.jsonl", "eval_data": files / "pairs.jsonl"}
        own = {"cache_dir": files / "cache", "entropy_threshold": 1000, "batch_size": 8, "micro_batch_size": 8, "lr": 1e-3}
        lengths = {"max_length": 64, "max_prompt_length": 48, "logging_steps": 1, "eval_steps": 0, "save_steps": 0}
        argv = tiny_models.as_argv({**given, **own, **lengths, "output_dir": tmp_path / name, **options})
        tiny_models.run_command(train_rm, "train-rm", argv)
        return tmp_path / name

    return run


def test_the_pairs_and_those_made_of_them_are_trained_on_and_held_out_ones_stay(train, caplog):
    folder = train(augment="rrm", augment_group="kind", augment_ratio=0.5, save_steps=3, epochs=0.5)
    # 12 and 7 for each of them, by 8 a step; half a pass.
    settings = json.loads((folder / "checkpoints/step-000006/state.json").read_text())["settings"]
    assert settings["augment_ratio"] == 0.5
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in steps) == 6
    with pytest.raises(UserError, match="augment_ratio"):
        train(augment="rrm", augment_group="kind", augment_ratio=0.25, save_steps=3, epochs=0.5, resume=True)


@pytest.fixture(scope="module")
def pairs(files):
    return load_preferences([str(files / "pairs.jsonl")], group="kind")


def options(folder, **given):
    own = {
        "model": str(folder),
        "data": ["d"],
        "output_dir": "o",
        "seed": 3,
        "max_length": 64,
        "augment": "rrm",
        "device": "cpu",
    }
    return RewardConfig(**{**own, "augment_group": "kind", **given})


def test_half_of_the_rows_are_asked_of_and_those_the_model_does_not_know_are_kept(world, pairs):
    """Against its scores, one row at a time."""
    every = list(augmented(options(world.sft), pairs))[len(pairs) :]
    config = options(world.sft, augment_filter=str(world.reward_model), augment_threshold=0.3)
    found = list(augmented(config, pairs))
    assert found[: len(pairs)] == list(pairs) and len(every) == 14 * len(pairs)
    scorer = RewardScorer([str(world.reward_model)], max_length=64)

    def error(row):
        chosen, rejected = (scorer([row["prompt"]], [row[side]])[0] for side in ("chosen", "rejected"))
        return abs(1 / (1 + np.exp(rejected - chosen)) - row["p_chosen"])

    kept, errors = found[len(pairs) :], [error(row) for row in every]
    unknown = [row for row, by in zip(every, errors, strict=True) if by >= 0.3]
    assert 0.25 * len(unknown) < len(kept) < 0.75 * len(unknown) < 0.75 * len(every)
    assert [row for row in unknown if row in kept] == kept
    again = augmented(config, pairs)
    assert list(again) == found


def test_rows_that_the_model_cannot_be_asked_of_are_told(world, pairs, monkeypatch):
    def refuses(*arguments):
        raise BadRow("no turns of tools")

    monkeypatch.setattr("denserl.trainer.augmented.pair_chances", refuses)
    config = options(world.sft, augment_filter=str(world.reward_model))
    with pytest.raises(UserError, match="cannot be asked of an augmented row: no turns of tools"):
        augmented(config, pairs)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"augment_ratio": 0.5}, "--augment_ratio 0.5 has no effect without --augment"),
        ({"augment_group": "kind"}, "--augment_group kind has no effect without --augment"),
        ({"augment_filter": "m"}, "--augment_filter m has no effect without --augment"),
        ({"augment": "rrm", "augment_threshold": 0.3}, "--augment_threshold 0.3 has no effect without --augment_filter"),
        ({"augment": "rrm", "augment_filter": "no/such"}, "no/such"),
        ({"no_augment_neutrals": True}, "--augment_neutrals, turned off, has no effect"),
        ({"augment": "rrm", "flip_frac": 0.1}, "--flip_frac 0.1 has no effect beside --augment"),
        ({"augment": "rrm", "soft_label_scale": 2}, "--soft_label_scale 2.0 has no effect beside --augment"),
        ({"augment": "rrm", "input": "steps"}, "--augment rrm has no effect on labelled steps"),
        ({"augment": "rrm", "augment_ratio": 0}, "--augment_ratio is 0.0; it must be above 0"),
        ({"augment": "rrm", "augment_group": "no_such"}, "'no_such', which is to say what pairs of one kind have in common"),
    ],
)
def test_what_cannot_be_is_refused(flags, found, train):
    with pytest.raises(UserError, match=found):
        train(**flags)
