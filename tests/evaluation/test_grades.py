"""MT-Bench's means and pairs, by hand."""

import pytest

from denserl.evaluation.policies.grades import grades, pair_rates


def test_the_average_is_over_valid_grades_and_not_over_turns():
    found = grades([8, 6, -1, 5, 7, 10], [1, 1, 1, 2, 2, 2], ["math", "stem", "math", "math", "stem", "math"])
    assert (found["turn_1"], found["turn_2"], found["average"]) == (7, pytest.approx(7.33333333, abs=5e-9), pytest.approx(7.2))
    assert found["categories"] == {"math": pytest.approx(23 / 3), "stem": 6.5}
    assert (found["valid"], found["invalid"]) == (5, 1)


def test_what_has_no_valid_grade_has_no_mean():
    found = grades([None, float("nan"), 0], [1, 1, 2], ["math", "math", "stem"])
    assert (found["turn_1"], found["turn_2"], found["average"]) == (None, 0, 0)
    assert found["categories"] == {"math": None, "stem": 0} and found["invalid"] == 2
    assert grades([], [], [])["average"] is None


def test_errors_are_no_pairs_and_ties_count_half():
    assert pair_rates(["first", "tie", "tie", "second", "tie", "error"]) == {
        "win": 1,
        "loss": 1,
        "tie": 3,
        "error": 1,
        "win_rate": pytest.approx(0.2),
        "loss_rate": pytest.approx(0.2),
        "win_rate_adjusted": pytest.approx(0.5),
    }
    assert pair_rates(["error"])["win_rate"] is None
