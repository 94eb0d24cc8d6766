"""Published preference sets: their rows, their configurations and splits on the hub, and the number of pairs they must have."""

import json
import logging

import pytest

from denserl.data import published, readers
from denserl.data.config import RatedDataConfig
from denserl.data.preferences import load_preferences
from denserl.data.prompts import load_prompts
from denserl.data.published import PUBLISHED, Published, check_pairs, hub_source, published_ratings
from denserl.data.rated_rows import load_ratings
from denserl.data.readers import is_hub_source
from denserl.data.schemas import LeftOut, as_preference, as_prompt
from denserl.errors import UserError

ASPECTS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def conversation(answer: str, question: str = "Why?") -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def rated(a: float, b: float, source: str = "arena", question: str = "Why?", number: int = 0) -> dict:
    return {
        "id": str(number),
        "conv_A": conversation(f"a{number}", question),
        "conv_B": conversation(f"b{number}", question),
        "conv_A_rating": a,
        "conv_B_rating": b,
        "num_turns": 1,
        "source": source,
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Folders that stand for data sets on the hub: name -> file, and the rows in it."""

    def add(name: str, file: str, rows: list[dict]) -> None:
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config, split = file.split("/")[0], file.split("/")[-1].split(".")[0]
        header = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {file}\n---\n"
        (tmp_path / name / "README.md").write_text(header, encoding="utf-8")

    load = readers.datasets.load_dataset
    monkeypatch.setattr(readers.datasets, "load_dataset", lambda name, *args, **kw: load(str(tmp_path / name), *args, **kw))
    monkeypatch.setattr(readers, "go_offline_if_unreachable", lambda: None)
    monkeypatch.setattr(readers.datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return add


@pytest.mark.parametrize(("a", "b", "better", "worse"), [(3, 1.5, "a0", "b0"), (-2, 0, "b0", "a0")])
def test_the_higher_rating_is_chosen_and_the_gap_is_the_margin(a, b, better, worse):
    row = as_preference(rated(a, b))
    assert row == {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": better,
        "rejected": worse,
        "margin": abs(a - b),
        "p_chosen": 1.0,
        "weight": 1.0,
    }


def test_equal_ratings_are_left_out_and_counted_whatever_the_policy_for_bad_rows(tmp_path, caplog):
    path = tmp_path / "rated.jsonl"
    rows = [rated(1, 0, number=0), rated(2, 2, number=1), rated(0, 5, number=2), rated(0, 0, number=3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with caplog.at_level(logging.INFO):
        found = load_preferences([str(path)])
    assert found["chosen"][:] == ["a0", "b2"]
    assert "4 rows read, 0 of them bad" in caplog.text and "2 rows left out: both conversations have the same" in caplog.text
    with pytest.raises(LeftOut):
        as_preference(rows[1])
    assert len(load_prompts([str(path)])) == 4  # which needs no preference


def test_posts_of_summarisation_sets_get_their_request():
    row = rated(1, 0, source="openai/summarize_from_feedback", question="  A long post. ")
    asked = [{"role": "user", "content": "Generate one-sentence summary for the following post: A long post."}]
    assert as_preference(row)["prompt"] == as_prompt(row)["prompt"] == asked
    assert as_preference(rated(1, 0, question="  A post. "))["prompt"][0]["content"] == "  A post. "


def test_every_second_of_the_rows_that_are_used(tmp_path):
    path = tmp_path / "rated.jsonl"
    rows = [rated(n % 3, 1, number=n) for n in range(12)]  # every third has equal ratings
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    used = [0, 2, 3, 5, 6, 8, 9, 11]
    found = load_preferences([str(path)], every=2)
    assert [int(answer[1:]) for answer in found["chosen"]] == used[::2]
    assert [int(answer[1:]) for answer in load_preferences([str(path)], every=3, limit=2)["chosen"]] == used[::3][:2]


@pytest.mark.parametrize(
    ("source", "split", "expected"),
    [
        ("llm-blender/Unified-Feedback", "train", ("llm-blender/Unified-Feedback", "all", "train")),
        ("llm-blender/Unified-Feedback", "test", ("llm-blender/Unified-Feedback", "all", "val")),
        ("llm-blender/Unified-Feedback:hh-rlhf", "val", ("llm-blender/Unified-Feedback", "hh-rlhf", "val")),
        ("HuggingFaceH4/ultrafeedback_binarized", "train", ("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs")),
        ("someone/some_set", "train", ("someone/some_set", None, "train")),
        ("someone/some_set:part", "test", ("someone/some_set", "part", "test")),
    ],
)
def test_configuration_and_split_of_a_hub_data_set(source, split, expected):
    assert hub_source(source, split) == expected
    assert is_hub_source(source)


@pytest.mark.parametrize("source", ["pairs.jsonl", "a:b", "a/b:c/d", "a/b/c", "", "a/b.parquet"])
def test_no_hub_data_set(source):
    assert not is_hub_source(source)


def test_a_published_set_is_read_by_its_name(hub, monkeypatch):
    name = "llm-blender/Unified-Feedback"
    rows = [rated(n % 2, 0.5, number=n) for n in range(6)] + [rated(1, 1, number=9)]
    hub(name, "all/train.jsonl", rows)
    with pytest.raises(UserError, match=r"gives 6 pairs; the published set has 848600 to 849000"):
        load_preferences([name])
    # Only a part is asked for: the whole is not counted.
    assert load_preferences([name], limit=2)["chosen"][:] == ["b0", "a1"]
    # Prompts are no pairs: those of equal ratings are among them.
    assert len(load_prompts([name])) == 7
    monkeypatch.setitem(published.PUBLISHED, name, Published("all", {}, {"train": (6, 6)}))
    found = load_preferences([name])
    assert found["margin"][:] == [0.5] * 6
    assert found["place"][0] == f"{name}[train]:1"


def test_the_number_of_pairs_of_published_sets():
    """Unified-Feedback: at 24 pairs a step an epoch of every 20th pair has 1768 steps, at 64 it has 663."""
    fewest, most = PUBLISHED["llm-blender/Unified-Feedback"].pairs["train"]
    every_20th = range(fewest // 20, most // 20 + 1)
    assert [pairs for pairs in every_20th if pairs // 24 == 1768 and pairs // 64 == 663]
    check_pairs("hendrydong/preference_700K", "train", 700_000)
    check_pairs("Skywork/Skywork-Reward-Preference-80K-v0.2", "train", 77_000)
    check_pairs("HuggingFaceH4/ultrafeedback_binarized", "test", 2_000)
    check_pairs("someone/some_set", "train", 3)
    check_pairs("llm-blender/Unified-Feedback:hh-rlhf", "train", 3)  # a part of it
    with pytest.raises(UserError, match="699999 pairs; the published set has 700000"):
        check_pairs("hendrydong/preference_700K", "train", 699_999)


def test_a_published_set_of_ratings_is_read_by_its_name(hub, monkeypatch):
    name = "nvidia/HelpSteer2"
    rows = [{"prompt": "Q", "response": f"A{n}", **dict.fromkeys(ASPECTS, n)} for n in range(5)]
    hub(name, "default/validation.jsonl", rows)
    names = published_ratings([name])
    with pytest.raises(UserError, match=r"HelpSteer2\[validation\] gives 5 responses; the published set has 1038"):
        load_ratings([name], names=names, split="test")
    assert load_ratings([name], names=names, split="test", limit=2)["attributes"][:] == [[0.1] * 5, [0.3] * 5]
    known = PUBLISHED[name]._replace(responses={"validation": (5, 5)})
    monkeypatch.setitem(published.PUBLISHED, name, known)
    assert len(load_ratings([name], names=names, split="test")) == 5
    config = RatedDataConfig()
    assert config.rating_names([name, "rows.jsonl"]) == names
    assert RatedDataConfig(rating_columns=["a=b:1..5"]).rating_names([name]) == ["a"]
    with pytest.raises(UserError, match="it is not said which ratings are learned"):
        config.rating_names(["rows.jsonl"])
