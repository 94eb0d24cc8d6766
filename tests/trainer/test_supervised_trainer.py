"""Supervised training: whole optimiser steps on any split, exact evaluation, and runs that go on where they were ended."""

import itertools
import json
import math
import os
import signal
from pathlib import Path

import board
import pytest
import tiny_models
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from denserl import distributed
from denserl.cli import train_rm, train_sft
from denserl.cli.options import parse
from denserl.data.batching import DemonstrationCollator
from denserl.data.order import StepSampler
from denserl.errors import Stopped, UserError
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.run_folder import OutputFolder
from denserl.trainer.sft_trainer import SFTTrainer
from denserl.trainer.stopping import SaveClock
from denserl.trainer.trackers import read_metrics

PAIRS = 10


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield
    # What transformers remembers of ZeRO-3 would reach the models that the next test loads.
    unset_hf_deepspeed_config()


def steps_of_epoch(monkeypatch, rows: int, step_rows: int, ranks: int, micro_rows: int, epoch: int) -> list[list]:
    """What each optimiser step takes, from the samplers of all ranks; every rank has equally many micro-batches of one size."""
    of_ranks = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: ranks)
        sampler = StepSampler([7 * row % 5 for row in range(rows)], step_rows, micro_rows, seed=3, epoch=lambda: epoch)
        of_ranks.append(list(sampler))
        assert len(sampler) == len(of_ranks[-1]) and {len(micro) for micro in of_ranks[-1]} == {micro_rows}
    accumulated = step_rows // ranks // micro_rows
    return [
        sorted(item for batches in of_ranks for micro in batches[first : first + accumulated] for item in micro)
        for first in range(0, len(of_ranks[0]), accumulated)
    ]


@pytest.mark.parametrize("rows", [1, 3, 8, 13, 30])
def test_steps_take_the_same_rows_on_any_number_of_ranks_and_count_each_once(rows, monkeypatch):
    epochs = [steps_of_epoch(monkeypatch, rows, 8, 1, 8, epoch) for epoch in (0, 1)]
    for epoch, steps in enumerate(epochs):
        for ranks, micro_rows in ((1, 2), (2, 4), (2, 1), (4, 2), (8, 1)):
            assert steps_of_epoch(monkeypatch, rows, 8, ranks, micro_rows, epoch) == steps
        counted = [[row for row, counts in step if counts] for step in steps]
        assert sorted(row for step in counted for row in step) == list(range(rows))
        assert [len(step) for step in counted] == [min(8, rows - first) for first in range(0, rows, 8)]
        assert all({row for row, _ in step} == set(real) for step, real in zip(steps, counted, strict=True))
    assert rows <= 8 or epochs[0] != epochs[1]


@pytest.mark.parametrize("eval_tokens", [1, 30, 10**6])
def test_the_evaluation_loss_is_the_mean_over_all_labelled_tokens(eval_tokens, tmp_path):
    model, lengths, starts = tiny_models.language_model("llama"), [9, 4, 6, 2, 7], [0, 2, 5, 1, 0]
    rows = Dataset.from_dict({"input_ids": tiny_models.random_rows(lengths, seed=1), "loss_start": starts})
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False)
    collator = DemonstrationCollator(0)
    trainer = SFTTrainer(model=model, args=args, eval_dataset=rows, data_collator=collator, eval_tokens=eval_tokens)
    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
        # Nothing predicts a row's first token.
        losses += [
            -logits[t - 1].log_softmax(0)[row["input_ids"][t]].item() for t in range(max(row["loss_start"], 1), len(logits))
        ]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A model, ten pairs, and ten demonstrations of different lengths."""
    root = tmp_path_factory.mktemp("supervised")
    tiny_models.save_language_model(root / "sft")
    rows = tiny_models.boat_pairs(PAIRS)
    write_rows(root / "pairs.jsonl", rows)
    write_rows(root / "answers.jsonl", [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows])
    return root


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def train(files, tmp_path):
    """Runs train-rm or train-sft in this process: name of the output folder, options -> the folder. Steps of 4, 4, 2 rows."""

    def run(name, command=train_rm, resume=False, **options) -> Path:
        data = files / ("pairs.jsonl" if command is train_rm else "answers.jsonl")
        settings = {
            "model": files / "sft",
            "data": data,
            "eval_data": data,
            "output_dir": tmp_path / name,
            "batch_size": 4,
            "micro_batch_size": 4,
            "lr": 1e-3,
            "logging_steps": 1,
            "save_steps": 0,
            "eval_steps": 0,
            "max_length": 64,
        }
        if command is train_rm:
            settings |= {"cache_dir": files / "cache", "entropy_threshold": 5.3, "max_prompt_length": 48}
        argv = ["--resume"] if resume else []
        argv += [text for key, value in (settings | options).items() for text in (f"--{key}", str(value))]
        command.run(parse(command.Options, "train", argv))
        return tmp_path / name

    return run


def logged(output: Path, key: str = "loss") -> list[dict]:
    return [row for row in read_metrics(output / "metrics.jsonl") if key in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_bits(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("command", [train_rm, train_sft])
def test_a_split_step_is_the_whole_step_and_the_last_one_counts_what_is_left(command, train):
    whole = train("whole", command, epochs=2)
    split = train("single", command, epochs=2, micro_batch_size=1, zero_stage=2)
    for one, other in zip(logged(whole), logged(split), strict=True):
        # fp32 sums in another order; AdamW's steps stretch what rounding does to small gradients.
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    for key, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[key], tensor, rtol=0, atol=2e-5)


def test_bf16_goes_the_same_way_at_any_zero_stage(train):
    losses = [[row["loss"] for row in logged(train(f"zero{s}", dtype="bf16", zero_stage=s, lr=0.01))] for s in (0, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    "command, micro_batch_size",
    [(train_rm, 4), (train_rm, 1), (train_sft, 1), pytest.param(train_sft, 4, marks=pytest.mark.long)],
)
def test_over_an_epoch_without_updates_the_losses_add_up_to_that_of_all_rows(command, micro_batch_size, train):
    """Each row counts once: by its pair, or by its labelled tokens."""
    output = train("still", command, lr=0, logging_steps=1, micro_batch_size=micro_batch_size)
    together = train("together", command, lr=0, logging_steps=3, micro_batch_size=micro_batch_size)
    (evaluated,) = logged(output, "eval_loss")
    (over_all,) = logged(together)
    assert over_all["loss"] == pytest.approx(evaluated["eval_loss"], rel=1e-5)
    if command is train_rm:
        steps = [row["loss"] for row in logged(output)]
        assert (4 * steps[0] + 4 * steps[1] + 2 * steps[2]) / PAIRS == pytest.approx(evaluated["eval_loss"], rel=1e-5)
        assert over_all["accuracy"] == pytest.approx(evaluated["eval_accuracy"])


class Killed(Exception):
    """What ends a run right after a save, in place of SIGKILL."""


def killed_after(monkeypatch, step: int) -> None:
    save = OutputFolder.save

    def save_and_die(self, trainer):
        save(self, trainer)
        if trainer.state.global_step == step:
            raise Killed

    monkeypatch.setattr(OutputFolder, "save", save_and_die)


@pytest.mark.parametrize(
    ("command", "options", "deaths"),
    [
        (train_rm, {"epochs": 2, "save_steps": 2, "eval_steps": 3, "logging_steps": 4}, [2, 4]),
        (
            train_rm,
            {"epochs": 2, "save_steps": 1, "logging_steps": 2, "micro_batch_size": 2, "zero_stage": 2, "head_type": "label"},
            [3],
        ),
        # Dropout in the head, and a language-model head beside it that learns.
        pytest.param(
            train_rm,
            {"epochs": 2, "save_steps": 2, "reg_type": "dpo", "head_type": "mlp", "head_width": 8},
            [2, 4],
            marks=pytest.mark.long,
        ),
        # Ended in the middle of an epoch, after the last step's save.
        (
            train_sft,
            {"epochs": 1.5, "save_steps": 1, "logging_steps": 2, "lr_schedule": "inverse_sqrt", "report_to": "tensorboard"},
            [4, 5],
        ),
    ],
)
def test_a_run_ended_after_saves_writes_the_same_metrics_and_weights(command, options, deaths, train):
    whole = train("whole", command, **options)
    for i, step in enumerate(deaths):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            killed_after(patch, step)
            train("ended", command, resume=i > 0, **options)
    # What a run writes after the checkpoint that it is resumed from is forgotten.
    with open(whole.with_name("ended") / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "loss": 0.0}\n{"torn')
    ended = train("ended", command, resume=True, **options)
    assert (ended / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert same_bits(weights(ended), weights(whole))
    if "report_to" in options:
        for name in ("loss", "learning_rate", "eval_loss"):
            rows = [(row["step"], pytest.approx(row[name])) for row in logged(ended, name)]
            assert rows and board.scalars(ended, name) == rows


def test_a_checkpoint_is_written_when_its_minutes_are_over(train, monkeypatch):
    """Half a minute goes by each time that the clock is looked at: at the start, after each step, after each save."""
    times = itertools.count(step=30.0)
    monkeypatch.setattr(SaveClock, "now", staticmethod(lambda: next(times)))
    output = train("timed", epochs=2, save_steps=0, save_minutes=1, save_total_limit=9)
    assert sorted(path.name for path in (output / "checkpoints").glob("step-*")) == [f"step-{i:06d}" for i in (2, 4, 6)]


def test_a_stop_request_saves_after_the_step_and_the_run_goes_on_from_there(train, monkeypatch):
    whole, sums = train("whole", logging_steps=2), RewardTrainer.sums
    calls = []

    def signalled(self, model, batch):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return sums(self, model, batch)

    monkeypatch.setattr(RewardTrainer, "sums", signalled)
    with pytest.raises(Stopped, match="after step 2 of 3"):
        train("stopped", logging_steps=2)
    stopped = whole.with_name("stopped")
    assert not (stopped / "model.safetensors").exists()
    assert len(calls) == 2
    train("stopped", resume=True, logging_steps=2)
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert same_bits(weights(stopped), weights(whole))


def test_the_best_checkpoint_is_kept_and_its_weights_are_written_after_a_resume_too(files, train, tmp_path):
    # Held-out pairs that prefer the other response: what is learned is soon wrong for them.
    rows = [json.loads(line) for line in (files / "pairs.jsonl").read_text().splitlines()]
    write_rows(tmp_path / "turned.jsonl", [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows])
    options = {"eval_data": tmp_path / "turned.jsonl", "save_steps": 1, "eval_steps": 1, "save_total_limit": 1, "keep": "best"}
    options |= {"epochs": 2}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 4)
        train("best", **options)
    output = train("best", resume=True, **options)
    evaluated = [(row["eval_loss"], row["step"], row["eval_score_mean"]) for row in logged(output, "eval_loss")]
    _, step, mean = min(evaluated)
    assert len(evaluated) == 6 and step < 4
    kept = [path.name for path in sorted((output / "checkpoints").glob("step-*"))]
    assert kept == [f"step-{step:06d}", "step-000006"]
    assert same_bits(weights(output), tiny_models.checkpoint_weights(output / "checkpoints" / kept[0]))
    assert json.loads((output / "config.json").read_text())["mean"] == mean


@pytest.mark.parametrize("command", [pytest.param(train_rm, marks=pytest.mark.long), train_sft])
@pytest.mark.parametrize(
    ("eval_steps", "steps"), [(0, [3]), pytest.param(1, [1, 2, 3], marks=pytest.mark.long), (2, [2, 3]), (3, [3])]
)
def test_the_last_step_is_evaluated_once(command, eval_steps, steps, train):
    output = train("run", command, eval_steps=eval_steps, lr=0.01)
    rows = logged(output, "eval_loss")
    assert [row["step"] for row in rows] == steps
    if command is train_rm:
        config = json.loads((output / "config.json").read_text())
        assert (config["mean"], config["std"]) == (rows[-1]["eval_score_mean"], rows[-1]["eval_score_std"])


def test_a_finished_run_is_evaluated_on_other_held_out_rows(files, train, tmp_path):
    options = {"eval_steps": 3, "save_steps": 3}
    first = logged(train("run", **options), "eval_loss")
    write_rows(tmp_path / "two.jsonl", [json.loads(line) for line in (files / "pairs.jsonl").read_text().splitlines()[:2]])
    output = train("run", resume=True, eval_data=tmp_path / "two.jsonl", **options)
    *before, last = logged(output, "eval_loss")
    assert before == first and last["step"] == 3
    mean = json.loads((output / "config.json").read_text())["mean"]
    assert mean == last["eval_score_mean"] != first[0]["eval_score_mean"]


@pytest.mark.parametrize("command", [train_rm, train_sft])
def test_out_of_memory_while_evaluating_halves_the_batch_and_counts_every_row_once(command, train, monkeypatch):
    kind = RewardTrainer if command is train_rm else SFTTrainer
    whole, sums, sizes = train("whole", command, lr=0), kind.sums, []

    def short_of_memory(self, model, batch):
        if not torch.is_grad_enabled():
            sizes.append(len(batch["row"]))
            if sizes[-1] > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return sums(self, model, batch)

    monkeypatch.setattr(kind, "sums", short_of_memory)
    (halved,), (expected,) = (logged(output, "eval_loss") for output in (train("halved", command, lr=0), whole))
    assert max(sizes) > 3 and sum(size for size in sizes if size <= 3) == PAIRS
    assert halved == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_resumed_run_refuses_changed_options_weights_and_data_by_name(files, train, tmp_path, caplog):
    options = {"save_steps": 3}
    train("run", **options)
    with pytest.raises(UserError, match="holds checkpoints of an earlier run"):
        train("run", **options)
    with pytest.raises(UserError, match=r"entropy_threshold: 5\.3, now 1\.0; lr: 0\.001, now 0\.002\)"):
        train("run", resume=True, entropy_threshold=1.0, lr=2e-3, **options)
    lines = (files / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "same.jsonl").write_text("".join(lines))
    (tmp_path / "other.jsonl").write_text("".join(lines[::-1]))
    with pytest.raises(UserError, match=r"\(content of data: \w+, now \w+\)"):
        train("run", resume=True, data=tmp_path / "other.jsonl", **options)
    tiny_models.save_language_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"\(weights of model: \w+, now \w+\)"):
        train("run", resume=True, model=tmp_path / "other", **options)
    with caplog.at_level("INFO"):
        train("run", resume=True, data=tmp_path / "same.jsonl", logging_steps=2, **options)
    assert "logging_steps was 1" in caplog.text and "data was" in caplog.text
    with pytest.raises(UserError, match="holds no checkpoint"):
        train("empty", resume=True)


def spoiled(monkeypatch, rows: set[int]) -> None:
    """Makes the loss of batches that count one of these rows infinite, with finite gradients."""
    sums = RewardTrainer.sums

    def infinite_for_rows(self, model, batch):
        assert batch["entropy"].dtype == batch["margin"].dtype == torch.float32, "rounded, segments would be cut elsewhere"
        found = sums(self, model, batch)
        if model.training and rows & set(batch["row"][batch["counted"]].tolist()):
            found["loss"] = found["loss"] + math.inf
        return found

    monkeypatch.setattr(RewardTrainer, "sums", infinite_for_rows)


@pytest.mark.parametrize("command", [train_sft, train_rm])
def test_learning_rates_follow_a_cosine_to_a_tenth_of_the_peak(train, command):
    """Three steps an epoch. A row of the log has the rate after its step."""
    rates = [row["learning_rate"] for row in logged(train("rates", command, epochs=2, warmup_ratio=0), "learning_rate")]
    expected = [1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 6)) / 2) for step in range(7)]
    assert rates in (pytest.approx(expected[:-1]), pytest.approx(expected[1:]))


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"zero_stage": 1}, marks=pytest.mark.long), {"zero_stage": 2}, {"zero_stage": 3}, {"dtype": "bf16"}],
)
def test_a_step_that_is_not_finite_is_skipped_and_its_rows_are_written(options, train, monkeypatch):
    spoiled(monkeypatch, {0})
    output = train("spoiled", epochs=2, micro_batch_size=2, **options)
    rows = logged(output)
    bad = [row["step"] for row in read_metrics(output / "metrics.jsonl") if row.get("skipped_steps")]
    assert len(bad) == 2 and bad[0] <= 3 < bad[1]
    assert len(rows) == 4 and all(math.isfinite(row["loss"]) for row in rows)
    for step in bad:
        written = read_metrics(output / "skipped" / f"step-{step:06d}-rank-0.jsonl")
        spoilt = next(row for row in written if row["row"] == 0)
        assert "boat 0" in spoilt["prompt"] and len(spoilt["chosen_entropy"]) == len(spoilt["chosen_ids"])
    assert all(torch.isfinite(tensor).all() for tensor in weights(output).values())
    # The schedule waits with the optimiser: after the same number of updates the rate is the same.
    rates = [row["learning_rate"] for row in read_metrics(output / "metrics.jsonl") if "learning_rate" in row]
    assert len(rates) == 6 and len(set(rates)) == 4


def test_skipped_steps_in_a_row_end_the_run_with_the_weights_from_before(train, monkeypatch, tmp_path):
    spoiled(monkeypatch, set(range(PAIRS)))
    with pytest.raises(UserError, match="2 updates in a row were not finite") as error:
        train("spoiled", epochs=2, max_skipped_steps=2)
    output = tmp_path / "spoiled"
    assert str(output / "skipped") in str(error.value) and "step-000002" in str(error.value)
    saved = tiny_models.checkpoint_weights(output / "checkpoints" / "step-000002")
    monkeypatch.undo()
    untouched = weights(train("still", lr=0))
    assert same_bits(saved, untouched)
    assert len(list((output / "skipped").iterdir())) == 2
