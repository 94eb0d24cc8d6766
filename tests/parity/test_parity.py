"""A training takes the same way, to rounding, on any number of ranks and micro-batches and at any ZeRO stage.

Ten optimiser steps with all that is sampled, against one process that takes each step whole and without ZeRO: all losses
and metrics, and all weights in the end (policy, critic, moving average).
"""

import pytest
from rank_hooks import gather_every_parameter
from ranks import deviations, run

# What may differ is the order in which fp32 numbers are added: of rows in a step, of gradients over ranks, and of products in
# matrices of another height. Each sum is off by some units of 2^-24 = 6e-8, relative to its largest terms; the largest
# difference of a metric is that of the KL, 1e-6, a sum of 16 differences of log-probabilities of about 6. Adam divides by the
# root of the second moment, so that a weight whose gradient is itself rounding may move by a part of the learning rate (1e-3).
METRICS = 1e-5
WEIGHTS = 1e-5
# Ranks, and micro-batches that each accumulates.
LAYOUTS = {"one process": (1, 1), "two processes": (2, 1), "two micro-batches": (1, 2), "two of both": (2, 2)}
GRID = [(layout, stage) for layout in LAYOUTS for stage in range(4) if layout != "two of both"]
GRID.remove(("one process", 0))
# Either alone, in one process at ZeRO 0: the split steps of tests/trainer. A reward model that is not disentangled is on two
# ranks at ZeRO 3 in test_gate_on_ranks and test_contrast_on_ranks, too.
SHORT = [("ppo", "two of both", 2), ("disentangled", "two of both", 3)]


@pytest.fixture(scope="session")
def reference(trainings, tmp_path_factory):
    """Name of a training -> the output of one process at ZeRO 0 that takes each step at once."""
    made = {}

    def output(name: str):
        if name not in made:
            made[name] = run(trainings[name], tmp_path_factory.mktemp(name) / "reference")
        return made[name]

    return output


def same_numbers(name, layout, zero_stage, reference, trainings, folder) -> None:
    ranks, accumulated = LAYOUTS[layout]
    training = trainings[name]
    micro = training.settings.get("micro_batch_size", 4) // ranks // accumulated
    options = {"zero_stage": zero_stage, "micro_batch_size": micro}
    other = run(training, folder / "other", ranks, gather_every_parameter, **options)
    found = deviations(reference(name), other)
    beyond = {key: value for key, value in found.items() if value > (WEIGHTS if key.endswith(".safetensors") else METRICS)}
    assert not beyond


@pytest.mark.parametrize("name, layout, zero_stage", SHORT)
def test_a_training_takes_the_same_way(name, layout, zero_stage, reference, trainings, tmp_path):
    same_numbers(name, layout, zero_stage, reference, trainings, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("layout, zero_stage", GRID)
@pytest.mark.parametrize(
    "name",
    [
        *("ppo", "ppo-published", "ppo-by-token", "ppo-of-groups", "ppo-compared"),
        *("rm", "disentangled", "meta", "pair", "steps", "labels", "ratings", "sft"),
    ],
)
def test_a_training_takes_the_same_way_in_all_layouts(name, layout, zero_stage, reference, trainings, tmp_path):
    same_numbers(name, layout, zero_stage, reference, trainings, tmp_path)
