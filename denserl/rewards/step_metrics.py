"""What is told of a model that judges steps: how many it tells right from wrong, and whether it finds first errors."""

import torch
from torch import Tensor

from denserl.data.step_encoding import GOOD
from denserl.rewards.objectives.base import Steps


def first_errors(wrong: Tensor) -> Tensor:
    """The number of each row's first wrong step, -1 where there is none: (G, K) bool -> (G,) long."""
    found = wrong.any(1)
    return torch.where(found, wrong.long().argmax(1), -1) if wrong.shape[1] else torch.full_like(found, -1, dtype=torch.long)


def step_sums(steps: Steps, scores: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """What the metrics of steps are made of, as sums (0-d, fp64, no gradient), so that batches and ranks add up.

    Args:
        scores: (G, 1), of whole solutions. counted: (G,) bool, the solutions to sum over.
    """
    logits, labels, score, row = steps.logits.detach(), steps.labels, scores.detach().double().squeeze(1), counted.double()
    labelled = ~labels.isnan()
    # As probabilities, so that it is the rule of those that read them.
    said_good, is_good = logits.sigmoid() >= GOOD, labels >= GOOD
    good, bad = ((labelled & kind) * row[:, None] for kind in (is_good, ~is_good))
    probabilities = logits.double().sigmoid()
    truth, found = first_errors(labelled & ~is_good), first_errors(labelled & ~said_good)
    return {
        "pairs": row.sum(),  # the name that sums of any groups have for their number
        "good_steps": good.sum(),
        "bad_steps": bad.sum(),
        "right_steps": (good * said_good + bad * ~said_good).sum(),
        "good_probability": (good * probabilities).sum(),
        "bad_probability": (bad * probabilities).sum(),
        "wrong_solutions": (row * (truth >= 0)).sum(),
        "found_errors": (row * (truth >= 0) * (truth == found)).sum(),
        "passed_solutions": (row * (truth < 0) * (found < 0)).sum(),
        "score": (score * row).sum(),
        "score_square": (score**2 * row).sum(),
    }


def step_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Metrics of what `step_sums` summed, over steps that have labels; at a probability of one half and above a step is right.

    first_error_f1: of the first wrong step, F1 = 2 e c / (e + c) with e the share of wrong solutions whose first error is
    found, and c the share of right ones in which none is (arXiv 2412.06559, section 3). score: of whole solutions.
    """
    steps, solutions = max(sums["good_steps"] + sums["bad_steps"], 1.0), max(sums["pairs"], 1.0)
    found = sums["found_errors"] / max(sums["wrong_solutions"], 1.0)
    passed = sums["passed_solutions"] / max(sums["pairs"] - sums["wrong_solutions"], 1.0)
    mean = sums["score"] / solutions
    return {
        "step_accuracy": sums["right_steps"] / steps,
        "always_plus_accuracy": sums["good_steps"] / steps,
        "good_probability": sums["good_probability"] / max(sums["good_steps"], 1.0),
        "bad_probability": sums["bad_probability"] / max(sums["bad_steps"], 1.0),
        "steps_per_solution": steps / solutions,
        "wrong_solutions": sums["wrong_solutions"] / solutions,
        "first_error_accuracy": found,
        "correct_accuracy": passed,
        "first_error_f1": 2 * found * passed / (found + passed) if found + passed else 0.0,
        "score_mean": mean,
        "score_std": max(sums["score_square"] / solutions - mean**2, 0.0) ** 0.5,
    }
