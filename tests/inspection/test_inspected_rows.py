"""Rows counted in one pass, against a plain recount; of which kind rows are; and which are drawn."""

import json
from collections import Counter

import numpy as np
import pytest
from inspected_rows import PAIRS, recounted, write_pairs

from denserl.errors import UserError
from denserl.inspection.config import InspectConfig
from denserl.inspection.inspected import inspected
from denserl.inspection.kinds import Record
from denserl.inspection.reading import Draw, read


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pairs.jsonl")


def look(*sources, **options):
    return inspected(InspectConfig(data=list(map(str, sources)), **options))


def lines(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pairs_are_as_a_plain_recount_has_them(pairs):
    found, expected = look(pairs), recounted()
    assert found["kind"] == "pairs"
    rows = found["rows"]
    assert (rows["read"], rows["used"]) == (len(PAIRS) + 1, expected["used"])
    assert rows["refused"] == rows["read"] - rows["used"]
    for part, units in found["lengths"].items():
        assert units["characters"]["mean"] == pytest.approx(expected["means"][part])
        assert units["characters"]["median"] == expected["medians"][part]
        assert units["words"]["mean"] * expected["used"] == pytest.approx(expected["words"][part])
    assert found["duplicates"] == {
        "rows": expected["repeated rows"],
        "prompts": expected["repeated prompts"],
        "turned_round": expected["turned"],
        "chosen_is_rejected": expected["identical"],
    }
    assert min(found["duplicates"].values()) > 0  # each is there
    longer, margin = found["longer"], found["numbers"]["margin"]
    assert (longer["count"], longer["equal"]) == (expected["longer"], expected["as long"])
    assert longer["interval"][0] < longer["share"] == expected["longer"] / expected["used"] < longer["interval"][1]
    counts = Counter(expected["margins"])
    assert dict(zip(margin["histogram"]["values"], margin["histogram"]["counts"])) == counts
    assert (margin["zero"], margin["below_zero"]) == (counts[0], sum(value < 0 for value in expected["margins"]))
    assert set(found["numbers"]) == {"margin"}  # no row says p_chosen or weight
    assert found["scripts"] == {"Latin": expected["used"] - expected["cyrillic"], "Cyrillic": expected["cyrillic"]}


def test_refused_rows_stand_by_reason_with_their_places(pairs):
    (source,) = look(pairs)["rows"]["sources"]
    assert source["not_read"] == ["source"]
    reasons = {reason["reason"]: reason for reason in source["reasons"]}
    assert reasons["chosen and rejected are identical"]["places"] == [f"{pairs}:9"]
    assert reasons["'chosen' is empty"] == {"reason": "'chosen' is empty", "count": 1, "places": [f"{pairs}:10"]}
    (no_json,) = (reason for name, reason in reasons.items() if "invalid JSON" in name)
    assert no_json["places"] == [f"{pairs}:4"]


def test_several_sources_are_counted_together_and_apart(pairs, tmp_path):
    other = lines(tmp_path / "other.jsonl", *PAIRS[:2])
    found = look(pairs, other)
    assert [source["used"] for source in found["rows"]["sources"]] == [recounted()["used"], 2]
    assert found["rows"]["used"] == recounted()["used"] + 2
    assert found["duplicates"]["rows"] == recounted()["repeated rows"] + 2
    limited = look(pairs, other, limit=1)["rows"]
    assert (limited["read"], limited["used"], limited["sources"][1]["read"]) == (2, 2, 1)


CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It rains."}]
RATED = {"prompt": "Why?", "response": "It rains.", "help": 4, "style": 1}


@pytest.mark.parametrize(
    "row, kind, options",
    [
        (PAIRS[0], "pairs", {}),
        ({"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "No."}]}, "pairs", {}),
        ({"prompt": "Why?", "response_1": "a", "response_2": "b", "preference_strength": 0}, "pairs", {}),
        (PAIRS[7], "pairs", {}),
        ({"messages": CHAT}, "demonstrations", {}),
        ({"instruction": "Why?", "output": "It rains."}, "demonstrations", {}),
        ({"text": "It rains."}, "demonstrations", {}),
        ({"prompt": "Why?"}, "prompts", {}),
        ({"messages": CHAT[:1]}, "prompts", {}),
        (PAIRS[0], "prompts", {"kind": "prompts"}),
        ({"prompt": "Why?", "steps": ["It rains.", "So."], "labels": [1, 0]}, "steps", {}),
        (RATED, "demonstrations", {}),
        (RATED, "ratings", {"rating_columns": ["help", "style"]}),
        ({"instruction": "Why?", "completions": [{"response": "a", "fine": 3}]}, "ratings", {"rating_columns": ["fine"]}),
    ],
)
def test_the_kind_of_rows_is_read_from_what_they_hold_or_is_said(row, kind, options, tmp_path):
    file = lines(tmp_path / "rows.jsonl", row)
    config = InspectConfig(data=[str(file)], **options)
    try:
        assert read(config).kind.name == kind
    except UserError as error:  # of that kind, and none of it is usable
        assert kind == "pairs" and "no usable row" in str(error) or "identical" in str(error)


def test_columns_are_renamed_before_their_kind_is_told(tmp_path):
    file = lines(tmp_path / "rows.jsonl", {"q": "Why?", "good": "It rains.", "bad": "No."})
    found = look(file, columns="prompt=q,chosen=good,rejected=bad")
    assert found["kind"] == "pairs" and found["rows"]["used"] == 1
    with pytest.raises(UserError, match="names question, which no row has"):
        look(file, columns="prompt=q,chosen=good,rejected=bad,margin=question")


def test_ratings_are_spread_over_their_values(tmp_path):
    rows = [{**RATED, "help": help, "response": f"It rains {help}."} for help in (0, 1, 1, 4)] + [{**RATED, "help": None}]
    found = look(lines(tmp_path / "rows.jsonl", *rows), rating_columns=["help", "style"])
    help, style = found["numbers"]["help"], found["numbers"]["style"]
    assert (help["n"], help["missing"], help["mean"], help["zero"]) == (4, 1, 1.5, 1)
    assert help["histogram"] == {"values": [0.0, 1.0, 4.0], "counts": [1, 2, 1]}
    assert style["histogram"] == {"values": [1.0], "counts": [5]}


def test_solutions_have_as_many_steps_as_they_list(tmp_path):
    rows = [{"prompt": "1+1?", "steps": ["a", "b", "c"], "labels": [1, 1, 0]}, {"prompt": "2?", "steps": ["d"], "labels": [1]}]
    found = look(lines(tmp_path / "rows.jsonl", *rows))
    assert found["numbers"]["steps"]["mean"] == 2 and found["numbers"]["steps that are right"]["mean"] == pytest.approx(5 / 6)
    assert found["lengths"]["solution"]["characters"]["max"] == len("a\n\nb\n\nc")


def test_plain_text_has_no_prompt(tmp_path):
    found = look(lines(tmp_path / "rows.jsonl", {"text": "It rains."}, {"text": "It hums."}))
    assert found["lengths"]["prompt"]["characters"] == {"n": 0} and found["duplicates"]["prompts"] == 0
    assert found["lengths"]["response"]["words"]["mean"] == 2


@pytest.mark.parametrize(
    "rows, says",
    [
        (['{"input": "a", "output_1": "b"}'], "the row has input, output_1; none of the first 1 rows is a preference"),
        (["[1, 2]"], "rows.jsonl:1: the row is a list"),
        ([], "no usable row (it is empty)"),
        (["{", "["], "no usable row (2 bad rows"),
        ([json.dumps(PAIRS[7])] * 3, "chosen and rejected are identical, and so it is with all 3 rows"),
        ([json.dumps({"instruction": "Why?", "completions": [{"response": "a"}]})], "not said which ratings"),
    ],
)
def test_rows_of_which_nothing_can_be_said(rows, says, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError) as error:
        look(tmp_path / "rows.jsonl")
    assert says in str(error.value)


def test_a_draw_is_of_all_that_is_offered_and_its_beginning_a_smaller_draw():
    def drawn(most, seed):
        draw = Draw(most, seed)
        for number in range(30):
            draw.offer(str(number), Record([], (), ()))
        return [int(place) for place, _ in draw.taken()]

    assert drawn(10, 1)[:4] == drawn(4, 1) != drawn(4, 2)
    assert sorted(drawn(50, 1)) == list(range(30)) and drawn(0, 1) == []
    # Each is as likely: of 900 draws of 10 in 30, 300 hold it, with a standard deviation of 14.
    counts = np.bincount([number for seed in range(900) for number in drawn(10, seed)])
    assert counts.min() > 240 and counts.max() < 360
