"""Win rates against numbers by hand, and against those that AlpacaEval published of recorded preferences."""

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from denserl.evaluation.policies.win_rate import average_length, by_position, credits, win_rate

# What the leaderboard has of its recorded annotations.
PUBLISHED = {
    "FuseChat-Llama-3.1-8B-Instruct": (63.331583, 1.422507, 518, 286, 1, 64.409938, 2033),
    "claude-2.1": (15.733507, 1.120316, 115, 688, 2, 14.409938, 1096),
}


def recorded(folder: Path, name: str) -> tuple[list[float], list[int], list[int]]:
    """Preferences, and the lengths of the baseline's and the policy's answers in characters."""
    lines = (folder / "alpaca-eval-annotations" / f"{name}.jsonl").read_text().splitlines()[1:]
    _, preferences, baseline, policy = zip(*map(json.loads, lines))
    return list(preferences), list(baseline), list(policy)


def test_win_rates_are_those_by_hand():
    found = win_rate([1, 2, 1.5, 1.2, 1.8, 1.4999, None, 0])
    shares = [0, 1, 0.5, 0.2, 0.8, 0.4999, 0.5]
    assert found == {
        "win_rate": pytest.approx(49.99857143, abs=5e-9),
        "standard_error": pytest.approx(12.72418029, abs=5e-9),
        "n_wins": 2,
        "n_wins_base": 3,
        "n_draws": 2,
        "n_total": 7,
        "discrete_win_rate": pytest.approx(42.85714286, abs=5e-9),
    }
    assert found["win_rate"] == pytest.approx(100 * statistics.mean(shares))
    assert found["standard_error"] == pytest.approx(100 * statistics.stdev(shares) / math.sqrt(7))


def test_what_is_no_preference_counts_nowhere():
    found = credits([-1, 0, 0.99, 1, 2, 2.01, math.nan, None])
    assert found[[1, 3, 4]].tolist() == [0.5, 0, 1] and np.isnan(found[[0, 2, 5, 6, 7]]).all()
    none = win_rate([None, -1])
    assert (none["win_rate"], none["standard_error"], none["n_total"], none["discrete_win_rate"]) == (None, None, 0, None)
    assert (win_rate([2])["win_rate"], win_rate([2])["standard_error"]) == (100, None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recorded_preferences_have_the_published_win_rates(shared_data, name):
    preferences, _, lengths = recorded(shared_data, name)
    found = win_rate(preferences)
    assert (round(found["win_rate"], 6), round(found["standard_error"], 6)) == PUBLISHED[name][:2]
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"]) == PUBLISHED[name][2:5]
    assert (round(found["discrete_win_rate"], 6), average_length(lengths)) == PUBLISHED[name][5:]
    assert found["n_total"] == 805


def test_places_have_win_rates_of_their_own():
    found = by_position([1, 0, np.nan, 0.5, 0.25], [True, True, False, False, False])
    assert found == {"first": 50, "second": pytest.approx(37.5)}
    assert by_position([1.0, np.nan], [True, False]) == {"first": 100, "second": None}


def test_average_lengths_are_cut():
    assert average_length([3, 4, 4]) == 3 and average_length([]) is None
