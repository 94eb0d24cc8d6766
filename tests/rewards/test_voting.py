"""Scores of pairs by several members: put on one scale, of unseen pairs alone, and kept. Members are stand-ins that count."""

import json

import numpy as np
import pytest

from denserl.config import ModelSourceConfig
from denserl.data.bad_rows import BadRow
from denserl.data.preferences import load_preferences
from denserl.data.strength_file import strength_of
from denserl.errors import UserError
from denserl.rewards.members import MEMBERS_FILE, read_members
from denserl.rewards.sources.pair_model import PairModel
from denserl.rewards.voting import measure_strength

ROWS = [{"prompt": f"Q{n}", "chosen": "c" * (n % 7 + 1), "rejected": "r" * (n % 3 + 1)} for n in range(20)]
CHOSEN, REJECTED = (np.array([len(row[side]) for row in ROWS], float) for side in ("chosen", "rejected"))
SOURCE = ModelSourceConfig()


class Member:
    """Scores a response by its length, times a factor."""

    def __init__(self, factor: float = 1.0):
        self.factor, self.asked = factor, []

    def encode(self, prompt, response):
        if response == "refused":
            raise BadRow("the chat template refuses it")
        return prompt[0]["content"], response

    def score(self, encoded):
        self.asked += [prompt for prompt, _ in encoded]
        return np.array([self.factor * len(text) for _, text in encoded])


class Comparing(PairModel):
    """Log-odds of twice the difference of lengths, and 1 more for whatever stands first."""

    def __init__(self):
        pass

    def encode(self, prompt, first, second, ended=(True, True)):
        return len(first) - len(second)

    def score(self, pairs, progress=""):
        return np.array([(2 * d + 1, -2 * d + 1) for d in pairs], float)


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return load_preferences([str(tmp_path / "pairs.jsonl")])


def folder(path, std: float | None = None, **stored) -> str:
    path.mkdir(parents=True)
    moments = {} if std is None else {"mean": 0.0, "std": std}
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **moments, "segment_reward": stored}))
    return str(path)


def measured(pairs, members: dict, **how):
    return measure_strength(list(members), pairs, members.__getitem__, SOURCE, **how)


def test_members_count_alike_whatever_the_size_of_their_scores(pairs, tmp_path):
    members = {folder(tmp_path / "a", std=2.0): Member(1.0), folder(tmp_path / "b", std=200.0): Member(-100.0)}
    found = measured(pairs, members)
    # Each over its std, times the mean of both: 101.
    assert found.chosen == pytest.approx(np.stack([CHOSEN / 2, -CHOSEN / 2]) * 101)
    assert strength_of(found.chosen, found.rejected).mean == pytest.approx(0 * CHOSEN)
    assert (found.stds, found.are_stored, found.unit) == ([2.0, 200.0], [True, True], 101.0)
    # A single one's are as they are.
    alone = measured(pairs, {folder(tmp_path / "c", std=3.0): Member()})
    assert alone.chosen.tolist() == [CHOSEN.tolist()] and alone.rejected.tolist() == [REJECTED.tolist()]


def test_without_a_stored_std_it_is_that_of_the_scores(pairs, tmp_path, caplog):
    caplog.set_level("INFO")
    members = {folder(tmp_path / "a"): Member(), folder(tmp_path / "b", std=1.0, scores="logit"): Member(7.0)}
    found = measured(pairs, members)
    own = np.concatenate([CHOSEN, REJECTED]).std()
    assert found.stds == pytest.approx([own, 7 * own]) and found.are_stored == [False, False]
    assert found.chosen[1] == pytest.approx(found.chosen[0]) and "has no std of its scores" in caplog.text
    with pytest.raises(UserError, match="all of its scores are equal"):
        measured(pairs, {folder(tmp_path / "c"): Member(0.0)})


def test_a_model_that_compares_is_asked_in_both_orders(pairs, tmp_path):
    # What is stored with it is the std of a difference, of which its two responses have half each.
    members = {folder(tmp_path / "a", std=8**0.5, input="pair"): Comparing(), folder(tmp_path / "b", std=2.0): Member()}
    found = measured(pairs, members)
    assert found.stds == pytest.approx([2, 2]) and found.unit == pytest.approx(2)
    # The place of a response says nothing: of 2 d + 1 and -2 d + 1 remains 2 d.
    assert found.chosen[0] - found.rejected[0] == pytest.approx(2 * (CHOSEN - REJECTED))
    assert found.chosen[0] == pytest.approx(-found.rejected[0])


def test_members_of_folds_score_what_they_have_not_seen(pairs, tmp_path):
    members = {folder(tmp_path / f"run/member-{k}", std=1.0): Member() for k in range(4)}
    told = [{"seed": k, "left_out": k % 2} for k in range(4)]
    written = {"asked": 4, "folds": 2, "fold_seed": 1, "members": told}
    (tmp_path / "run" / MEMBERS_FILE).write_text(json.dumps(written))
    found = measure_strength([str(tmp_path / "run")], pairs, members.__getitem__, SOURCE)
    may = read_members(tmp_path / "run").may_score(pairs["prompt"])
    assert (np.isnan(found.chosen) == ~may).all() and (may.sum(0) == 2).all() and 0 < may[0].sum() < 20
    for row, member in zip(may, members.values()):
        assert {*member.asked} == {ROWS[n]["prompt"] for n in np.flatnonzero(row)}
    # With a member of each fold or of none but one.
    (tmp_path / "run" / MEMBERS_FILE).write_text(json.dumps({**written, "folds": 5}))
    with pytest.raises(UserError, match=r"of 20 pairs, the first .*pairs.jsonl:\d+, are of folds"):
        measure_strength([str(tmp_path / "run")], pairs, members.__getitem__, SOURCE)


def test_kept_scores_are_those_of_the_very_same(pairs, tmp_path):
    path = folder(tmp_path / "a", std=2.0)

    def asked(dtype="fp32", rows=pairs, **how) -> bool:
        member = Member()
        found = measured(rows, {path: member}, keep=tmp_path / "scores", dtype=dtype, **how)
        assert found.chosen[0].tolist() == [len(text) for text in rows["chosen"]]
        return bool(member.asked)

    assert asked() and not asked()
    assert asked(dtype="bf16") and asked(how="max_length 8") and asked(rows=pairs.select(range(5)))
    (tmp_path / "a/chat_template.jinja").write_text("another")
    assert asked() and not asked()
    (tmp_path / "a/model.safetensors").write_bytes(b"other weights")
    assert asked()
    assert not list((tmp_path / "scores").glob(".*"))


def test_what_cannot_be_measured_is_said(pairs, tmp_path):
    path = folder(tmp_path / "a", std=1.0)
    with pytest.raises(UserError, match="a stands twice among the models"):
        measure_strength([path, f"{path}/../a"], pairs, {}.__getitem__, SOURCE)
    (tmp_path / "bad.jsonl").write_text(json.dumps({**ROWS[0], "rejected": "refused"}))
    with pytest.raises(UserError, match="bad.jsonl:1: the chat template refuses it"):
        measured(load_preferences([str(tmp_path / "bad.jsonl")]), {path: Member()})
