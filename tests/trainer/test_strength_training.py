"""What train-rm does with the strength of its pairs: which labels, margins and chances its rows then have, in every use."""

import functools
import json

import numpy as np
import pytest
import tiny_models
import torch

from denserl.cli import train_rm
from denserl.data.preferences import labels_to_turn, load_preferences
from denserl.data.strength_file import write_strength
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer
from denserl.trainer.reward_pairs import pairs_of
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.trackers import read_metrics

ROWS, MEMBERS = 20, 4
tokenizer_of = functools.cache(load_tokenizer)


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A language model, pairs with ratings, and the file of their strength; a fifth of them are turned round by no member."""
    root = tmp_path_factory.mktemp("strength")
    tiny_models.save_language_model(root / "sft")
    rows = [{**row, "chosen": f"{row['chosen']} {i}", "margin": 3.0} for i, row in enumerate(tiny_models.boat_pairs(ROWS + 6))]
    for name, part in {"pairs": rows[:ROWS], "held_out": rows[ROWS:]}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    scores = np.random.default_rng(0).normal(0.5, 1, (2, MEMBERS, ROWS))
    scores[0] += 0.5
    write_strength(root / "strength.jsonl", load_preferences([str(root / "pairs.jsonl")]), *scores)
    return root, scores[0] - scores[1]


def config(files, output, **options):
    """Of a training whose held-out pairs stand in a file of their own."""
    own = {
        "model": str(files[0] / "sft"),
        "data": [str(files[0] / "pairs.jsonl")],
        "eval_data": [str(files[0] / "held_out.jsonl")],
        "output_dir": str(output),
        "cache_dir": str(files[0] / "cache"),
        "reward_level": "bandit",
        "max_length": 64,
        "max_prompt_length": 48,
        "batch_size": 8,
        "micro_batch_size": 8,
        "strength_from": [str(files[0] / "strength.jsonl")],
        "lr": 1e-2,
        "warmup_ratio": 0.0,
        "logging_steps": 1,
        "save_steps": 0,
        "eval_steps": 0,
        "device": "cpu",
    }
    return train_rm.Options(**{**own, **options})


@pytest.fixture(scope="module")
def plain(files, tmp_path_factory):
    """The rows without strength, in the same order."""
    with tiny_models.restored_environment():
        return list(trained_on(files, tmp_path_factory.mktemp("plain"), strength_from=None))


def trained_on(files, output, **options):
    """The rows that a training would learn from."""
    given = config(files, output, **options)
    given.check()
    return pairs_of(given, tokenizer_of(given.model), torch.device("cpu"), "fp32", (), None)[0]


def lowest(mean, many):
    found = np.zeros(len(mean), dtype=bool)
    found[sorted(range(len(mean)), key=lambda i: mean[i])[:many]] = True
    return found


def sides(row):
    return row["chosen_ids"], row["rejected_ids"]


@pytest.mark.parametrize("use", ["flip", "margin", "flip_margin", "soft", "soft_margin", "votes", "sigmoid"])
def test_rows_are_learned_as_their_strength_says(use, files, plain, tmp_path):
    """Written out once more: noise first, which turns strengths with labels; then the use, by ranks of what is there then."""
    _, d = files
    found = list(trained_on(files, tmp_path, strength_use=use, flip_frac=0.25))
    turned = labels_to_turn(ROWS, 0.25, 42)
    d = np.where(turned, -d, d)
    mean, is_low = d.mean(0), lowest(d.mean(0), 4)
    flips, margins = use.startswith("flip"), use.endswith("margin")
    signs = np.where(is_low, -1, 1) if flips else np.ones(ROWS)
    for i, row in enumerate(found):
        exchanged = turned[i] ^ (flips and is_low[i])
        assert sides(row) == (sides(plain[i])[::-1] if exchanged else sides(plain[i]))
        # A rating that is not taken for a margin stays one of the two responses.
        assert row["margin"] == pytest.approx(signs[i] * mean[i] if margins else 3.0 * signs[i])
        chance = {"votes": (d[:, i] > 0).mean(), "sigmoid": 1 / (1 + np.exp(-mean[i]))}
        soft = 0.9 if use.startswith("soft") and is_low[i] else 1.0
        assert row["p_chosen"] == pytest.approx(chance.get(use, soft))


def test_parts_are_kept_and_others_left_out(files, plain, tmp_path):
    mean = files[1].mean(0)
    order = np.argsort(mean)

    def kept(**options):
        rows = trained_on(files, tmp_path, **options)
        return [next(i for i, one in enumerate(plain) if sides(one) == sides(row)) for row in rows]

    assert kept(strength_keep=["strong"]) == sorted(order[18:])
    assert kept(strength_keep=["0.2-1"]) == sorted(order[4:])
    assert kept(strength_keep=["positive"]) == [i for i in range(ROWS) if mean[i] >= 0]
    assert kept(strength_keep=["0.1", "strong"]) == sorted([*order[:2], *order[18:]])
    # What is turned round is told of all pairs, before some are left out.
    rows = trained_on(files, tmp_path, strength_keep=["0.1-1"], strength_use="flip")
    known = {str(sides(one)): one for one in plain}
    assert sum(str(sides(row)) not in known for row in rows) == 2 and len(rows) == 18


def test_a_training_says_what_it_did_and_its_held_out_pairs_have_no_margins(files, tmp_path, caplog):
    caplog.set_level("INFO")
    trainer = RewardTrainer.from_config(config(files, tmp_path, strength_use="soft_margin", strength_clip=0.5))
    assert {*trainer.eval_dataset["margin"]} == {0.0} and max(trainer.train_dataset["margin"]) == 0.5
    trainer.run()
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("strength of 20 pairs")]
    assert len(said) == 1 and "4 softened, right with a chance of 0.980 on average" in said[0] and "0 left out" in said[0]
    margins = np.clip(files[1].mean(0), -0.5, 0.5)
    *steps, evaluated = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "margin" in row or "eval_margin" in row]
    # Eight, eight and four rows by steps.
    weighted = sum(row["margin"] * rows for row, rows in zip(steps, (8, 8, 4), strict=True))
    assert weighted == pytest.approx(margins.sum(), rel=1e-5) and evaluated["eval_margin"] == 0
    assert {"score_mean", "reward_difference"} <= steps[0].keys()


PAIR = {"input": "pair", "head_type": "label", "max_length": 120}
# The options that a model of both in one text does not have.
UNREAD = {
    name: train_rm.Options.__dataclass_fields__[name].default for name in ("reward_level", "max_prompt_length", "cache_dir")
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"head_type": "label", "reward_level": "token", "strength_use": "flip_margin"}, marks=pytest.mark.long),
        pytest.param(
            {"head_type": "mlp", "entropy_threshold": 5.3, "reg_type": "dpo", "strength_use": "soft_margin"},
            marks=pytest.mark.long,
        ),
        pytest.param({"disentangle": "length", "strength_use": "flip"}, marks=pytest.mark.long),
        {**PAIR, **UNREAD, "strength_use": "soft"},
    ],
    ids=["labels of tokens", "mlp of segments, and a reference model", "disentangled", "both in one text"],
)
def test_every_head_and_level_learns_by_strength(options, files, tmp_path):
    given = config(files, tmp_path, **options, flip_frac=0.25)
    trainer = RewardTrainer.from_config(given)
    assert ({*trainer.train_dataset["p_chosen"]} == {1.0, 0.9}) == options["strength_use"].startswith("soft")
    assert np.isfinite(trainer.run()["eval_loss"])


def test_pairs_made_of_others_stay_as_they_are(files, tmp_path):
    rows = trained_on(files, tmp_path, strength_use="soft_margin", strength_keep=["positive"], augment="rrm", augment_ratio=0.2)
    own, made = list(rows)[: (files[1].mean(0) >= 0).sum()], list(rows)[(files[1].mean(0) >= 0).sum() :]
    assert all(row["margin"] >= 0 and row["p_chosen"] in (1.0, 0.9) for row in own)
    assert len(made) > ROWS and {row["margin"] for row in made} == {0.0} and {row["p_chosen"] for row in made} == {1.0, 0.5}


def test_a_split_of_annotated_pairs_has_their_strength(files, plain, tmp_path):
    """As they are published: what is learned from, and how strong it is, are one data set of several splits."""
    lines = (files[0] / "strength.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[8:]))
    (tmp_path / "valid.jsonl").write_text("".join(lines[:8]))
    annotated = {"data": [str(tmp_path)], "strength_from": [str(tmp_path)], "split": "valid"}
    rows = trained_on(files, tmp_path / "rm", **annotated, strength_use="margin")
    assert list(rows["margin"]) == pytest.approx(files[1].mean(0)[:8])


def test_strength_follows_its_pair_into_a_part_that_is_split_off(files, plain, tmp_path):
    rows = trained_on(files, tmp_path, strength_use="margin", eval_data=None, eval_size=4)
    means = {str(sides(one)): mean for one, mean in zip(plain, files[1].mean(0), strict=True)}
    assert len(rows) == 18 and all(row["margin"] == pytest.approx(means[str(sides(row))]) for row in rows)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "`strength_from` has no effect without"),
        ({"strength_from": None, "strength_use": "flip"}, "without `strength_from`"),
        ({"strength_from": None, "strength_keep": ["strong"]}, "without `strength_from`"),
        ({"strength_use": "margin", "use_margin": True}, "`use_margin` has no effect beside `strength_use`"),
        ({"strength_use": "flip", "soft_label_scale": 1.0}, "`soft_label_scale` 1.0 has no effect beside `strength_use`"),
        ({"strength_use": "margin", "strength_low": "negative"}, "`strength_low` negative has no effect"),
        ({"strength_use": "flip", "strength_clip": 1.0}, "`strength_clip` 1.0 has no effect"),
        ({"strength_use": "votes", "strength_scale": 2.0}, "`strength_scale` 2.0 has no effect"),
        ({"strength_use": "flip", "strength_smoothing": 0.2}, "`strength_smoothing` 0.2 has no effect"),
        ({"strength_use": "flip", "strength_low": "weak"}, "`strength_low` weak is no part"),
        ({"strength_keep": ["weak"]}, "`strength_keep` weak is no part"),
        ({"strength_keep": ["0.01"]}, "leaves no pair to train on"),
        ({"strength_use": "turn"}, "`strength_use` is 'turn'"),
        ({"strength_use": "flip", "strength_from": ["no/where.jsonl"]}, "there is no file or folder 'no/where.jsonl'"),
        ({"strength_use": "flip", "strength_from": ["where.jsonl"]}, "there is no file or folder 'where.jsonl'"),
        ({"strength_use": "flip", "strength_from": ["a/model", "where.jsonl"]}, "of which where.jsonl holds strengths, or is"),
        ({**PAIR, **UNREAD, "strength_use": "margin"}, "the odds of a label have no margin"),
        ({"strength_use": "flip", "input": "steps"}, "without `input` pairs or pair"),
        ({"strength_use": "flip", "unlabelled_data": ["u"]}, "beside pairs that a model labels"),
        ({"strength_use": "flip", "pseudo_data": ["u"]}, "beside pairs that a model labels"),
        ({"strength_use": "flip", "limit": 10}, None),
        ({"strength_use": "flip", "data_weights": [1.0]}, None),
    ],
)
def test_what_cannot_be_is_refused(options, found, files, tmp_path):
    if found is None:
        assert len(trained_on(files, tmp_path, **options))
    else:
        with pytest.raises(UserError, match=found):
            trained_on(files, tmp_path, **options)


def test_labels_that_say_how_sure_they_are_leave_nothing_to_strength(files, tmp_path):
    rows = [json.loads(line) for line in (files[0] / "pairs.jsonl").read_text().splitlines()]
    (tmp_path / "soft.jsonl").write_text("".join(json.dumps({**row, "p_chosen": 0.7}) + "\n" for row in rows))
    soft = {"data": [str(tmp_path / "soft.jsonl")], "strength_use": "votes"}
    with pytest.raises(UserError, match="say so themselves"):
        trained_on(files, tmp_path, **soft)
    assert len(trained_on(files, tmp_path, **soft, columns="p_chosen=")) == ROWS
