"""Training with a contrastive term: against a loop through both passes; dropout in training alone; checkpoints."""

import json
import logging
import shutil

import pytest
import reference_loops as loops
import tiny_models
import torch
from safetensors.torch import load_file
from test_reward_trainer import MARGINS, files, pairs, same_bits, scores_of, tokenised, train, trainer  # noqa: F401

from denserl.models.dropout import drop_attention
from denserl.models.packing import is_packed
from denserl.models.reward_models import new_reward_model
from denserl.models.scoring import token_rewards
from denserl.rewards.objectives import BradleyTerry, Contrast, contrast, simcse_terms, swav_terms
from denserl.trainer import group_trainer, reward_making
from denserl.trainer.reward_pairs import GroupCollator
from denserl.trainer.trackers import read_metrics
from denserl.trainer.two_passes import parted, twice


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


# What is left of each of 32 features in both passes, in place of what dropout would draw.
KEPT = (torch.rand(2, 32, generator=torch.Generator().manual_seed(7)) > 0.2).float()


@pytest.fixture
def settled(monkeypatch):
    """No dropout of attention, and that of features no matter of chance."""
    monkeypatch.setattr(contrast, "dropout", lambda x, share: x * KEPT)
    monkeypatch.setattr(reward_making, "drop_attention", lambda model, share: None)


def features_of(model, rows, threshold=5.3):
    """(pairs, 2, H) the states at which the last scores of chosen and rejected responses are read, a response at a time."""
    found = []
    for row in rows:
        for side in ("chosen", "rejected"):
            ids, entropy = row["prompt_ids"] + row[f"{side}_ids"], torch.tensor([row[f"{side}_entropy"]])
            (segments,) = loops.segment(entropy, torch.ones(1, len(row[f"{side}_ids"])), threshold)
            hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, len(row["prompt_ids"]) :]
            found.append(hidden[segments[-1][-1]])
    return torch.stack(found).view(len(rows), 2, -1)


FIRST_STEPS = [("simcse", "diff", 2), ("swav", "pair", 8), pytest.param("swav", "diff", 2, marks=pytest.mark.long)]


@pytest.mark.parametrize("kind, on, micro_batch_size", FIRST_STEPS)
def test_the_first_step_is_that_of_the_whole_step(kind, on, micro_batch_size, files, train, settled):  # noqa: F811
    """All else of the step is negative, in however many batches it is read."""
    settings = {"prototypes": 6} if kind == "swav" else {"contrastive_tau": 0.5}
    output, _ = train(contrastive=kind, contrastive_on=on, micro_batch_size=micro_batch_size, contrastive_coef=0.7, **settings)
    model, rows = new_reward_model(str(files / "sft"), "fp32", seed=42), tokenised(files)
    chosen, rejected = scores_of(model, rows, 5.3)
    states = features_of(model, rows)[:, None] * KEPT[None, :, None]  # (pairs, passes, 2, H)
    if on == "diff":
        states = torch.stack([states[:, :, 0] - states[:, :, 1], states[:, :, 1] - states[:, :, 0]], 2)
    first, second = states.transpose(1, 2).flatten(0, 1).unbind(1)
    weights = list(model.parameters())
    if kind == "swav":
        drawn = torch.empty(6, 32).normal_(generator=torch.Generator().manual_seed(42))
        weights.append(prototypes := (drawn / drawn.norm(dim=1, keepdim=True)).requires_grad_())
        rows_of = prototypes / prototypes.norm(dim=1, keepdim=True)
        term = swav_terms(*((x / x.norm(dim=1, keepdim=True)) @ rows_of.T for x in (first, second))).mean()
    else:
        term = simcse_terms(first, second, 0.5).mean()
    loss = torch.log1p(torch.exp(rejected - chosen)).mean() + 0.7 * term
    loss.backward()
    norm = sum((p.grad.double() ** 2).sum().item() for p in weights) ** 0.5
    found = read_metrics(output / "metrics.jsonl")[0]
    assert found["contrastive_loss"] == pytest.approx(term.item(), rel=1e-4) and found["contrastive_batch"] == 16
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-4) and found["grad_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "qwen2", "phi3", "gemma2", "gpt2"])
def test_attention_drops_in_training_alone(family):
    """Packed and padded, measured: passes differ in training, and those of an evaluation have the bits that they had before."""
    model = tiny_models.probed(tiny_models.classifier(family))
    ids, mask = tiny_models.padded(tiny_models.random_rows([9, 14, 6], seed=8))

    def passes():
        with torch.no_grad():
            return [token_rewards(model, ids, mask)[mask.bool()] for _ in range(2)]

    before, _ = passes()
    drop_attention(model, 0.05)
    assert all(torch.equal(found, before) for found in passes())
    for packed in (is_packed(model), False):
        if not packed:
            model.set_attn_implementation("eager")
        model.train()
        assert not torch.equal(*passes())
        model.eval()
    assert is_packed(tiny_models.probed(tiny_models.classifier("llama")))


def test_both_passes_are_the_groups_with_dropout_drawn_for_each(tmp_path):
    """Also in the prompt that chosen and rejected share; without dropout they are one pass."""
    model = tiny_models.probed(tiny_models.classifier("llama"))
    running = trainer(model, tmp_path, 1.0, objectives=[Contrast()])
    batch = {**GroupCollator(0)(list(pairs())), "counted": torch.tensor([True, False, True, True, True])}
    one = running._one_pass(model, batch)[0]
    both = parted(running._one_pass(model, twice(batch, len(MARGINS)))[0])
    for found in (both, both.second):
        torch.testing.assert_close(found.hidden, one.hidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.scores, one.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.counted, one.counted) and torch.equal(found.lengths, one.lengths)
        assert torch.equal(found.segments.ids, one.segments.ids) and torch.equal(found.labels["margin"], one.labels["margin"])
    drop_attention(model, 0.05)
    found = running.groups(model.train(), batch)
    # At every response: what the passes share would be equal where a response is one token behind its prompt.
    assert not (found.hidden == found.second.hidden).all(-1).any()


def test_evaluations_are_those_without_the_term_to_the_bit(tmp_path):
    model = tiny_models.probed(tiny_models.classifier("llama"))
    plain = trainer(model, tmp_path, 1.0).evaluate()
    drop_attention(model, 0.05)
    assert trainer(model.train(), tmp_path, 1.0, objectives=[BradleyTerry(), Contrast()]).evaluate() == plain


def test_passes_that_are_equal_are_told_once(tmp_path, caplog):
    model = tiny_models.probed(tiny_models.classifier("llama")).train()
    batch = {**GroupCollator(0)(list(pairs())), "counted": torch.ones(5, dtype=torch.bool)}

    def told() -> int:
        running = trainer(model, tmp_path, 1.0, objectives=[Contrast()])
        running.groups(model, batch), running.groups(model, batch)
        return caplog.text.count("two passes of LlamaForSequenceClassification give the same hidden states")

    with caplog.at_level(logging.WARNING):
        assert told() == 1
        drop_attention(model, 0.05)
        assert told() == 1


def test_a_run_goes_on_in_the_middle_of_a_pass_to_the_bit(train, tmp_path):  # noqa: F811
    """What negatives are made of draws the dropout that it would have drawn."""
    options = {"contrastive": "simcse", "epochs": 1, "batch_size": 4, "micro_batch_size": 2}
    options |= {"save_steps": 1, "save_total_limit": 5}
    whole, _ = train("whole", **options)
    half = "checkpoints/step-000001"
    shutil.copytree(whole / half, tmp_path / "again" / half)
    shutil.copy(whole / "metrics.jsonl", tmp_path / "again")
    again, _ = train("again", resume=True, **options)
    assert same_bits(whole, again) and len(read_metrics(whole / "metrics.jsonl")) > 2


SWAV = {"contrastive": "swav", "epochs": 2, "micro_batch_size": 2, "save_steps": 1, "save_total_limit": 5}


VARIANTS = [{"lora_rank": 2}, *(pytest.param(each, marks=pytest.mark.long) for each in ({}, {"gradient_checkpointing": True}))]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_prototypes_learn_are_kept_in_checkpoints_and_are_not_saved(variant, files, train, tmp_path, monkeypatch):  # noqa: F811
    """And dropout of what negatives are made of is that of what is learned from them."""
    if "lora_rank" in variant:
        pytest.importorskip("peft")
    calls, ends, told = [], [], group_trainer.all_step_rows
    rows_of, save = Contrast.step_rows, group_trainer.save_trained

    def kept(self, groups):
        calls.append(rows_of(self, groups))
        return calls[-1]

    def saved(trainer, folder):
        ends.append(group_trainer.stock_model(trainer.model).prototypes.weight.detach().clone())
        save(trainer, folder)

    monkeypatch.setattr(Contrast, "step_rows", kept)
    monkeypatch.setattr(group_trainer, "save_trained", saved)
    whole, _ = train("whole", **SWAV, **variant)
    assert told is group_trainer.all_step_rows
    for before, learned in zip(calls[:4], calls[4:8], strict=True):
        torch.testing.assert_close(before, {name: x.detach() for name, x in learned.items()})
    drawn = torch.empty(50, 32).normal_(generator=torch.Generator().manual_seed(42))
    moved = (ends[0] - drawn / drawn.norm(dim=1, keepdim=True)).abs()
    # Adam moves each number by about the learning rate in each of two steps.
    assert 5e-4 < moved.median().item() < 3e-3
    written = [path for path in whole.rglob("*.safetensors") if "random" not in path.name]
    assert written and not any("prototypes" in name for path in written for name in load_file(path))
    half = "checkpoints/step-000001"
    shutil.copytree(whole / half, tmp_path / "again" / half)
    shutil.copy(whole / "metrics.jsonl", tmp_path / "again")
    again, _ = train("again", resume=True, **SWAV, **variant)
    assert same_bits(whole, again) and torch.equal(*ends)
    assert "head" not in json.loads((whole / "config.json").read_text())["segment_reward"]
