"""Contrastive terms, whose negatives are all of an optimiser step: the same on one and two ranks, in one batch and several."""

from functools import partial

import pytest
from rank_hooks import each, gather_every_parameter, settled_dropout
from ranks import run
from test_zero3 import same_numbers

BENT = partial(each, settled_dropout, gather_every_parameter)
# The last step of a pass takes one pair, so that a second rank has nothing of it; some pairs weigh nothing.
TERMS = {
    "swav": {"contrastive": "swav", "contrastive_on": "diff", "prototypes": 6, "epochs": 1},
    "simcse": {"contrastive": "simcse", "contrastive_tau": 0.5, "epochs": 1},
}


@pytest.mark.long
def test_two_ranks_at_zero_3(trainings, tmp_path):
    one = run(trainings["rm"], tmp_path / "one", before=BENT, **TERMS["swav"])
    options = TERMS["swav"] | {"zero_stage": 3, "micro_batch_size": 1}
    same_numbers(one, run(trainings["rm"], tmp_path / "two", 2, BENT, **options))


@pytest.mark.long
@pytest.mark.parametrize(
    "more, stage, ranks, micro",
    [
        ({}, 0, 2, 2),
        ({}, 1, 2, 1),
        ({}, 2, 2, 2),
        ({}, 3, 1, 1),
        ({}, 0, 1, 2),
        ({"lora_rank": 4}, 0, 2, 1),
        ({"lora_rank": 4}, 3, 2, 2),
        ({"reg_type": "dpo", "gradient_checkpointing": True}, 3, 2, 1),
        ({"disentangle": "length"}, 2, 2, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", TERMS)
def test_any_layout(kind, more, stage, ranks, micro, trainings, tmp_path):
    one = run(trainings["rm"], tmp_path / "one", before=BENT, **TERMS[kind], **more)
    options = TERMS[kind] | more | {"zero_stage": stage, "micro_batch_size": micro}
    same_numbers(one, run(trainings["rm"], tmp_path / "two", ranks, BENT, **options))
