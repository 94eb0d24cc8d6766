"""Options as they are made in Python: types, paths, one text for a list; choices and bounds are in tests/cli."""

from pathlib import Path

import pytest

from denserl import PPOConfig, RewardConfig, UserError

NEEDED = {"model": "m", "data": "d.jsonl", "output_dir": "o"}


def test_paths_and_single_texts_become_what_the_options_are():
    config = PPOConfig(model=Path("m"), reward_model=Path("r"), data=[Path("a"), "b"], output_dir=Path("o"), lam=1)
    assert (config.model, config.reward_model, config.data, config.output_dir) == ("m", ["r"], ["a", "b"], "o")
    assert isinstance(config.lam, float)
    assert RewardConfig(**NEEDED, lr="1e-3").lr == 0.001


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": None},
        {"lr": "high"},
        {"batch_size": 1.5},
        {"use_margin": "perhaps"},
        {"adam_betas": (0.9,)},
        {"data": [1]},
        {"eval_data": {"a": 1}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_value_of_another_type_is_named(wrong):
    with pytest.raises(UserError, match=f"^`{next(iter(wrong))}` is ") as error:
        RewardConfig(**NEEDED | wrong)
    assert error.value.fix.startswith("correct `")


def test_choices_and_bounds_are_checked_when_a_run_starts():
    for wrong, found in (({"reward_level": "word"}, "must be one of segment, token, bandit"), ({"lr": -1}, "at least 0")):
        with pytest.raises(UserError, match=found):
            RewardConfig(**NEEDED | wrong).check()
