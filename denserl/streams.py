"""Streams of random numbers, named by what they are for: no two of them share numbers, whatever their names and seeds."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are drawn for."""

    SAMPLING = 0  # responses of a PPO iteration
    EVALUATION = 1  # responses to held-out prompts
    STEPS = 2  # optimiser steps of a rollout batch
    BEST_OF_N = 3  # responses of best-of-n
    PROMPTS = 4  # the order of prompts in a pass
    PRETRAINING_TEXT = 5
    ROWS = 6  # the order of rows in a pass of a supervised training
    BLENDING = 7  # rows of several sources
    HELD_OUT = 8  # rows split off for evaluation
    FLIPPED_LABELS = 9
    FITTED_PAIRS = 10
    RANDOM_SCORES = 11
    BOOTSTRAP = 12
    CONTINUATIONS = 13  # of responses, from the ends of their steps
    PENALTIES = 14  # rows by which the penalty of a fit is chosen
    AUGMENTATION = 15  # pairs that are made of several
    ORDERS = 16  # of two responses in one text
    META_PROMPTS = 17  # of the present policy's responses, in a pass over them
    META_RESPONSES = 18  # of these prompts, which are compared
    META_ROUNDING = 19  # of weights that they move
    KNOCKOUT = 20  # the order in which the answers of a list meet
    SUBSETS = 21  # of the samples of best-of-n
    OPPONENTS = 22  # answers of the reference model
    ANSWERS = 23  # of a policy to the questions of a suite
    JUDGING = 24  # answers of a judge
    INSPECTION = 25  # rows that are looked at more closely


def stream(seed: int, purpose: Purpose, *place: int) -> np.random.SeedSequence:
    """What `np.random.default_rng` makes numbers of: the same for the same arguments, independent for any others.

    A sum of seed and place would give one seed the numbers of the next, and a plain tuple those of a longer one that ends in
    zeros; spawn keys are told apart by their length as well.

    place: e.g. iteration and number of a response.
    """
    return np.random.SeedSequence(seed, spawn_key=(purpose, *place))
