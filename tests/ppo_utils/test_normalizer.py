"""The two normalisers against the loop and by hand, the packaged constants, and what a bad file or key says."""

import json
import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.errors import UserError
from denserl.ppo_utils.normalizer import (
    LocationNormalizer,
    NormalizerNotFound,
    ScalarNormalizer,
    checked_constants,
    log_places,
    read_params,
)

TAG = "preference700k_60000"
# Section 4, copied by hand: w_mu, w_sigma, b_mu, b_sigma.
PUBLISHED = {
    ("phi3-instruct", 0): (0.9628, 0.3796, 1.2917, 3.5006),
    ("phi3-instruct", 1.75): (0.7668, 0.2569, 0.4705, 2.8339),
    ("phi3-instruct", 2.0): (0.7209, 0.2330, 0.6055, 2.6555),
    ("rlhflow_llama_3_sft_8b_v2", 0): (1.7340, 0.9906, 1.3212, 5.4513),
    ("rlhflow_llama_3_sft_8b_v2", 2.0): (0.8967, 0.5680, 0.8572, 4.1667),
    ("meta_llama_3_1_instruct_8b", 0): (1.6268, 0.6254, 0.6419, 4.9217),
    ("meta_llama_3_1_instruct_8b", 2.0): (0.8345, 0.4780, 0.8798, 3.7358),
}
LLAMA_TOKEN = LocationNormalizer(*PUBLISHED["rlhflow_llama_3_sft_8b_v2", 0])
COUNTS = st.lists(st.integers(0, 8), max_size=5)


def spellings(threshold):
    return (threshold, float(threshold), str(threshold), f"{float(threshold)}", f"{threshold:g}")


@pytest.mark.parametrize("model_type, threshold", PUBLISHED)
def test_published_constants_ship_with_the_package(model_type, threshold):
    for spelling in spellings(threshold):
        found = LocationNormalizer.load(model_type, TAG, "peak", "avg", spelling)
        assert (found.w_mu, found.w_sigma, found.b_mu, found.b_sigma) == PUBLISHED[model_type, threshold]


def test_thresholds_compare_as_numbers(tmp_path):
    path = tmp_path / "own.json"
    for key in ("2", "2.0", "2.00", "2e0"):
        path.write_text(json.dumps({"m": {"t": {"peak": {"avg": {key: [1, 2, 3, 4]}}}}}))
        for spelling in ("2", "2.0", 2, 2.0):
            assert LocationNormalizer.load("m", "t", "peak", "avg", spelling, path) == LocationNormalizer(1, 2, 3, 4)
        with pytest.raises(NormalizerNotFound):
            LocationNormalizer.load("m", "t", "peak", "avg", 20, str(path))


@given(COUNTS, st.integers(0, 999), st.sampled_from(sorted(PUBLISHED)))
def test_equals_the_loop(counts, seed, key):
    scores = torch.randn(len(counts), max(counts, default=0) + seed % 3, generator=torch.Generator().manual_seed(seed))
    counts_tensor = torch.tensor(counts, dtype=torch.long)
    scores = loops.spoil_past(scores, counts_tensor)
    found = LocationNormalizer(*PUBLISHED[key])(scores, counts_tensor)
    expected = torch.zeros(scores.shape)
    for b, n in enumerate(counts):
        expected[b, :n] = torch.tensor(loops.normalise(scores[b, :n].tolist(), *PUBLISHED[key]))
    assert found.dtype == torch.float32
    # A logarithm, two products and a quotient of numbers up to 8, each good to an fp32 rounding.
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=3e-6)


def test_by_hand():
    """Phi-3 at 1.75, reward 1 twice, p = 1/2 and 1: ln p = -0.693147 and 0."""
    normalizer = LocationNormalizer.load("phi3-instruct", TAG, "peak", "avg", 1.75)
    found = normalizer(torch.tensor([[1.0, 1.0]]), torch.tensor([2]))
    # (1 + 0.061005) / 2.655831 and (1 - 0.4705) / 2.8339
    assert found[0].tolist() == pytest.approx([0.399500, 0.186845], abs=1e-6)


def test_log_places():
    found = log_places(4, torch.tensor([4, 2, 1, 0]))
    assert [row[:count].exp().tolist() for row, count in zip(found, (4, 2, 1, 0), strict=True)] == [
        pytest.approx([0.25, 0.5, 0.75, 1.0], rel=1e-6),
        pytest.approx([0.5, 1.0], rel=1e-6),
        [1.0],
        [],
    ]
    assert (found[range(3), [3, 1, 0]] == 0).all()


def test_the_last_place_is_exactly_one():
    """Whatever the count, though the one logarithm comes from a long tensor and the other maybe from a short one."""
    counts = torch.arange(1, 300)
    assert (log_places(299, counts).diagonal() == 0).all()
    assert [log_places(count, torch.tensor([count]))[0, -1].item() for count in range(1, 300)] == [0.0] * 299
    assert log_places(0, torch.tensor([0, 0])).shape == (2, 0)


def test_std_is_floored_at_a_tenth_of_its_last_value():
    """Llama-3, token level, 1000 tokens: Std(0.001) = 5.4513 - 0.9906 * 6.907755 = -1.3915, floored at 0.54513.
    The line crosses it at ln p = -4.9527, between the seventh and the eighth token: Std(0.008) = 0.668372.
    """
    mean, std = LLAMA_TOKEN.mean_std(log_places(1000, torch.tensor([1000])))
    assert std[0, :7].tolist() == pytest.approx([0.54513] * 7, rel=1e-6)
    # ln p carries an fp32 rounding of 5, so the small difference of two fives is good to a few 1e-6.
    assert std[0, 7].item() == pytest.approx(0.668372, abs=5e-6)
    assert std[0, -1].item() == pytest.approx(5.4513, rel=1e-6)
    assert mean[0, 0].item() == pytest.approx(1.3212 - 1.7340 * 6.907755, rel=1e-6)
    assert mean[0, -1].item() == pytest.approx(1.3212, rel=1e-6)


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_reward_never_changes_sign(key):
    """At every place of a 2048-token response, more reward is more after normalising, and the mean is zero."""
    normalizer, counts = LocationNormalizer(*PUBLISHED[key]), torch.tensor([2048])
    mean, std = normalizer.mean_std(log_places(2048, counts))
    assert (std > 0).all()
    assert (normalizer(mean + 1, counts) > 0).all() and (normalizer(mean - 1, counts) < 0).all()
    assert (normalizer(mean, counts) == 0).all()


@pytest.mark.parametrize("normalizer", [LLAMA_TOKEN, ScalarNormalizer(1.0, 2.0)])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_rows_without_segments(normalizer, shape):
    found = normalizer(torch.full(shape, math.nan), torch.zeros(shape[0], dtype=torch.long))
    assert found.shape == shape and (found == 0).all()


@given(COUNTS, st.integers(0, 999))
def test_scalar_normalizer_equals_the_loop(counts, seed):
    scores = torch.randn(len(counts), max(counts, default=0) + seed % 3, generator=torch.Generator().manual_seed(seed))
    counts_tensor = torch.tensor(counts, dtype=torch.long)
    scores = loops.spoil_past(scores, counts_tensor)
    expected = torch.zeros(scores.shape)
    for b, n in enumerate(counts):
        expected[b, :n] = torch.tensor([(r - -0.51953125) / 2.15625 for r in scores[b, :n].tolist()])
    found = ScalarNormalizer(-0.51953125, 2.15625)(scores, counts_tensor)
    torch.testing.assert_close(found, expected, atol=5e-7, rtol=5e-7)


@pytest.mark.parametrize("mean, std", [(0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (0.0, math.inf), (0.0, math.nan)])
def test_scalar_normalizer_needs_a_positive_std(mean, std):
    with pytest.raises(ValueError, match="std"):
        ScalarNormalizer(mean, std)


@pytest.mark.parametrize(
    "key",
    [
        ("phi3", TAG, "peak", "avg", 1.75),
        ("phi3-instruct", "my_pairs_1000", "peak", "avg", 1.75),
        ("phi3-instruct", TAG, "valley", "avg", 1.75),
        ("phi3-instruct", TAG, "peak", "max", 1.75),
        ("phi3-instruct", TAG, "peak", "avg", 1.5),
    ],
)
def test_a_missing_fit_says_what_exists_and_how_to_fit(key):
    with pytest.raises(KeyError) as caught:
        LocationNormalizer.load(*key)
    assert isinstance(caught.value, NormalizerNotFound) and isinstance(caught.value, UserError)
    message = str(caught.value)
    for word in key:
        assert str(word) in message
    for model_type, _ in PUBLISHED:
        assert model_type in message
    assert TAG in message and "1.75" in message
    assert "denserl fit-normalizer --reward_model RM_FOLDER --data PAIRS" in message
    assert "\n" in message, "the message is shown as it is, not quoted as a KeyError quotes its key"


def nested(constants, threshold="1"):
    return json.dumps({"m": {"t": {"peak": {"avg": {threshold: constants}}}}})


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "3", '{"m": []}', '{"m": {"t": [1, 2, 3, 4]}}', nested([1, 2, 3, 4], "high"), '{"m": null}'],
)
def test_a_file_that_is_no_normaliser_file(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match="bad.json") as caught:
        LocationNormalizer.load("m", "t", "peak", "avg", 1, path)
    assert "fit-normalizer" in caught.value.fix and not isinstance(caught.value, KeyError)
    with pytest.raises(UserError):
        read_params(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "bad.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match="bad.json"):
        LocationNormalizer.load("m", "t", "peak", "avg", 1, path)


@pytest.mark.parametrize(
    "constants",
    [
        [1.0, 2.0, 3.0],
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [],
        [math.nan, 2.0, 3.0, 4.0],
        [1.0, 2.0, 3.0, math.inf],
        [1.0, 2.0, 3.0, 0.0],
        [1.0, 2.0, 3.0, -4.0],
        [1.0, 2.0, "3", 4.0],
        [1.0, 2.0, True, 4.0],
        [1.0, 2.0, None, 4.0],
        {"w_mu": 1.0},
        "1 2 3 4",
        None,
    ],
)
def test_an_entry_that_is_not_four_good_numbers(tmp_path, constants):
    path = tmp_path / "own.json"
    path.write_text(nested(constants))
    with pytest.raises(UserError, match="four finite numbers") as caught:
        LocationNormalizer.load("m", "t", "peak", "avg", 1, path)
    assert "m/t/peak/avg/1" in str(caught.value) and "fit-normalizer" in caught.value.fix


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            LocationNormalizer.load("m", "t", "peak", "avg", 1, path)


def test_an_empty_file_has_none(tmp_path):
    path = tmp_path / "own.json"
    path.write_text("{}")
    with pytest.raises(NormalizerNotFound, match="it has: none"):
        LocationNormalizer.load("m", "t", "peak", "avg", 1, path)


def test_a_standard_deviation_below_one_is_one_like_any_other():
    assert ScalarNormalizer(0.5, 0.25)(torch.tensor([[1.0]]), torch.tensor([1])).item() == pytest.approx(2)


def test_a_stored_spread_below_one_is_read_like_any_other():
    assert checked_constants([0.1, 0.2, 0.3, 0.25], "here") == [0.1, 0.2, 0.3, 0.25]
