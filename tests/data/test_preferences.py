"""Every row shape of preferences, every reason for which a row is bad, and the tokenised pairs."""

import functools
import json
import logging
import math

import pytest
from datasets import Dataset
from templates import build_tokenizer

from denserl.data.columns import parse_columns
from denserl.data.preferences import exchanged, labels_to_turn, load_preferences, tokenize_preferences
from denserl.data.schemas import BadRow, as_preference
from denserl.errors import UserError

tokenizer_of = functools.lru_cache(build_tokenizer)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
HISTORY = [user("Q1"), assistant("A1"), user("Q2")]
DIALOGUE = "\n\nHuman: Q1\n\nAssistant: A1\n\nHuman: Q2\n\nAssistant: "
FROM = [{"from": "human", "value": "Q1"}, {"from": "gpt", "value": "A1"}, {"from": "human", "value": "Q2"}]
UNLABELLED = {"margin": 0.0, "p_chosen": 1.0, "weight": 1.0}
SHAPES = {
    "message lists": {"chosen": [*HISTORY, assistant("good")], "rejected": [*HISTORY, assistant("bad")]},
    "prompt messages, strings": {"prompt": HISTORY, "chosen": "good", "rejected": "bad"},
    "prompt messages, messages": {"prompt": HISTORY, "chosen": [assistant("good")], "rejected": [assistant("bad")]},
    "prompt messages, whole lists": {
        "prompt": HISTORY,
        "chosen": [*HISTORY, assistant("good")],
        "rejected": [*HISTORY, assistant("bad")],
    },
    "first turn as prompt, whole lists": {
        "prompt": "Q1 ",
        "chosen": [*HISTORY, assistant("good")],
        "rejected": [*HISTORY, assistant("bad")],
    },
    "dialogues": {"chosen": DIALOGUE + "good", "rejected": DIALOGUE + "bad "},
    "dialogue as prompt": {"prompt": DIALOGUE, "chosen": "good", "rejected": "bad"},
    "conversations": {
        "conversations": FROM,
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "null prompt": {"prompt": None, "chosen": DIALOGUE + "good", "rejected": DIALOGUE + "bad"},
}


@pytest.mark.parametrize("row", SHAPES.values(), ids=SHAPES)
def test_every_shape_means_the_same(row):
    assert as_preference(row) == {"prompt": HISTORY, "chosen": "good", "rejected": "bad", **UNLABELLED}


def test_a_plain_prompt_is_one_user_turn_and_its_text_is_kept():
    row = {"prompt": " two\n\nAssistant: lines ", "chosen": " good\n", "rejected": "bad\n\nHuman: x"}
    expected = {"prompt": [user(" two\n\nAssistant: lines ")], "chosen": " good\n", "rejected": "bad\n\nHuman: x"}
    assert as_preference(row) == {**expected, **UNLABELLED}


def test_a_system_turn_stays():
    row = {"prompt": [SYSTEM, user("Q")], "chosen": "good", "rejected": "bad"}
    assert as_preference(row)["prompt"] == [SYSTEM, user("Q")]


PLAIN = {"prompt": "Q", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("ratings", "margin"),
    [
        ({"score_chosen": 8, "score_rejected": 5.5}, 2.5),
        ({"chosen_score": 1, "rejected_score": 2}, -1.0),
        ({"chosen_rating": 5.0, "rejected_rating": 1}, 4.0),
        ({"chosen-rating": 5.0, "rejected-rating": 4.75}, 0.25),
        ({"score_chosen": None, "score_rejected": None}, 0.0),
        ({"metadata": {"score_chosen": 9.0, "score_rejected": 7.5, "length": 3}}, 1.5),
        ({"metadata": {"score_chosen": 9.0}, "score_chosen": 4, "score_rejected": 1}, 3.0),
        ({"metadata": "score_chosen"}, 0.0),
        ({"margin": -0.75}, -0.75),
        ({"margin": 2, "score_chosen": 9, "score_rejected": 8}, 2.0),
        ({"margin": None, "score_chosen": 9, "score_rejected": 8}, 1.0),
        ({"score_chosen": "8", "score_rejected": " 5.5 "}, 2.5),  # as tables of text have them
        ({}, 0.0),
    ],
)
def test_ratings_give_the_margin(ratings, margin):
    assert as_preference({**PLAIN, **ratings})["margin"] == margin


@pytest.mark.parametrize(
    ("said", "p_chosen", "weight"),
    [
        ({"p_chosen": 0.7, "weight": 2}, 0.7, 2.0),
        ({"p_chosen": 0, "weight": 0}, 0.0, 0.0),
        ({"p_chosen": "0.5", "weight": " 1e3 "}, 0.5, 1000.0),  # as tables of text have them
        ({"p_chosen": None, "weight": None}, 1.0, 1.0),
    ],
)
def test_a_row_says_how_likely_its_label_is_right_and_what_it_weighs(said, p_chosen, weight):
    row = as_preference({**PLAIN, **said})
    assert (row["p_chosen"], row["weight"]) == (p_chosen, weight)


P_BOUNDS, WEIGHT_BOUNDS = "expected a number from 0 to 1", "expected a finite number of at least 0"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"p_chosen": 1.01}, f"'p_chosen' is 1.01; {P_BOUNDS}"),
        ({"p_chosen": -0.1}, f"'p_chosen' is -0.1; {P_BOUNDS}"),
        ({"p_chosen": math.nan}, f"'p_chosen' is nan; {P_BOUNDS}"),
        ({"p_chosen": True}, f"'p_chosen' is True; {P_BOUNDS}"),
        ({"p_chosen": "likely"}, f"'p_chosen' is 'likely'; {P_BOUNDS}"),
        ({"weight": -1}, f"'weight' is -1; {WEIGHT_BOUNDS}"),
        ({"weight": math.inf}, f"'weight' is inf; {WEIGHT_BOUNDS}"),
        ({"weight": 10**400}, f"'weight' is 1{'0' * 400}; {WEIGHT_BOUNDS}"),
        ({"weight": [1]}, f"'weight' is [1]; {WEIGHT_BOUNDS}"),
    ],
)
def test_what_is_no_probability_or_weight_is_a_bad_row(said, reason):
    with pytest.raises(BadRow) as caught:
        as_preference({**PLAIN, **said})
    assert str(caught.value) == reason
    (name,) = said
    assert caught.value.fix == f"leave it unread with `columns` {name}="


def test_labels_of_rows_may_stand_in_columns_of_other_names_and_pass_through_to_the_ids(tmp_path, caplog):
    path = tmp_path / "pairs.jsonl"
    rows = [{**PLAIN, "agreement": 0.75, "weight": "no number", "votes": 3, "topic": "food"}, {**PLAIN, "topic": 7}]
    path.write_text("\n".join(map(json.dumps, rows)))
    columns = parse_columns("p_chosen=agreement,weight=votes")
    with caplog.at_level(logging.INFO):
        pairs = load_preferences([str(path)], columns=columns, group="topic")
    assert "not read" not in caplog.text
    for found in (pairs, tokenize_preferences(pairs, tokenizer_of("chatml"), max_length=64, max_prompt_length=32)):
        assert {name: found[name][:] for name in ("p_chosen", "weight", "group")} == {
            "p_chosen": [0.75, 1.0],
            "weight": [3.0, 1.0],
            "group": ["food", "7"],
        }
    path.write_text(json.dumps(PLAIN))
    with pytest.raises(UserError, match="'topic', which is to say what pairs of one kind have in common, is None"):
        load_preferences([str(path)], group="topic")


def test_a_pair_of_rated_conversations_may_have_a_weight():
    row = {"conv_A": [user("Q"), assistant("a")], "conv_B": [user("Q"), assistant("b")], "weight": 0.5}
    assert as_preference({**row, "conv_A_rating": 1, "conv_B_rating": 2})["weight"] == 0.5


def test_rating_keys_can_be_named():
    assert as_preference({**PLAIN, "up": 3, "down": 1}, [("up", "down")])["margin"] == 2.0


BAD = [
    (["a", "b"], "the row is not an object"),
    (None, "the row is not an object"),
    ({"prompt": "Q", "chosen": "good"}, "'rejected' is missing or null"),
    ({**PLAIN, "chosen": None}, "'chosen' is missing or null"),
    ({**PLAIN, "chosen": " \n"}, "'chosen' is empty"),
    ({**PLAIN, "rejected": [assistant("")]}, "'rejected' is empty"),
    ({**PLAIN, "prompt": ""}, "the prompt's last turn is empty"),
    ({**PLAIN, "prompt": [user(" ")]}, "the prompt's last turn is empty"),
    ({**PLAIN, "prompt": []}, "'prompt' is neither text nor a list of messages"),
    ({**PLAIN, "prompt": 7}, "'prompt' is neither text nor a list of messages"),
    ({**PLAIN, "chosen": 7}, "'chosen' is neither text nor a list of messages"),
    ({**PLAIN, "rejected": "good "}, "chosen and rejected are identical"),
    ({**PLAIN, "prompt": ["Q"]}, "'prompt' holds a message that is not an object"),
    ({**PLAIN, "prompt": [{"role": "robot", "content": "Q"}]}, "'prompt' holds a message of role 'robot'; expected"),
    ({**PLAIN, "prompt": [{"role": ["user"], "content": "Q"}]}, "holds a message of role ['user']"),
    (
        {**PLAIN, "prompt": [{"content": "Q"}]},
        "holds a message of role null; expected system, user, assistant, tool or developer",
    ),
    ({**PLAIN, "prompt": [user(None)]}, "'prompt' holds a message whose content is null"),
    ({**PLAIN, "prompt": [{"role": "user"}]}, "'prompt' holds a message without 'content'"),
    ({**PLAIN, "prompt": [user(7)]}, "'prompt' holds a number where text is expected"),
    ({**PLAIN, "chosen": [assistant([{"type": "text"}])]}, "'chosen' holds null where text is expected"),
    ({**PLAIN, "prompt": [user("Q"), assistant("A")]}, "the prompt does not end with a user turn"),
    ({**PLAIN, "prompt": [SYSTEM]}, "the prompt does not end with a user turn"),
    ({**PLAIN, "chosen": [user("good")]}, "'chosen' does not end with an assistant turn"),
    ({**PLAIN, "chosen": "half \ud800"}, "'chosen' holds half a surrogate pair"),
    ({"chosen": "good", "rejected": "bad"}, "'chosen' is a plain text and there is no prompt beside it"),
    ({"chosen": [assistant("good")], "rejected": [assistant("bad")]}, "there is no prompt"),
    ({"chosen": DIALOGUE + "good", "rejected": DIALOGUE.replace("Q1", "Q0") + "bad"}, "have different prompts"),
    (
        {"chosen": DIALOGUE + "x\n\nHuman: y", "rejected": DIALOGUE + "z"},
        "'chosen' does not end with an assistant turn",
    ),
    ({"chosen": "preamble" + DIALOGUE + "x", "rejected": DIALOGUE + "z"}, "'chosen' is a plain text"),
    (
        {"prompt": "Q9", "chosen": [user("Q"), assistant("good")], "rejected": [user("Q"), assistant("bad")]},
        "the prompt differs from the turns before the answer in 'chosen'",
    ),
    ({**PLAIN, "score_chosen": 1.0}, "the rating 'score_rejected' is not a number"),
    ({**PLAIN, "score_chosen": "eight", "score_rejected": 5}, "the rating 'score_chosen' is not a number"),
    ({**PLAIN, "margin": "wide"}, "the rating 'margin' is not a number"),
    ({**PLAIN, "score_chosen": True, "score_rejected": 5}, "the rating 'score_chosen' is not a number"),
    ({**PLAIN, "score_chosen": float("nan"), "score_rejected": 5}, "the rating 'score_chosen' is not a number"),
    ({**PLAIN, "score_chosen": 10**400, "score_rejected": 5}, "the rating 'score_chosen' is not a number"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_every_reason_with_its_file_and_line(tmp_path, row, reason):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n" + json.dumps(PLAIN) + "\n")
    with pytest.raises(BadRow) as direct:
        as_preference(row)
    assert reason in str(direct.value)
    with pytest.raises(UserError) as stopped:
        load_preferences([str(path)])
    assert f"1 bad row:\n  {path}:2: {direct.value}" in str(stopped.value) and "skip" in str(stopped.value)


def test_skipping_drops_counts_and_logs(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    rows = [
        PLAIN,
        {**PLAIN, "chosen": ""},
        {**PLAIN, "chosen": "bad"},
        {**PLAIN, "rejected": "bad "},
        {**PLAIN, "chosen": ""},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.INFO, logger="denserl"):
        pairs = load_preferences([str(path)], on_bad_row="skip")
    assert pairs["rejected"][:] == ["bad", "bad "]
    assert f"{path}: 5 rows read, 3 of them bad" in caplog.text
    assert "2 rows kept, 3 bad rows: 2 x 'chosen' is empty, 1 x chosen and rejected are identical" in caplog.text
    with pytest.raises(UserError, match=r"3 bad rows:(.*\n)+  .*rows\.jsonl:2: 'chosen' is empty"):
        load_preferences([str(path)])


def pairs_of(tmp_path, rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_preferences([str(path)]), path


def test_tokenised_pairs(tmp_path):
    tokenizer = tokenizer_of("chatml")
    pairs, _ = pairs_of(tmp_path, [{**PLAIN, "chosen_score": 3, "rejected_score": 1}])
    (row,) = tokenize_preferences(pairs, tokenizer, max_length=64, max_prompt_length=32)

    def ids(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    assert row == {
        "prompt_ids": ids("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"),
        "chosen_ids": ids("good<|im_end|>"),
        "rejected_ids": ids("bad<|im_end|>"),
        **UNLABELLED,
        "margin": 2.0,
    }


def test_truncated_pairs_share_their_prompt_and_close_their_turns(tmp_path):
    tokenizer = tokenizer_of("chatml")
    pairs, _ = pairs_of(tmp_path, [{"prompt": "Q" * 40, "chosen": "zq" * 20, "rejected": "zx"}])
    (whole,) = tokenize_preferences(pairs, tokenizer, max_length=1000, max_prompt_length=500)
    (row,) = tokenize_preferences(pairs, tokenizer, max_length=30, max_prompt_length=20)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row["prompt_ids"] == whole["prompt_ids"][-20:]
    assert row["chosen_ids"] == [*whole["chosen_ids"][:9], end]
    assert row["rejected_ids"] == whole["rejected_ids"]


def test_pairs_that_truncation_makes_equal_are_bad_rows(tmp_path):
    pairs, path = pairs_of(tmp_path, [PLAIN, {**PLAIN, "chosen": "x" * 50 + "a", "rejected": "x" * 50 + "b"}])
    with pytest.raises(UserError) as caught:
        tokenize_preferences(pairs, tokenizer_of("chatml"), max_length=40, max_prompt_length=20)
    assert f"{path}:2: chosen and rejected have the same tokens, at least after truncation" in str(caught.value)
    kept = tokenize_preferences(pairs, tokenizer_of("chatml"), max_length=40, max_prompt_length=20, on_bad_row="skip")
    assert len(kept) == 1


def test_what_the_template_refuses_is_a_bad_row_with_its_words(tmp_path):
    pairs, path = pairs_of(tmp_path, [PLAIN, {**PLAIN, "prompt": [SYSTEM, user("Q")]}])
    with pytest.raises(UserError) as caught:
        tokenize_preferences(pairs, tokenizer_of("gemma"), max_length=64, max_prompt_length=32)
    assert f"{path}:2: the chat template refuses the messages: System role not supported" in str(caught.value)


def test_lengths_that_leave_no_response_are_refused(tmp_path):
    pairs, _ = pairs_of(tmp_path, [PLAIN])
    with pytest.raises(UserError, match="no room for a response"):
        tokenize_preferences(pairs, tokenizer_of("chatml"), max_length=33, max_prompt_length=32)


EMPTY, UNASKED = "'chosen' is empty", "the prompt does not end with a user turn"
SAME = "chosen and rejected are identical"


@pytest.mark.parametrize(
    ("folder", "split", "good", "bad"),
    [
        # counted in the published files: empty answers, and two assistant turns in a row
        ("hh-harmless", "train", 1992, {87: EMPTY, 517: EMPTY, 926: EMPTY, 1104: EMPTY}
         | {n: UNASKED for n in (1255, 1689, 1951, 1953)}),
        ("hh-harmless", "test", 311, {37: UNASKED}),
        ("ultrafeedback-1k", "train", 994, {307: SAME, 479: "'rejected' is empty", 656: SAME, 834: EMPTY}
         | {911: SAME, 998: SAME}),
        ("ultrafeedback-1k", "test", 199, {44: SAME}),
        ("dpo-demo", "train", 300, {}),
    ],
)  # fmt: skip
def test_real_files_load_but_for_their_bad_rows(shared_data, folder, split, good, bad):
    pairs = load_preferences([str(shared_data / folder)], split=split, on_bad_row="skip")
    assert len(pairs) == good
    name = split + (".jsonl.gz" if folder == "hh-harmless" else ".jsonl")
    if not bad:
        assert len(load_preferences([str(shared_data / folder)], split=split)) == good
    else:
        with pytest.raises(UserError) as caught:
            load_preferences([str(shared_data / folder)], split=split)
        listed = [line.strip().rsplit("/", 1)[1] for line in str(caught.value).splitlines()[1 : 1 + len(bad)]]
        assert listed == [f"{name}:{line}: {reason}" for line, reason in bad.items()]


@pytest.mark.parametrize("name", ["phi3", "llama3"])
def test_real_pairs_tokenise_within_their_lengths(shared_data, name):
    for folder in ("hh-harmless", "ultrafeedback-1k", "dpo-demo"):
        pairs = load_preferences([str(shared_data / folder)], on_bad_row="skip", limit=60)
        rows = tokenize_preferences(pairs, tokenizer_of(name), max_length=512, max_prompt_length=384)
        assert len(rows) == 60
        for row in rows:
            assert len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= 512
            end = tokenizer_of(name).convert_tokens_to_ids({"phi3": "<|end|>", "llama3": "<|eot_id|>"}[name])
            for side in ("chosen_ids", "rejected_ids"):
                assert row[side].index(end) == len(row[side]) - 1


def row_of_ids(number: int, chosen: int, rejected: int, margin: float) -> dict:
    sides = {"chosen": chosen, "rejected": rejected}
    ids = {f"{side}_ids": [number, n] for side, n in sides.items()}
    return {"prompt_ids": [number], **ids, **{f"{side}_logprob": -1.0 * n for side, n in sides.items()}, "margin": margin} | {
        "p_chosen": 0.8,
        "weight": number + 1.0,
    }


@pytest.mark.parametrize("share, count", [(0.0, 0), (0.25, 3), (0.3, 4), (1.0, 13)])
def test_flipped_pairs_have_all_of_their_columns_exchanged(share, count):
    plain, turned = ([row_of_ids(i, *sides, 0.5) for i in range(13)] for sides in ((1, 2), (2, 1)))
    found = exchanged(Dataset.from_list(plain), labels_to_turn(13, share, seed=7))
    assert found.features == Dataset.from_list(plain).features
    which = {i for i, row in enumerate(found) if row == turned[i]}
    assert len(which) == count
    assert all(row == plain[i] for i, row in enumerate(found) if i not in which)


def test_the_seed_says_which_labels_are_flipped_and_a_larger_share_has_those_of_a_smaller():
    def turned(share: float, seed: int) -> set[int]:
        return {*labels_to_turn(40, share, seed).nonzero()[0]}

    assert turned(0.25, 3) == turned(0.25, 3) < turned(0.5, 3)
    assert turned(0.25, 3) != turned(0.25, 4)
