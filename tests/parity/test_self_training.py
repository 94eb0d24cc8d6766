"""Rounds of self-training on two ranks, sharded or not, label and learn what they do in one process."""

import json

import pytest
from ranks import deviations, run

# Rounding in sums over ranks moves weights by some 1e-7 a step; a chance moves with the scores of such weights.
SAME = 2e-5
OPTIONS = {"pseudo_share": 0.8, "pseudo_labels": "soft", "epochs": 1, "rounds": 1}


def labelled(folder):
    return [json.loads(line) for line in (folder / "round_1/pseudo_labelled.jsonl").read_text().splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_rounds_on_two_ranks_are_those_of_one_process(zero_stage, trainings, tmp_path):
    rm = trainings["rm"]
    argv = rm.arguments(tmp_path)
    options = OPTIONS | {"unlabelled_data": argv[argv.index("--data") + 1]}
    one = run(rm, tmp_path / "one", **options)
    two = run(rm, tmp_path / "two", ranks=2, zero_stage=zero_stage, micro_batch_size=1, **options)
    for mine, theirs in zip(labelled(one), labelled(two), strict=True):
        assert theirs == {**mine, "p_chosen": pytest.approx(mine["p_chosen"], abs=SAME)}
    assert 0 < len(labelled(one)) < 17
    found = deviations(one, two)
    assert len(found) == 3 and max(found.values()) < SAME
