"""The file of fits beside a reward model: written, found again, replaced; and what is said of lines worse than constants."""

import json
import logging
import os

import pytest

from denserl.errors import UserError
from denserl.ppo_utils.fits import FITS, check_writable, choose_fit, fit_key, fits_beside, store_fit, worse_than_constants
from denserl.ppo_utils.normalizer import PACKAGED_PARAMS, LocationNormalizer, NormalizerNotFound

CONSTANTS = [0.9, 0.4, 1.25, 3.5]
LINES = LocationNormalizer(w_mu=0.9, w_sigma=0.4, b_mu=1.25, b_sigma=3.5)
PUBLISHED = "phi3-instruct/preference700k_60000"


def chosen(model, given=None, threshold=1.75) -> LocationNormalizer:
    return choose_fit(given, [str(model)], "peak", "avg", threshold)


@pytest.mark.parametrize("threshold", [0.0, 1.75, 8.504941, 1 / 3, 1000.0])
def test_a_fit_is_found_beside_the_model_at_any_threshold(threshold, tmp_path):
    path = fits_beside([str(tmp_path)])
    assert path == tmp_path / FITS
    store_fit(path, fit_key("peak", "avg", threshold), {"constants": CONSTANTS})
    assert chosen(tmp_path, threshold=threshold) == chosen(tmp_path, threshold=f"{threshold!r}") == LINES
    assert chosen("elsewhere", str(path), threshold) == LINES


def test_a_fit_takes_the_place_of_an_equal_one_and_others_stay(tmp_path):
    path = tmp_path / "new" / FITS
    for threshold, r2 in ((0.0, 0.1), (2.0, 0.2), (2.0, 0.3)):
        store_fit(path, fit_key("peak", "avg", threshold), {"constants": CONSTANTS, "r2_mean": r2})
    stored = json.loads(path.read_text())
    assert {key: fit["r2_mean"] for key, fit in stored.items()} == {"peak/avg/0": 0.1, "peak/avg/2": 0.3}
    assert [file.name for file in path.parent.iterdir()] == [FITS]


def test_a_published_fit_is_chosen_by_its_name(tmp_path):
    # Section 4 of the paper's release.
    assert chosen(tmp_path, PUBLISHED) == LocationNormalizer(0.7668, 0.2569, 0.4705, 2.8339)


@pytest.mark.parametrize(
    "models, given, found, fix",
    [
        (["rm"], None, "rm/fits.json does not exist", "denserl fit-normalizer --reward_model .*rm --data PAIRS"),
        (["rm"], "phi3/none", f"phi3/none does not exist; published fits are {PUBLISHED}", "--reward_model"),
        (["rm", "rm"], None, "only a single model's folder has one beside it", f"`fit` FILE.*{PUBLISHED}"),
        (["on/the-hub"], None, "on/the-hub: .*only a single model's folder", "`fit` FILE"),
    ],
)
def test_where_there_is_no_fit_it_is_said_how_to_get_one(models, given, found, fix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rm").mkdir()
    with pytest.raises(NormalizerNotFound, match=found) as error:
        choose_fit(given, models, "peak", "avg", 1.75)
    assert isinstance(error.value, KeyError)
    with pytest.raises(UserError, match=fix):
        raise UserError(error.value.fix)


@pytest.mark.parametrize(
    "mean, std, named",
    [
        (0.9, 0.4, None),
        (0.0, 0.0, None),
        (None, None, None),
        (-0.327, -0.409, "the fitted lines of the mean (R^2 -0.327) and std (R^2 -0.409) fit worse than a constant"),
        (0.5, -0.1, "the fitted line of the std (R^2 -0.100) fit worse than a constant"),
    ],
)
def test_lines_worse_than_constants_are_named_whenever_they_are_used(mean, std, named, tmp_path, caplog):
    fit = {"constants": CONSTANTS, "r2_mean": mean, "r2_std": std}
    store_fit(tmp_path / FITS, "peak/avg/1.75", fit)
    with caplog.at_level(logging.WARNING):
        assert chosen(tmp_path) == LINES
    said = worse_than_constants(fit)
    if named is None:
        assert not said and not caplog.messages
    else:
        assert said.startswith(named) and "`normalizer` none" in said
        assert caplog.messages == [f"{tmp_path / FITS}, peak/avg/1.75: {said}"]


def test_the_published_constants_are_not_written_to():
    with pytest.raises(UserError, match="published constants, which are not written to"):
        check_writable(PACKAGED_PARAMS)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / FITS
    store_fit(path, "peak/avg/1", {"constants": CONSTANTS})
    before = path.read_text()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        store_fit(path, "peak/avg/1", {"constants": [1.0, 1.0, 1.0, 1.0]})
    assert path.read_text() == before


def test_a_malformed_file_is_not_written_over(tmp_path):
    path = tmp_path / FITS
    path.write_text('{"peak/avg/1": [1, 2]}')
    for use in (check_writable, lambda path: store_fit(path, "peak/avg/1", {"constants": CONSTANTS})):
        with pytest.raises(UserError, match="no file of fits"):
            use(path)
    assert path.read_text() == '{"peak/avg/1": [1, 2]}'
