"""Rounds of self-training: each an ordinary training, on labels that come from models alone; a run goes on where it ended."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models

from denserl.cli import train_rm
from denserl.data.chat import encode_prompt
from denserl.data.preferences import load_preferences
from denserl.data.unlabelled import TWO, load_unlabelled, with_lengths
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.pair_chances import load_judge, pair_chances
from denserl.trainer import self_training
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.self_training import Rounds, train_in_rounds

SURE = {"pseudo_share": 0.8, "pseudo_confidence": None}
PLANTED = {"prompt": "Tell me about boat 99.", "chosen": "No 1 ", "rejected": "The river The river ", "kind": "7"}


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


def flipped(row):
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An SFT model, labelled pairs, and a pool whose first pair's label is wrong."""
    root = tmp_path_factory.mktemp("ssrm")
    tiny_models.save_language_model(root / "sft")
    rows = [{**row, "kind": str(i % 7)} for i, row in enumerate(tiny_models.boat_pairs(30))]
    parts = {"labelled": rows[:8], "held_out": rows[8:14], "pool": [PLANTED, *rows[14:]]}
    for name, part in {**parts, "flipped": map(flipped, parts["pool"])}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


def run(files, output, **options):
    """Runs train-rm in this process; returns its output folder."""
    settings = {
        "model": files / "sft",
        "data": files / "labelled.jsonl",
        "eval_data": files / "held_out.jsonl",
        "output_dir": output,
        "cache_dir": files / "cache",
        "reward_level": "bandit",
        "batch_size": 8,
        "micro_batch_size": 4,
        "epochs": 3,
        "lr": 3e-3,
        "warmup_ratio": 0.0,
        "logging_steps": 1,
        "save_steps": 3,
        "eval_steps": 0,
        "max_length": 64,
        "max_prompt_length": 48,
    }
    tiny_models.run_command(train_rm, "train-rm", tiny_models.as_argv(settings | options))
    return output


def in_rounds(files, output, pool="pool", **options):
    own = {"unlabelled_data": files / f"{pool}.jsonl", "pseudo_confidence": 0.505}
    return run(files, output, **own | options)


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """The folder of an unbroken run."""
    with tiny_models.restored_environment():
        return in_rounds(files, tmp_path_factory.mktemp("unbroken") / "rm")


def rounds_of(folder):
    return json.loads((folder / "rounds.json").read_text())["rounds"]


def test_the_best_round_stands_in_the_output_folder(files, trained):
    rounds = rounds_of(trained)
    assert len(rounds) == 3
    best = min(rounds, key=lambda one: one["held_out_loss"])["round"]
    assert [tiny_models.same_weights(trained, trained / f"round_{number}") for number in range(3)] == [
        number == best for number in range(3)
    ]
    stored = json.loads((trained / "config.json").read_text())["segment_reward"]
    assert (trained / stored["sft_from_here"]).resolve() == (files / "sft").resolve()
    card = (trained / "README.md").read_text()
    assert f"of the model of round {best}, of rounds 0 to 2" in " ".join(card.split()) and "--unlabelled_data" in card
    assert "--unlabelled_data" not in (trained / "round_0/README.md").read_text()


def test_a_wrong_label_is_turned_round(files, trained):
    """Labels teach that the river is better; the pool has a pair whose row says it is not."""
    pairs = load_preferences([str(trained / "round_1/pseudo_labelled.jsonl")])
    (planted,) = [row for row in pairs if "boat 99" in row["prompt"][0]["content"]]
    assert (planted["chosen"], planted["rejected"]) == (PLANTED["rejected"], PLANTED["chosen"])
    assert planted["p_chosen"] == 1
    gold = {row["prompt"][0]["content"]: row["chosen"] for row in load_preferences([str(files / "pool.jsonl")])}
    turned = [row["chosen"] != gold[row["prompt"][0]["content"]] for row in pairs]
    report = rounds_of(trained)[1]
    assert (report["unlabelled"], report["not_judged"], report["kept"]) == (17, 0, len(pairs))
    assert report["turned"] == pytest.approx(sum(turned) / len(pairs)) == pytest.approx(1 - report["agreement"])


@pytest.fixture
def trained_before(trained, monkeypatch):
    """In place of a training, the folder that the unbroken run has of the same round."""

    def again(options):
        made = shutil.ignore_patterns("pseudo_labelled.jsonl")
        shutil.copytree(trained / Path(options.output_dir).name, options.output_dir, dirs_exist_ok=True, ignore=made)
        return rounds_of(trained)[int(options.output_dir[-1])]

    monkeypatch.setattr(train_rm, "_one_of_several", again)


def test_withheld_labels_reach_nothing_but_the_report(files, trained, trained_before, tmp_path):
    before = {path: path.read_bytes() for path in trained.glob("round_*/pseudo_labelled.jsonl")}
    other = in_rounds(files, tmp_path / "rm", pool="flipped")
    assert {trained / path.relative_to(other): path.read_bytes() for path in other.glob("round_*/pseudo*")} == before
    for one, two in zip(rounds_of(trained)[1:], rounds_of(other)[1:], strict=True):
        assert [two["agreement"], two["turned"]] == pytest.approx([1 - one["agreement"], 1 - one["turned"]])


@pytest.mark.long
def test_withheld_labels_leave_the_model_as_it_is_to_the_bit(files, trained, tmp_path):
    assert tiny_models.same_weights(trained, in_rounds(files, tmp_path / "rm", pool="flipped"))


def test_no_sure_pair_ends_the_rounds(files, trained_before, tmp_path, caplog):
    output = in_rounds(files, tmp_path / "rm", pseudo_confidence=0.999999)
    assert len(rounds_of(output)) == 1 and tiny_models.same_weights(output, output / "round_0")
    assert "no pair is sure enough" in caplog.text


def test_pairs_that_are_too_long_are_left_out_and_counted(files, trained_before, tmp_path):
    output = in_rounds(files, tmp_path / "rm", max_length=32, max_prompt_length=24, rounds=1)
    pool = load_unlabelled([str(files / "pool.jsonl")])
    tokenizer = load_tokenizer(str(files / "sft"))
    rows = with_lengths(pool, TWO, tokenizer, "stop")
    prompts = [len(encode_prompt(tokenizer, row["prompt"])) for row in pool]
    longest = [p + max(lengths) for p, *lengths in zip(prompts, rows["first_length"], rows["second_length"])]
    long = [row["prompt"] for row, length in zip(pool, longest) if length > 32]
    assert 0 < len(long) < len(pool)
    assert rounds_of(output)[1]["not_judged"] == len(long)
    kept = load_preferences([str(output / "round_1/pseudo_labelled.jsonl")])
    assert not [row for row in kept if row["prompt"] in long]


def test_a_round_is_an_ordinary_training(files, trained, tmp_path):
    labelled = tmp_path / "labelled.jsonl"
    shutil.copy(trained / "round_1/pseudo_labelled.jsonl", labelled)
    assert tiny_models.same_weights(run(files, tmp_path / "rm", pseudo_data=labelled), trained / "round_1")
    (record,) = json.loads((trained / "round_1/command.json").read_text())
    assert f"--pseudo_data {trained}/round_1/pseudo_labelled.jsonl" in record["command"]
    assert "unlabelled" not in record["command"]


class Killed(BaseException):
    pass


def killed_in_training(monkeypatch, output):
    """In round 1, after the checkpoint of its third step."""
    step = RewardTrainer.training_step

    def training_step(self, *args, **kw):
        if "round_1" in self.args.output_dir and self.state.global_step == 3:
            raise Killed
        return step(self, *args, **kw)

    monkeypatch.setattr(RewardTrainer, "training_step", training_step)


def killed_while_labelling(monkeypatch, output):
    monkeypatch.setattr(self_training, "label_pairs", lambda *args: (_ for _ in ()).throw(Killed))


def killed_between_rounds(monkeypatch, output):
    """Labelled, and not begun."""
    train = train_rm._one_of_several

    def training(options):
        if "round_1" in options.output_dir:
            raise Killed
        return train(options)

    monkeypatch.setattr(train_rm, "_one_of_several", training)


@pytest.mark.parametrize(
    "kill",
    [
        killed_in_training,
        *(pytest.param(kill, marks=pytest.mark.long) for kill in (killed_while_labelling, killed_between_rounds)),
    ],
)
def test_a_run_goes_on_in_any_round(kill, files, trained, tmp_path, monkeypatch):
    # The first round's own resumption is that of any training.
    (tmp_path / "rm").mkdir()
    record = json.loads((trained / "rounds.json").read_text())
    begun = {**record, "rounds": record["rounds"][:1], "labels": None}
    (tmp_path / "rm/rounds.json").write_text(json.dumps(begun))
    shutil.copytree(trained / "round_0", tmp_path / "rm/round_0")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill(patched, tmp_path / "rm")
        in_rounds(files, tmp_path / "rm", resume=True)
    output = in_rounds(files, tmp_path / "rm", resume=True)
    assert rounds_of(output) == rounds_of(trained)
    assert all(tiny_models.same_weights(output / part, trained / part) for part in (".", "round_1", "round_2"))


def test_a_run_goes_on_with_what_it_began_with(files, trained, tmp_path):
    with pytest.raises(UserError, match="add --resume"):
        in_rounds(files, trained)
    with pytest.raises(UserError, match=r"pseudo_confidence: 0\.505, now 0\.7"):
        in_rounds(files, trained, resume=True, pseudo_confidence=0.7)
    with pytest.raises(UserError, match=r"no rounds\.json"):
        in_rounds(files, tmp_path, resume=True)


def test_a_training_goes_on_from_a_trained_model(files, trained, tmp_path):
    start = trained / "round_1"
    still = run(files, tmp_path / "still", start_from=start, lr=0.0, epochs=1)
    assert tiny_models.same_weights(still, start)
    with pytest.raises(UserError, match="has the head"):
        run(files, tmp_path / "other", start_from=start, head_type="mlp")


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        # A segment model, disentangled from length, on causally augmented pairs with soft labels.
        {
            "reward_level": "segment",
            "entropy_threshold": 5.3,
            "disentangle": "length",
            "augment": "rrm",
            "augment_group": "kind",
            "augment_ratio": 0.3,
            "pseudo_labels": "soft",
            **SURE,
        },
        {"reward_level": "token", "head_type": "label", "round_start": "last", **SURE},
        {"lora_rank": 2, "zero_stage": 2, "head_type": "mlp", "reg_type": "sft", "save_steps": 0, **SURE},
        {
            "input": "pair",
            "head_type": "label",
            "reward_level": None,
            "max_prompt_length": None,
            "cache_dir": None,
            "max_length": 120,
            "both_orders": True,
            "augment": "rrm",
            "augment_ratio": 0.2,
            "pseudo_labels": "soft",
            **SURE,
        },
        {
            "input": "pair",
            "head_type": "label",
            "reward_level": None,
            "max_prompt_length": None,
            "cache_dir": None,
            "max_length": 120,
            "label_ce": "full",
            "round_start": "last",
            **SURE,
        },
    ],
    ids=["everything", "labels", "adapters", "both in one text", "both in one text, going on"],
)
def test_rounds_of_every_kind_of_model(options, files, tmp_path):
    output = in_rounds(files, tmp_path / "rm", **options)
    rounds = rounds_of(output)
    assert len(rounds) > 1 and all(one["kept"] for one in rounds[1:])
    held_out = load_preferences([str(files / "held_out.jsonl")])
    judge = load_judge(str(output), max_length=120)
    found = pair_chances(judge, held_out["prompt"], held_out["chosen"], held_out["rejected"])
    best = min(rounds, key=lambda one: one["held_out_loss"])
    assert (found > 0.5).mean() == pytest.approx(best["eval_accuracy"])
    kept = load_preferences([str(output / "round_1/pseudo_labelled.jsonl")], group=options.get("augment_group"))
    assert (set(kept["p_chosen"]) == {1.0}) == (options.get("pseudo_labels") != "soft")


def test_rounds_end_when_the_held_out_loss_no_longer_falls():
    losses = [0.6, 0.5, 0.4, 0.45]
    record = Rounds(None, {})
    over = []
    for number, loss in enumerate(losses):
        record.rounds.append({"round": number, "held_out_loss": loss})
        over.append(record.is_over(rounds=5))
    assert over == [False, False, False, True]
    assert record.best()["round"] == 2
    assert Rounds(None, {}, record.rounds[:2]).is_over(rounds=1)
    # A loss that is no number is not the lowest one.
    assert Rounds(None, {}, [{"held_out_loss": float("nan")}, {"held_out_loss": 9.0}]).best()["held_out_loss"] == 9


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rounds": 3}, "--rounds 3 has no effect without --unlabelled_data"),
        ({"pseudo_labels": "soft"}, "without --unlabelled_data"),
        ({"round_start": "last"}, "without --unlabelled_data"),
        ({"unlabelled_data": "u", "input": "steps"}, "without --input pairs or pair"),
        ({"pseudo_data": "u", "input": "response"}, "without --input pairs or pair"),
        ({"unlabelled_data": "u", "pseudo_data": "v"}, "beside --unlabelled_data"),
        ({"unlabelled_data": "u", "start_from": "v"}, "beside --unlabelled_data"),
        ({"unlabelled_data": "u", "pseudo_share": 0.5, "pseudo_confidence": 0.9}, "beside --pseudo_share"),
        ({"unlabelled_data": "u", "round_start": "last", "lora_rank": 4}, "with --lora_rank"),
        (
            {"unlabelled_data": "u", "round_start": "last", "disentangle": "length"},
            "of which a trained model does not hold all",
        ),
        ({"unlabelled_data": "u", "flip_frac": 0.1}, "beside pairs that a model labels"),
        ({"pseudo_data": "u", "soft_label_scale": 2.0}, "beside pairs that a model labels"),
    ],
)
def test_options_without_effect_are_refused(options, reason, files, tmp_path):
    with pytest.raises(UserError, match=reason):
        run(files, tmp_path / "rm", **options)


def test_rounds_are_no_single_training(files, tmp_path):
    config = train_rm.Options(model="m", data=["d"], output_dir=str(tmp_path / "rm"), unlabelled_data=["u"])
    with pytest.raises(UserError, match="several trainings"):
        RewardTrainer.from_config(config)
    with pytest.raises(UserError, match="no `unlabelled_data`"):
        train_in_rounds(train_rm.Options(model="m", data=["d"], output_dir=str(tmp_path / "rm")))
