"""Members by one command, and a training by the strength that they measure: the same on one rank and on two at ZeRO-3."""

import json

import pytest
from rank_hooks import gather_every_parameter
from ranks import run
from test_zero3 import same_numbers

from denserl.rewards.members import read_members

MEMBERS = {"members": 2, "strength_folds": 2, "flip_frac": 0.25, "epochs": 1}
BY_STRENGTH = {
    "strength_use": "soft_margin",
    "strength_keep": ["0.1-1"],
    "use_margin": None,
    "columns": "p_chosen=",
    "epochs": 1,
}


@pytest.mark.long
def test_members_and_what_is_learned_by_their_votes(trainings, tmp_path):
    on_two = {"zero_stage": 3, "micro_batch_size": 2}
    one = run(trainings["rm"], tmp_path / "one", **MEMBERS)
    two = run(trainings["rm"], tmp_path / "two", 2, gather_every_parameter, **MEMBERS, **on_two)
    for mine, other in zip(read_members(one).folders, read_members(two).folders, strict=True):
        same_numbers(mine, other)
    by_one = run(trainings["rm"], tmp_path / "by-one", strength_from=one, **BY_STRENGTH)
    by_two = run(trainings["rm"], tmp_path / "by-two", 2, gather_every_parameter, strength_from=one, **BY_STRENGTH, **on_two)
    same_numbers(by_one, by_two)
    rows = [[json.loads(line) for line in (path / "strength.jsonl").open()] for path in (by_one, by_two)]
    means = [[row["mean preference difference"] for row in part] for part in rows]
    assert means[0] == pytest.approx(means[1], rel=1e-5, abs=1e-6)
