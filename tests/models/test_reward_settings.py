"""What a reward model's config says of how it is read: written, read back, checked; and where its one score is read."""

import pytest
from transformers import LlamaConfig

from denserl.errors import UserError
from denserl.models.heads import Head, store_head, stored_head
from denserl.models.reward_settings import READ_AT, StoredSettings, read_place, store_settings, stored_settings

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
    store_settings(config, sft_model="sft", model_type="tiny", entropy_threshold=1.5, agg_func="min")
    store_settings(config, segmenter="my:cut", read_at="end_of_turn")
    config.save_pretrained(tmp_path)
    config = LlamaConfig.from_pretrained(tmp_path)
    expected = StoredSettings("sft", "tiny", 1.5, "my:cut", "min", "end_of_turn", 0.5, 2.0)
    assert stored_settings(config, "rm") == expected and stored_head(config, "rm") == Head("mlp", 2, 8, 0.0)
    assert stored_settings(LlamaConfig(), "rm") == NOTHING._replace(agg_func="avg")


@pytest.mark.parametrize(
    "settings, shown",
    [
        ({"segment_reward": [1]}, "has .1. for segment_reward; expected an object"),
        ({"segment_reward": {"read_at": "middle"}}, "'middle' for read_at; expected one of end_of_turn, last_token"),
        ({"segment_reward": {"read_at": 1}}, "1 for read_at; expected a text"),
        ({"segment_reward": {"segmenter": ["my:cut"]}}, "for segmenter; expected a text"),
        ({"segment_reward": {"entropy_threshold": "1"}}, "'1' for entropy_threshold; expected a finite number"),
        ({"segment_reward": {"entropy_threshold": True}}, "True for entropy_threshold"),
        ({"mean": float("nan")}, "nan for mean; expected a finite number"),
    ],
)
def test_a_setting_of_another_kind_is_named_with_its_file(settings, shown):
    with pytest.raises(UserError, match=f"^rm/config.json has .*{shown}|^rm/config.json {shown}"):
        stored_settings(LlamaConfig(**settings), "rm")
