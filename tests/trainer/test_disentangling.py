"""Training with an output of its own for a covariate: against autograd through the joined loss; and what is written."""

import json
import shutil

import pytest
import reference_loops as loops
import tiny_models
import torch
from safetensors.torch import load_file
from test_reward_trainer import files, same_bits, scores_of, tokenised, train  # noqa: F401
from transformers import AutoModelForSequenceClassification

from denserl.cli.main import main as denserl
from denserl.models.heads import Head
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.trainer import group_trainer
from denserl.trainer.trackers import read_metrics

ODIN = {"disentangle": "length", "entropy_threshold": 5.3}


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


def rho(rewards, lengths):
    return torch.corrcoef(torch.stack([rewards, torch.tensor(lengths, dtype=torch.float64)]))[0, 1]


def parts_of(model, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, responses) quality and the covariate's part, chosen responses first, a response at a time; and |w_Q . w_L|."""
    weight = model.score.weight.double() - model.score.weight.double().mean(1, keepdim=True)
    weight, found = weight / weight.norm(dim=1, keepdim=True), []
    for side, row in [(side, row) for side in ("chosen", "rejected") for row in rows]:
        ids = row["prompt_ids"] + row[f"{side}_ids"]
        hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, len(row["prompt_ids"]) :].double()
        (segments,) = loops.segment(torch.tensor([row[f"{side}_entropy"]]), torch.ones(1, len(row[f"{side}_ids"])), 5.3)
        found.append(torch.stack([weight @ hidden[tokens[-1]] for tokens in segments]).mean(0))
    return torch.stack(found, 1), (weight[0] @ weight[1]).abs()


@pytest.mark.parametrize("micro_batch_size, extra", [(8, False), (2, True)])
def test_the_first_step_is_that_of_the_joined_batch(micro_batch_size, extra, files, train):  # noqa: F811
    options = {"micro_batch_size": micro_batch_size, "disentangle_sum": extra or None}
    output, _ = train(**ODIN, **options, disentangle_coef=0.7, orthogonal_coef=3)
    model = new_reward_model(str(files / "sft"), "fp32", seed=42, head=Head("disentangled"))
    rows = tokenised(files)
    lengths = [len(row[f"{side}_ids"]) for side in ("chosen", "rejected") for row in rows]
    (quality, other), product = parts_of(model, rows)
    gaps = -torch.stack((quality + other).chunk(2)).diff(dim=0)
    term = rho(quality, lengths).abs() - rho(other, lengths) + extra * rho(quality + other, lengths).abs()
    loss = torch.log1p(torch.exp(-gaps)).mean() + 0.7 * term + 3 * product
    loss.backward()
    norm = sum((p.grad.double() ** 2).sum().item() for p in model.parameters()) ** 0.5
    first = read_metrics(output / "metrics.jsonl")[0]
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-3) and first["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert first["quality_correlation"] == pytest.approx(rho(quality, lengths).item(), abs=1e-5)
    assert first["disentangle_loss"] == pytest.approx(term.item(), abs=1e-5)
    # Pairs are told apart by the quality alone, which is what will be saved.
    assert first["accuracy"] == (quality[:8] > quality[8:]).double().mean()
    assert first["score_mean"] == pytest.approx(quality.mean().item(), abs=1e-5)


def test_what_is_saved_is_the_stock_classifier_of_the_quality(files, train):  # noqa: F811
    output, metrics = train(**ODIN, save_steps=1, epochs=3)
    checkpoint = output / "checkpoints/step-000003"
    trained, saved = tiny_models.checkpoint_weights(checkpoint), load_file(output / "model.safetensors")
    # A checkpoint has both outputs, of which the first is the quality.
    weight = trained.pop("score.weight")
    assert len(weight) == 2
    quality = weight[:1] - weight[:1].mean()
    torch.testing.assert_close(saved.pop("score.weight"), quality / quality.norm())
    assert trained.keys() == saved.keys() and all(torch.equal(saved[name], tensor) for name, tensor in trained.items())
    assert "head" not in json.loads((output / "config.json").read_text())["segment_reward"]
    rows = tokenised(files)
    ids, mask = tiny_models.padded([row["prompt_ids"] + row["chosen_ids"] for row in rows])
    with torch.no_grad():
        ours = load_reward_model(str(output), "fp32")
        logits = ours(input_ids=ids, attention_mask=mask).logits
        stock = AutoModelForSequenceClassification.from_pretrained(output, dtype=torch.float32)
        assert torch.equal(stock(input_ids=ids, attention_mask=mask).logits, logits)
    # Reloaded and read at segments, it is the model that was evaluated.
    chosen, rejected = scores_of(ours, rows, 5.3)
    assert metrics["eval_accuracy"] == ((chosen > rejected).double() + 0.5 * (chosen == rejected)).mean()
    assert metrics["eval_score_mean"] == pytest.approx(torch.cat([chosen, rejected]).mean().item(), abs=1e-5)


def test_a_resumed_training_ends_with_the_same_bits(files, train, tmp_path):  # noqa: F811
    options = {**ODIN, "save_steps": 1, "save_total_limit": 5, "epochs": 3, "micro_batch_size": 4}
    whole, _ = train("whole", **options)
    half = "checkpoints/step-000001"
    shutil.copytree(whole / half, tmp_path / "again" / half)
    shutil.copy(whole / "metrics.jsonl", tmp_path / "again")
    again, _ = train("again", resume=True, **options)
    assert same_bits(whole, again)


def test_with_adapters_dropout_of_the_first_forward_is_that_of_the_second(files, train, tmp_path, monkeypatch):  # noqa: F811
    """And `denserl merge` makes of them what the run wrote."""
    pytest.importorskip("peft")
    calls = []
    sums = group_trainer.all_step_sums

    def kept(objectives, groups):
        calls.append(sums(objectives, groups))
        return calls[-1]

    monkeypatch.setattr(group_trainer, "all_step_sums", kept)
    output, _ = train(**ODIN, micro_batch_size=2, lora_rank=2, lora_dropout=0.5)
    told, learned = calls[:4], calls[4:8]
    assert told == learned and told[0] != told[1]
    denserl(f"merge --model {files / 'sft'} --adapter {output / 'adapter'} --output_dir {tmp_path / 'merged'}".split())
    assert same_bits(output, tmp_path / "merged") and load_file(output / "model.safetensors")["score.weight"].shape == (1, 32)
    assert "head" not in json.loads((tmp_path / "merged/config.json").read_text())["segment_reward"]
