"""Members that one command trains: what they have in common, what each leaves out, and that it goes on where it was ended."""

import json
import shutil

import pytest
import tiny_models
import torch

from denserl.cli import train_rm
from denserl.data import reference_cache
from denserl.data.folds import folds_of
from denserl.data.preferences import load_preferences
from denserl.data.strength_file import read_strength
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.members import read_members
from denserl.rewards.scorer import RewardScorer
from denserl.trainer.group_trainer import GroupTrainer
from denserl.trainer.members import train_members
from denserl.trainer.reward_pairs import pairs_of
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.several import has_begun

ROWS = 24


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("members")
    tiny_models.save_language_model(root / "sft")
    rows = [{**row, "chosen": f"{row['chosen']} {i}"} for i, row in enumerate(tiny_models.boat_pairs(ROWS + 6))]
    for name, part in {"pairs": rows[:ROWS], "held_out": rows[ROWS:]}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


def arguments(files, output, **options):
    own = {"model": files / "sft", "data": files / "pairs.jsonl", "eval_data": files / "held_out.jsonl"}
    training = {
        "batch_size": 8,
        "micro_batch_size": 8,
        "lr": 3e-3,
        "epochs": 2,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_steps": 0,
    }
    lengths = {"max_length": 64, "max_prompt_length": 48, "entropy_threshold": 5.3, "cache_dir": files / "cache"}
    return tiny_models.as_argv({**own, **training, **lengths, "output_dir": output, "members": 2, **options})


def run(files, output, **options):
    """Runs train-rm in this process; returns its output folder."""
    tiny_models.run_command(train_rm, "train-rm", arguments(files, output, **options))
    return output


FOLDS = {"strength_folds": 2, "flip_frac": 0.25}


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """The folder of an unbroken run, the rows that each member trained on, and how often the frozen model was asked."""
    rows, asked, learn, ask = [], [], GroupTrainer.learn, reference_cache._ask

    def seen(self):
        rows.append(list(self.train_dataset))
        return learn(self)

    with tiny_models.restored_environment(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(GroupTrainer, "learn", seen)
        patch.setattr(reference_cache, "_ask", lambda *args: (asked.append(args), ask(*args))[1])
        folder = run(files, tmp_path_factory.mktemp("unbroken") / "rm", **FOLDS)
    return folder, rows, len(asked)


def told(folder):
    return json.loads((folder / "members.json").read_text())


def test_members_have_other_seeds_and_see_the_folds_that_are_not_theirs(files, trained):
    folder, rows, asked = trained
    members = read_members(folder)
    assert [one["seed"] for one in told(folder)["members"]] == [42, 43] and members.left_out == [0, 1]
    assert not tiny_models.same_weights(*members.folders)
    pairs = load_preferences([str(files / "pairs.jsonl")])
    seen = ~members.may_score(pairs["prompt"])
    assert seen.sum(0).tolist() == [1] * ROWS and [len(part) for part in rows] == seen.sum(1).tolist()
    # Of the training rows and of the held-out ones, once for all members.
    assert asked == 2
    record = json.loads((folder / "member-1/command.json").read_text())[0]["command"]
    assert all(f" {words}" in record for words in ("--seed 43", "--data_seed 42", "--strength_folds 2", "--leave_out_fold 1"))
    assert "--members" not in record


def test_labels_are_turned_round_in_the_same_pairs_for_all_members(files, tmp_path, trained):
    """What is chosen in the fold of each, beside one training on all pairs."""
    _, rows, _ = trained
    config = train_rm.Options(**options_of_one(files, tmp_path), flip_frac=0.25)
    every = {(*row["prompt_ids"], *row["chosen_ids"]) for row in RewardTrainer.from_config(config).train_dataset}
    plain = {
        (*row["prompt_ids"], *row["chosen_ids"])
        for row in RewardTrainer.from_config(train_rm.Options(**options_of_one(files, tmp_path))).train_dataset
    }
    assert len(every & plain) == ROWS - ROWS // 4
    assert {(*row["prompt_ids"], *row["chosen_ids"]) for part in rows for row in part} == every


def options_of_one(files, output):
    return {
        "model": str(files / "sft"),
        "data": [str(files / "pairs.jsonl")],
        "eval_data": [str(files / "held_out.jsonl")],
        "output_dir": str(output),
        "cache_dir": str(files / "cache"),
        "max_length": 64,
        "max_prompt_length": 48,
        "batch_size": 8,
        "micro_batch_size": 8,
    }


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["in a training", pytest.param("between two", marks=pytest.mark.long)])
def test_a_run_goes_on_in_any_member(where, files, trained, tmp_path, monkeypatch):
    folder, *_ = trained
    # As it is after the first member.
    (tmp_path / "rm").mkdir()
    record = told(folder)
    (tmp_path / "rm/members.json").write_text(json.dumps({**record, "members": record["members"][:1]}))
    shutil.copytree(folder / "member-0", tmp_path / "rm/member-0")
    if where == "in a training":
        step = RewardTrainer.training_step

        def training_step(self, *args, **kw):
            if self.state.global_step == 2:
                raise Killed
            return step(self, *args, **kw)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(RewardTrainer, "training_step", training_step)
            run(files, tmp_path / "rm", **FOLDS, resume=True)
        with pytest.raises(UserError, match="1 of 2 members are trained"):
            read_members(tmp_path / "rm")
    run(files, tmp_path / "rm", **FOLDS, resume=True)
    assert told(tmp_path / "rm")["members"] == record["members"]
    assert all(tiny_models.same_weights(tmp_path / "rm" / part, folder / part) for part in ("member-0", "member-1"))


def test_a_run_goes_on_with_what_it_began_with(files, trained, tmp_path):
    folder, *_ = trained
    with pytest.raises(UserError, match="add --resume to go on with it"):
        run(files, folder, **FOLDS)
    with pytest.raises(UserError, match="strength_folds: 2, now None"):
        run(files, folder, flip_frac=0.25, resume=True)
    with pytest.raises(UserError, match=r"no members\.json"):
        run(files, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"members": 1}, "--members is 1; it must be at least 2"),
        ({"members": 4, "strength_folds": 3}, "--members 4 is no multiple of --strength_folds 3"),
        ({"members": 2, "strength_folds": 4}, "--members 2 is no multiple of --strength_folds 4"),
        ({"members": None, "strength_folds": 3}, "without --members or --leave_out_fold"),
        ({"leave_out_fold": 0, "strength_folds": 2}, "--leave_out_fold beside --members"),
        ({"members": None, "leave_out_fold": 0}, "--leave_out_fold 0 without --strength_folds"),
        ({"members": None, "leave_out_fold": 2, "strength_folds": 2}, "let it be 0 to 1"),
        ({"members": None, "leave_out_fold": 0, "strength_folds": 10000}, "0 of 24 pairs are of that fold"),
        ({"strength_folds": 2, "augment": "rrm"}, "beside --augment"),
        ({"unlabelled_data": "u"}, "beside --unlabelled_data"),
        ({"input": "steps", "entropy_threshold": None, "cache_dir": None}, "without --input pairs or pair"),
        ({"members": None, "data_seed": 3, "input": "ratings"}, "without --input pairs or pair"),
    ],
)
def test_what_cannot_be_is_refused(options, found, files, tmp_path):
    with pytest.raises(UserError, match=found):
        run(files, tmp_path / "rm", **options)
    assert not (tmp_path / "rm/member-0").exists()


def test_what_ended_before_it_began_is_no_earlier_training(files, trained, tmp_path):
    """Its record tells of no training, and there is nothing to go on from: the command may be given again, corrected."""
    folder, *_ = trained
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm/members.json").write_text(json.dumps({**told(folder), "members": []}))
    assert not has_begun(tmp_path / "rm") and has_begun(folder)
    given = []

    def train(own):
        given.append(own)
        return {"eval_accuracy": 0.5}

    train_members(train_rm.Options(**options_of_one(files, tmp_path / "rm"), members=2), train)
    assert [own.resume for own in given] == [False, False] and [one["seed"] for one in told(tmp_path / "rm")["members"]] == [
        42,
        43,
    ]
    # A checkpoint of the first one is enough.
    (tmp_path / "rm/members.json").write_text(json.dumps({**told(folder), "members": []}))
    shutil.copytree(folder / "member-0", tmp_path / "rm/member-0")
    with pytest.raises(UserError, match="holds an earlier training"):
        train_members(train_rm.Options(**options_of_one(files, tmp_path / "rm"), members=2), train)


def test_members_are_no_single_training(files, tmp_path):
    with pytest.raises(UserError, match="`members` asks for several trainings"):
        RewardTrainer.from_config(train_rm.Options(**options_of_one(files, tmp_path), members=2))


def test_pairs_have_the_strength_that_members_measure_who_have_not_seen_them(files, trained, tmp_path):
    """Each by one of the two, by its scores alone, in units of its own std and of the mean of both."""
    folder, *_ = trained
    config = train_rm.Options(**options_of_one(files, tmp_path), strength_from=[str(folder)], strength_use="margin")
    tokenizer = load_tokenizer(config.model)
    margins = pairs_of(config, tokenizer, torch.device("cpu"), "fp32", (), None)[0]["margin"]
    pairs, members = load_preferences(config.data), read_members(folder)
    scorers = [RewardScorer([str(path)], max_length=64) for path in members.folders]
    stds = [json.loads((path / "config.json").read_text())["std"] for path in members.folders]
    for pair, fold, margin in zip(pairs, folds_of(pairs["prompt"], 2, 42), margins, strict=True):
        chosen, rejected = scorers[fold]([pair["prompt"]] * 2, [pair["chosen"], pair["rejected"]])
        assert margin == pytest.approx((chosen - rejected) / stds[fold] * sum(stds) / 2, rel=1e-4, abs=1e-6)
    assert len(read_strength(tmp_path, pairs).mean) == ROWS


def test_strength_that_models_measure_is_measured_once_for_all_members(files, trained, tmp_path):
    folder, *_ = trained
    given = []

    def train(own):
        given.append(own)
        return {"eval_accuracy": 0.5 + own.seed / 100, "eval_loss": 1.0, "step": 3}

    config = train_rm.Options(
        **options_of_one(files, tmp_path), members=3, seed=2, strength_from=[str(folder)], strength_use="soft", lr=0.5
    )
    metrics = train_members(config, train)
    assert metrics == {"eval_accuracy": pytest.approx(0.53), "eval_loss": 1.0}
    assert [own.seed for own in given] == [2, 3, 4] and {own.data_seed for own in given} == {2}
    assert {own.strength_from[0] for own in given} == {str(tmp_path / "strength.jsonl")}
    assert {(own.lr, own.members, own.strength_use) for own in given} == {(0.5, None, "soft")}
