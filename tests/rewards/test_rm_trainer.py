"""The reward-model trainer against a plain loop over responses, and what train-rm writes."""

import json
import math

import numpy as np
import pytest
import reference_loops as loops
import tiny_models
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from denserl.cli import train_rm
from denserl.cli.common import parse
from denserl.data.preferences import load_preferences, tokenize_preferences
from denserl.models.loading import load_policy, load_reward_model, load_tokenizer, new_reward_model
from denserl.rewards.rm_trainer import PairCollator, RewardTrainer
from denserl.trainer.trackers import read_metrics

LEVELS = [0.0, 1.0, 1000.0]
MARGINS = [0.0, 1.5, -0.5, 2.0, 0.25]


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


def pairs() -> Dataset:
    """Five pairs of random tokens with random entropies; the responses differ in length."""
    sides = {"chosen": [3, 1, 9, 4, 6], "rejected": [5, 2, 2, 8, 6]}
    columns = {"prompt_ids": tiny_models.random_rows([4, 2, 6, 3, 5], seed=1), "margin": MARGINS}
    generator = torch.Generator().manual_seed(5)
    for i, (side, lengths) in enumerate(sides.items()):
        columns[f"{side}_ids"] = tiny_models.random_rows(lengths, seed=2 + i)
        columns[f"{side}_entropy"] = [(2 * torch.rand(n, generator=generator)).tolist() for n in lengths]
    return Dataset.from_dict(columns)


def score(model, prompt, response, entropy, threshold):
    """The mean of the head's outputs at segment ends, one unpadded row at a time (differentiable); and the segments."""
    hidden = model.base_model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, len(prompt) :]
    values = hidden.double() @ model.score.weight[0].double()
    (segments,) = loops.segment(torch.tensor([entropy]), torch.ones(1, len(response)), threshold)
    return torch.stack([values[tokens[-1]] for tokens in segments]).mean(), segments


def scores_of(model, rows, threshold):
    return [
        torch.stack([score(model, row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_entropy"], threshold)[0] for row in rows])
        for side in ("chosen", "rejected")
    ]


def trainer(model, tmp_path, threshold, **kw) -> RewardTrainer:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False)
    return RewardTrainer(model=model, args=args, eval_dataset=pairs(), threshold=threshold, pad_id=0, **kw)


def test_the_collator_puts_chosen_before_rejected():
    rows = list(pairs())[:2]
    batch = PairCollator(0)(rows)
    for b, (side, i) in enumerate([("chosen", 0), ("chosen", 1), ("rejected", 0), ("rejected", 1)]):
        row = rows[i][f"{side}_ids"]
        assert batch["input_ids"][b, : len(rows[i]["prompt_ids"]) + len(row)].tolist() == rows[i]["prompt_ids"] + row
        assert batch["response_mask"][b].sum() == len(row)
        assert batch["entropy"][b, : len(row)].tolist() == pytest.approx(rows[i][f"{side}_entropy"])
    assert batch["margin"].tolist() == MARGINS[:2]


@pytest.mark.parametrize("threshold", LEVELS)
def test_loss_and_gradients_are_those_of_a_loop(threshold, tmp_path):
    model, other = tiny_models.classifier("llama"), tiny_models.classifier("llama")
    running = trainer(model, tmp_path, threshold, use_margin=True)
    batch = {**PairCollator(0)(list(pairs())), "counted": torch.ones(len(MARGINS), dtype=torch.bool)}
    loss = running.compute_loss(model, batch)
    loss.backward()
    chosen, rejected = scores_of(other, pairs(), threshold)
    expected = -torch.log(torch.sigmoid(chosen - rejected - torch.tensor(MARGINS))).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, got), want in zip(model.named_parameters(), other.parameters(), strict=True):
        scale = want.grad.abs().max().item()
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("threshold", LEVELS)
@pytest.mark.parametrize("eval_tokens", [1, 40, 10**6])
def test_evaluation_counts_each_pair_once_in_any_batches(threshold, eval_tokens, tmp_path):
    model = tiny_models.classifier("llama")
    got = trainer(model, tmp_path, threshold, eval_tokens=eval_tokens, label_smoothing=0.1).evaluate()
    chosen, rejected = (x.detach().numpy() for x in scores_of(model, pairs(), threshold))
    gap, both = chosen - rejected, np.concatenate([chosen, rejected])
    lengths = np.array([len(row[f"{side}_ids"]) for side in ("chosen", "rejected") for row in pairs()])
    counts = [
        len(score(model, row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_entropy"], threshold)[1])
        for side in ("chosen", "rejected")
        for row in pairs()
    ]
    expected = {
        "eval_loss": np.mean(0.9 * np.log1p(np.exp(-gap)) + 0.1 * np.log1p(np.exp(gap))),
        "eval_accuracy": np.mean(gap > 0),
        "eval_reward_difference": gap.mean(),
        "eval_score_mean": both.mean(),
        "eval_score_std": both.std(),
        "eval_segments_per_response": np.mean(counts),
        "eval_response_length": lengths.mean(),
        # Lengths: 3 < 5, 1 < 2, 9 > 2, 4 < 8, 6 = 6.
        "eval_length_accuracy": 1.5 / 5,
        "eval_length_correlation": np.corrcoef(both, lengths)[0, 1],
    }
    assert {key: got[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An SFT model and eight pairs of text."""
    root = tmp_path_factory.mktemp("rm")
    tiny_models.save_language_model(root / "sft")
    rows = tiny_models.boat_pairs(8)
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def train(files, tmp_path):
    """Runs train-rm in this process: options -> output folder and the metrics it returns."""

    def run(name="rm", resume=False, **options):
        settings = {
            "model": files / "sft",
            "data": files / "pairs.jsonl",
            "eval_data": files / "pairs.jsonl",
            "output_dir": tmp_path / name,
            "cache_dir": files / "cache",
            "entropy_threshold": 5.3,
            "model_type": "tiny",
            "batch_size": 8,
            "micro_batch_size": 4,
            "lr": 1e-3,
            "warmup_ratio": 0.0,
            "logging_steps": 1,
            "save_steps": 0,
            "eval_steps": 0,
            "max_length": 64,
            "max_prompt_length": 48,
        }
        argv = ["--resume"] if resume else []
        argv += [text for key, value in (settings | options).items() for text in (f"--{key}", str(value))]
        return tmp_path / name, train_rm.run(parse(train_rm.Options, "train-rm", argv))

    return run


def tokenised(files) -> list[dict]:
    """The pairs as ids, with entropies from all logits of the stock model."""
    tokenizer, model = load_tokenizer(str(files / "sft")), load_policy(str(files / "sft"), "fp32").eval()
    loaded = load_preferences([str(files / "pairs.jsonl")])
    rows = tokenize_preferences(loaded, tokenizer, max_length=64, max_prompt_length=48).to_list()
    for row in rows:
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                logits = model(torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])).logits[
                    0, len(row["prompt_ids"]) - 1 : -1
                ]
            row[f"{side}_entropy"] = torch.distributions.Categorical(logits=logits).entropy().tolist()
    return rows


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 2}, {"zero_stage": 2, "micro_batch_size": 1}])
def test_the_first_step_is_that_of_a_loop_however_the_batch_is_split(options, files, train):
    """Loss, metrics and gradient norm of the first step of the command, from text on, DeepSpeed included."""
    output, _ = train(**options)
    model, rows = new_reward_model(str(files / "sft"), "fp32", seed=42), tokenised(files)
    chosen, rejected = scores_of(model, rows, 5.3)
    loss = -torch.log(torch.sigmoid(chosen - rejected)).mean()
    loss.backward()
    norm = math.sqrt(sum((p.grad.double() ** 2).sum().item() for p in model.parameters()))
    first = read_metrics(output / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert first["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    assert first["chosen_reward"] == pytest.approx(chosen.mean().item(), abs=1e-5)


def test_pairs_are_learned_and_the_stock_class_reads_the_saved_model_to_the_bit(files, train):
    output, metrics = train(epochs=10, entropy_threshold=1000, lr=3e-3)
    assert metrics["eval_accuracy"] == 1.0
    stock = AutoModelForSequenceClassification.from_pretrained(output, dtype=torch.float32).eval()
    ours, tokenizer = load_reward_model(str(output), "fp32").eval(), AutoTokenizer.from_pretrained(output)
    sequences = [row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected") for row in tokenised(files)]
    ids, mask = tiny_models.padded(sequences, pad=tokenizer.pad_token_id)
    with torch.no_grad():
        scores = stock(input_ids=ids, attention_mask=mask).logits[:, 0]
        assert torch.equal(ours(input_ids=ids, attention_mask=mask).logits[:, 0], scores)
    # Bandit scores are the stock class's own: one at the last token of each padded row.
    assert metrics["eval_score_mean"] == pytest.approx(scores.mean().item(), rel=1e-4)
    assert metrics["eval_score_std"] == pytest.approx(scores.std(correction=0).item(), rel=1e-4)


def test_the_saved_config_says_how_scores_are_read(files, train):
    output, metrics = train()
    config, tokenizer = json.loads((output / "config.json").read_text()), AutoTokenizer.from_pretrained(output)
    assert config["segment_reward"] == {
        "sft_model": str(files / "sft"),
        "model_type": "tiny",
        "segment_method": "peak",
        "entropy_threshold": 5.3,
        "agg_func": "avg",
    }
    assert (config["mean"], config["std"]) == (metrics["eval_score_mean"], metrics["eval_score_std"])
    assert config["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    chosen, rejected = scores_of(load_reward_model(str(output), "fp32").eval(), tokenised(files), 5.3)
    assert config["mean"] == pytest.approx(torch.cat([chosen, rejected]).mean().item(), rel=1e-4)


def test_adapters_are_merged_and_the_head_is_trained_in_full(files, train):
    pytest.importorskip("peft")
    output, _ = train(lora_rank=2, epochs=3)
    trained, fresh = load_file(output / "model.safetensors"), new_reward_model(str(files / "sft"), "fp32", seed=42).state_dict()
    assert set(trained) == set(fresh)
    ranks = {}
    for name, weight in fresh.items():
        change = (trained[name] - weight).double()
        ranks[name] = int(torch.linalg.matrix_rank(change, atol=1e-6)) if change.ndim == 2 else int(change.any())
    assert ranks["score.weight"] == 1
    assert ranks["model.embed_tokens.weight"] == 0 and ranks["model.norm.weight"] == 0
    linear = [rank for name, rank in ranks.items() if "proj" in name]
    assert max(linear) == 2 and all(0 < rank <= 2 for rank in linear)
    assert (output / "adapter" / "adapter_config.json").is_file()
    load_reward_model(str(output), "fp32")
