"""Reward models that are trained on pairs made of others."""

import json

import pytest
import tiny_models

from denserl.cli import train_rm
from denserl.errors import UserError


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A language model, and twelve pairs of six kinds."""
    root = tmp_path_factory.mktemp("augmented")
    tiny_models.save_language_model(root / "sft")
    rows = [{**row, "kind": f"kind {i % 6}"} for i, row in enumerate(tiny_models.boat_pairs(12))]
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


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"augment_ratio": 0.5}, "--augment_ratio 0.5 has no effect without --augment"),
        ({"augment_group": "kind"}, "--augment_group kind has no effect without --augment"),
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
