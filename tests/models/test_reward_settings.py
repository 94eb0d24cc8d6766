"""What a reward model's config says of how it is read: written, read back, checked; and where its one score is read."""

import os
import shutil

import pytest
from transformers import LlamaConfig

from denserl.errors import UserError
from denserl.models.heads import Head, store_head, stored_head
from denserl.models.reward_settings import READ_AT, StoredSettings, read_place, sft_settings, store_settings, stored_settings

NOTHING = StoredSettings(*[None] * len(StoredSettings._fields))
STOCK = NOTHING  # a classifier from elsewhere
TRAINED_HERE = NOTHING._replace(entropy_threshold=1000.0)  # before the place was stored
AT_END, AT_LAST = NOTHING._replace(read_at="end_of_turn"), TRAINED_HERE._replace(read_at="last_token")


@pytest.mark.parametrize(
    "each, place",
    [
        ([STOCK], "last_token"),
        ([TRAINED_HERE], "end_of_turn"),
        ([TRAINED_HERE._replace(entropy_threshold=0.0)], "end_of_turn"),
        # What is stored stands above what would be derived.
        ([AT_END], "end_of_turn"),
        ([AT_LAST], "last_token"),
        ([STOCK, STOCK, AT_LAST], "last_token"),
        ([TRAINED_HERE, AT_END], "end_of_turn"),
    ],
)
def test_where_a_score_is_read_is_stored_or_follows_from_where_the_model_was_trained(each, place):
    assert read_place(each, ["a", "b", "c"][: len(each)]) == place


@pytest.mark.parametrize("given", READ_AT)
@pytest.mark.parametrize("each", [[STOCK], [TRAINED_HERE], [AT_END], [AT_LAST], [STOCK, TRAINED_HERE]])
def test_what_is_given_stands_above_all(each, given):
    assert read_place(each, ["a", "b"][: len(each)], given) == given


@pytest.mark.parametrize("each", [[STOCK, TRAINED_HERE], [AT_LAST, AT_END], [AT_LAST, TRAINED_HERE], [AT_END, STOCK]])
def test_models_that_are_read_at_different_places_are_named(each):
    with pytest.raises(UserError, match="read at different places .runs/a: .*, runs/b: ") as error:
        read_place(each, ["runs/a", "runs/b"])
    assert all(place in error.value.found for place in READ_AT) and "`read_at`" in error.value.fix


def test_what_is_stored_is_read_back_beside_the_head(tmp_path):
    config = LlamaConfig(mean=0.5, std=2.0)
    store_head(config, Head("mlp", 2, 8, 0.0))
    store_settings(config, sft_model="sft", max_length=64, entropy_threshold=1.5, agg_func="min")
    store_settings(config, segmenter="my:cut", read_at="end_of_turn")
    config.save_pretrained(tmp_path)
    config = LlamaConfig.from_pretrained(tmp_path)
    expected = StoredSettings("sft", None, 1.5, "my:cut", "min", "end_of_turn", 64, None, 0.5, 2.0, *[None] * 7)
    assert stored_settings(config, "rm") == expected and stored_head(config, "rm") == Head("mlp", 2, 8, 0.0)
    assert stored_settings(LlamaConfig(), "rm") == NOTHING._replace(agg_func="avg")


@pytest.mark.parametrize(
    "settings, shown",
    [
        ({"segment_reward": [1]}, "has .1. for segment_reward; expected an object"),
        ({"segment_reward": {"read_at": "middle"}}, "'middle' for read_at; expected one of end_of_turn, last_token"),
        ({"segment_reward": {"read_at": 1}}, "1 for read_at; expected a text"),
        ({"segment_reward": {"segmenter": ["my:cut"]}}, "for segmenter; expected a text"),
        ({"segment_reward": {"sft_model": "x", "sft_from_here": 3}}, "3 for sft_from_here; expected a text"),
        ({"segment_reward": {"entropy_threshold": "1"}}, "'1' for entropy_threshold; expected a finite number"),
        ({"segment_reward": {"entropy_threshold": True}}, "True for entropy_threshold"),
        ({"segment_reward": {"max_length": 0}}, "0 for max_length; expected a whole number above 0"),
        ({"segment_reward": {"max_prompt_length": 2.5}}, "2.5 for max_prompt_length"),
        ({"segment_reward": {"input": "pairs"}}, "'pairs' for input; expected one of pair"),
        ({"segment_reward": {"pair_layout": 1}}, "1 for pair_layout; expected a text"),
        ({"mean": float("nan")}, "nan for mean; expected a finite number"),
    ],
)
def test_a_setting_of_another_kind_is_named_with_its_file(settings, shown):
    with pytest.raises(UserError, match=f"^rm/config.json has .*{shown}|^rm/config.json {shown}"):
        stored_settings(LlamaConfig(**settings), "rm")


def place_of_sft(stored: dict, path) -> str | None:
    return stored_settings(LlamaConfig(segment_reward=stored), str(path)).sft_model


def test_the_sft_model_is_found_from_any_folder_and_beside_a_model_that_moved_with_it(tmp_path, monkeypatch):
    (tmp_path / "runs/sft").mkdir(parents=True)
    (tmp_path / "runs/rm").mkdir()
    monkeypatch.chdir(tmp_path)
    stored = sft_settings("runs/sft", "fp32:1", "runs/rm")
    assert stored == {"sft_model": str(tmp_path / "runs/sft"), "sft_from_here": "../sft", "sft_fingerprint": "fp32:1"}
    monkeypatch.chdir(tmp_path.parent)
    assert place_of_sft(stored, tmp_path / "runs/rm") == str(tmp_path / "runs/sft")
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    assert place_of_sft(stored, tmp_path / "moved/rm") == str(tmp_path / "moved/sft")
    # Alone, it is not found: what is stored is what can be said.
    shutil.move(tmp_path / "moved/rm", tmp_path / "rm")
    assert place_of_sft(stored, tmp_path / "rm") == str(tmp_path / "runs/sft")


def test_a_relative_path_is_one_of_the_models_own_folder_before_one_of_the_working_folder(tmp_path, monkeypatch):
    for name in ("rm", "sft", "elsewhere/sft"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert place_of_sft({"sft_model": "../sft"}, tmp_path / "rm") == str(tmp_path / "sft")
    assert place_of_sft({"sft_model": "sft"}, tmp_path / "rm") == "sft" and os.path.isdir("sft")


def test_a_hub_name_is_stored_as_it_is(tmp_path):
    stored = sft_settings("some/model", "bf16:2", str(tmp_path))
    assert stored == {"sft_model": "some/model", "sft_fingerprint": "bf16:2"}
    assert place_of_sft(stored, tmp_path) == "some/model" and place_of_sft({}, tmp_path) is None
