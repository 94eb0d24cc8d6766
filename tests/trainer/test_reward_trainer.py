"""The reward-model trainer against a plain loop over responses, and what train-rm writes."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import reference_loops as loops
import tiny_models
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from denserl.cli import train_rm
from denserl.data.fingerprints import file_fingerprint
from denserl.data.preferences import load_preferences, tokenize_preferences
from denserl.errors import UserError
from denserl.models.heads import Head
from denserl.models.loading import load_policy
from denserl.models.measured import Measured, remember
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards import pairs as reward_pairs
from denserl.rewards.config import ObjectiveConfig
from denserl.rewards.objectives import BradleyTerry, PositiveRegularizer, TextRegularizer
from denserl.rewards.scorer import RewardScorer
from denserl.segmentation import Segmenter
from denserl.trainer.reward_making import make_objectives
from denserl.trainer.reward_pairs import GroupCollator, check_labels, contents_of, told_pairs
from denserl.trainer.reward_trainer import RewardTrainer
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
        columns[f"{side}_logprob"] = (-20 - 5 * torch.rand(5, generator=generator)).tolist()
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
    return RewardTrainer(model=model, args=args, eval_dataset=pairs(), segmenter=Segmenter(threshold), pad_id=0, **kw)


def test_the_collator_puts_chosen_before_rejected():
    rows = list(pairs())[:2]
    batch = GroupCollator(0)(rows)
    for b, (side, i) in enumerate([("chosen", 0), ("chosen", 1), ("rejected", 0), ("rejected", 1)]):
        row = rows[i][f"{side}_ids"]
        assert batch["input_ids"][b, : len(rows[i]["prompt_ids"]) + len(row)].tolist() == rows[i]["prompt_ids"] + row
        assert batch["response_mask"][b].sum() == len(row)
        assert batch["entropy"][b, : len(row)].tolist() == pytest.approx(rows[i][f"{side}_entropy"])
    assert batch["margin"].tolist() == MARGINS[:2]


@pytest.mark.parametrize("threshold", LEVELS)
def test_loss_and_gradients_are_those_of_a_loop(threshold, tmp_path):
    model, other = tiny_models.classifier("llama"), tiny_models.classifier("llama")
    running = trainer(model, tmp_path, threshold, objectives=[BradleyTerry(use_margin=True)])
    batch = {**GroupCollator(0)(list(pairs())), "counted": torch.ones(len(MARGINS), dtype=torch.bool)}
    loss = running.compute_loss(model, batch)
    loss.backward()
    chosen, rejected = scores_of(other, pairs(), threshold)
    expected = -torch.log(torch.sigmoid(chosen - rejected - torch.tensor(MARGINS))).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, got), want in zip(model.named_parameters(), other.parameters(), strict=True):
        scale = want.grad.abs().max().item()
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("threshold", [1.75, 1000])
def test_each_output_of_a_head_is_made_of_segments_as_the_score_is(threshold, tmp_path):
    model = tiny_models.classifier("llama")
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    running = trainer(model, tmp_path, threshold)
    batch = {**GroupCollator(0)(list(pairs())), "counted": torch.ones(len(MARGINS), dtype=torch.bool)}
    assert running.groups(model, batch).outputs is None

    def with_head(weight):
        model.score = torch.nn.Linear(32, len(weight), bias=False)
        model.score.weight.data.copy_(weight)
        return running.groups(model, batch)

    together, apart = with_head(rows), [with_head(row[None]).scores for row in rows]
    torch.testing.assert_close(together.outputs, torch.stack(apart, -1), rtol=1e-5, atol=1e-5)
    assert torch.equal(together.scores, together.outputs[..., 0])


def speaking_classifier():
    """A classifier with a language-model head beside its own."""
    model = tiny_models.classifier("llama")
    model.lm_head = torch.nn.Linear(32, tiny_models.VOCABULARY, bias=False)
    remember(model, Measured())
    generator = torch.Generator().manual_seed(9)
    torch.nn.init.normal_(model.lm_head.weight, std=0.3, generator=generator)
    return model


def logprob(model, prompt, response):
    """Log-probability of a response, by log_softmax over all logits of one unpadded row (differentiable)."""
    hidden = model.base_model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, len(prompt) - 1 : -1]
    logits = hidden.double() @ model.lm_head.weight.double().T
    return logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].sum()


def logprobs_of(model, rows):
    """Of the chosen and of the rejected responses, by the model, then by the reference; and their lengths."""
    sides = ("chosen", "rejected")
    own = [torch.stack([logprob(model, row["prompt_ids"], row[f"{side}_ids"]) for row in rows]) for side in sides]
    reference = [torch.tensor([row[f"{side}_logprob"] for row in rows], dtype=torch.float64) for side in sides]
    lengths = [torch.tensor([len(row[f"{side}_ids"]) for row in rows]) for side in sides]
    return [*own, *reference], lengths


def text_terms(kind, logps):
    """Spec grm, section 3, term by term."""
    chosen, rejected, ref_chosen, ref_rejected = logps
    gaps = {"sft": chosen, "dpo_noref": chosen - rejected, "dpo": chosen - ref_chosen - (rejected - ref_rejected)}
    return -chosen if kind == "sft_plain" else torch.log1p(torch.exp(-0.1 * gaps[kind]))


TERMS = [("sft", "sum", level) for level in LEVELS]
TERMS += [(kind, "sum", 1.0) for kind in ("sft_plain", "dpo_noref", "dpo")] + [("sft", "mean", 1.0), ("dpo", "mean", 0.0)]


@pytest.mark.parametrize("kind, logp, threshold", TERMS)
def test_the_text_term_and_its_gradients_are_those_of_a_loop(kind, logp, threshold, tmp_path):
    model, other = speaking_classifier(), speaking_classifier()
    objectives = [BradleyTerry(0.7), TextRegularizer(0.3, kind, logp=logp), PositiveRegularizer(0.2)]
    running = trainer(model, tmp_path, threshold, objectives=objectives)
    batch = {**running.data_collator(list(pairs())), "counted": torch.ones(len(MARGINS), dtype=torch.bool)}
    loss = running.compute_loss(model, batch)
    loss.backward()
    chosen, rejected = scores_of(other, pairs(), threshold)
    logps, lengths = logprobs_of(other, pairs())
    if logp == "mean":
        logps = [values / length for values, length in zip(logps, lengths * 2, strict=True)]
    expected = 0.7 * torch.log1p(torch.exp(rejected - chosen)).mean() + 0.3 * text_terms(kind, logps).mean()
    expected = expected + 0.2 * torch.log1p(torch.exp(-chosen.mean()))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, got), want in zip(model.named_parameters(), other.parameters(), strict=True):
        scale = want.grad.abs().max().item()
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_pairs_that_are_not_counted_add_to_no_sum(tmp_path):
    model, rows = speaking_classifier(), list(pairs())
    objectives = [BradleyTerry(0.7), TextRegularizer(0.3, "dpo"), PositiveRegularizer(0.2)]
    running = trainer(model, tmp_path, 1.0, objectives=objectives)

    def sums(rows: list[dict], counted: list[bool]) -> dict[str, float]:
        batch = {**running.data_collator(rows), "counted": torch.tensor(counted)}
        return {name: value.item() for name, value in running.sums(model, batch).items()}

    found = sums(rows, [True, False, True, True, False])
    assert found == pytest.approx(sums([rows[0], rows[2], rows[3]], [True] * 3), rel=1e-5)


ALL_OBJECTIVES = [BradleyTerry(0.7, centring=0.1), TextRegularizer(0.3, "dpo"), PositiveRegularizer(0.2)]


def step(model, running, rows: list[dict]) -> tuple[float, list[torch.Tensor], dict[str, float]]:
    """Loss, gradients and metrics of an optimiser step of the rows in one batch."""
    batch = {**running.data_collator(rows), "counted": torch.ones(len(rows), dtype=torch.bool)}
    model.zero_grad()
    loss = running.compute_loss(model, batch)
    loss.backward()
    sums = {name: value.item() for name, value in running._sums.items()}
    running._sums = {}
    return loss.item(), [p.grad.clone() for p in model.parameters()], running.metrics(sums)


def same_step(one, other) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5) and one[2] == pytest.approx(other[2], rel=1e-5, abs=1e-6)
    for got, want in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5 * want.abs().max().item())


def test_a_weight_counts_a_pair_as_often_and_duplicates_change_no_mean(tmp_path):
    model = speaking_classifier()
    running = trainer(model, tmp_path, 1.0, objectives=ALL_OBJECTIVES)
    rows = [{**row, "p_chosen": p} for row, p in zip(pairs(), (1.0, 0.5, 0.3, 0.9, 1.0))]
    weighted = [{**row, "weight": weight} for row, weight in zip(rows, (2.0, 1.0, 0.0, 1.0, 3.0))]
    once = step(model, running, weighted)
    same_step(step(model, running, weighted * 2), once)
    same_step(step(model, running, [rows[i] for i in (0, 0, 1, 3, 4, 4, 4)]), once)
    same_step(step(model, running, [{**row, "weight": row["weight"] / 1000} for row in weighted]), once)


def test_a_step_without_weight_changes_nothing(tmp_path):
    model = speaking_classifier()
    running = trainer(model, tmp_path, 1.0, objectives=ALL_OBJECTIVES)
    loss, gradients, metrics = step(model, running, [{**row, "weight": 0.0} for row in pairs()])
    assert loss == 0 and all(not gradient.any() for gradient in gradients)
    assert all(math.isfinite(value) for value in metrics.values())


def test_certain_labels_of_weight_one_are_no_labels_to_the_bit(tmp_path):
    """As against a batch that has neither."""
    model = speaking_classifier()
    unlabelled = trainer(model, tmp_path, 1.0, objectives=ALL_OBJECTIVES, labels=("margin",))
    collate = unlabelled.data_collator
    unlabelled.data_collator = lambda rows: {name: value for name, value in collate(rows).items() if name != "weight"}
    plain = step(model, unlabelled, list(pairs()))
    found = step(model, trainer(model, tmp_path, 1.0, objectives=ALL_OBJECTIVES), list(pairs()))
    assert found[0] == plain[0] and found[2] == plain[2]
    assert all(torch.equal(got, want) for got, want in zip(found[1], plain[1]))


def test_the_evaluation_counts_by_weight_and_label(tmp_path):
    model = tiny_models.classifier("llama")
    p_chosen, weight = np.array([1.0, 0.5, 0.3, 0.9, 1.0]), np.array([2.0, 1.0, 0.5, 0.0, 0.25])
    rows = pairs().add_column("p_chosen", p_chosen).add_column("weight", weight)
    for eval_tokens in (1, 10**6):
        got = trainer(model, tmp_path, 1.0, eval_tokens=eval_tokens).evaluate(rows)
        chosen, rejected = (x.detach().numpy() for x in scores_of(model, pairs(), 1.0))
        gap, told = chosen - rejected, weight * (p_chosen != 0.5)
        losses = p_chosen * np.log1p(np.exp(-gap)) + (1 - p_chosen) * np.log1p(np.exp(gap))
        expected = pytest.approx((losses * weight).sum() / weight.sum(), rel=1e-5)
        assert got["eval_loss"] == expected and got["eval_bt_loss"] == expected
        right = np.where(p_chosen < 0.5, gap < 0, gap > 0)
        assert got["eval_accuracy"] == pytest.approx((right * told).sum() / told.sum())
        both = np.concatenate([chosen, rejected])
        assert got["eval_score_mean"] == pytest.approx(np.average(both, weights=np.tile(weight, 2)), rel=1e-4)
    assert told_pairs(rows) == round(2.75**2 / (4 + 0.25 + 0.0625))


@pytest.mark.parametrize(
    ("options", "labels", "reason"),
    [
        (
            {"soft_label_scale": 2.0},
            {"margin": [1.0, 0.0], "p_chosen": [1.0, 0.75]},
            "makes labels of ratings, and rows of the data",
        ),
        ({"soft_label_scale": 2.0}, {"margin": [0.0, 0.0]}, "`soft_label_scale` has no effect"),
        ({"use_margin": True}, {"margin": [0.0, 0.0]}, "`use_margin` has no effect"),
        ({}, {"weight": [0.0, 0.0]}, "all rows that are trained on have weight 0"),
    ],
)
def test_labels_that_do_not_go_with_the_options(options, labels, reason):
    rows = Dataset.from_dict({"margin": [0.0, 0.0], "p_chosen": [1.0, 1.0], "weight": [1.0, 1.0], **labels})
    with pytest.raises(UserError, match=reason):
        check_labels(ObjectiveConfig(**options), rows)


def test_a_checkpoint_remembers_labels_that_say_something():
    """Rows that say nothing of themselves have the fingerprint that they had before rows could."""
    ids = ["prompt_ids", "chosen_ids", "rejected_ids"]
    ones, some = [1.0] * len(MARGINS), [0.5, *[1.0] * (len(MARGINS) - 1)]
    for p_chosen, weight, more in ((ones, ones, []), (some, ones, ["p_chosen"]), (ones, some, ["weight"])):
        rows = pairs().add_column("p_chosen", p_chosen).add_column("weight", weight)
        assert {*contents_of(rows, ("margin", "p_chosen")).column_names} == {*ids, "margin", *more}


def test_scores_are_evaluated_without_the_dropout_of_the_head(tmp_path):
    model = tiny_models.classifier("llama")
    model.score = torch.nn.Sequential(torch.nn.Dropout(0.5), model.score)
    running = trainer(model.train(), tmp_path, 1.0)
    assert running.evaluate() == trainer(tiny_models.classifier("llama"), tmp_path, 1.0).evaluate()


@pytest.mark.parametrize("eval_tokens", [1, 10**6])
def test_metrics_of_log_probabilities_are_averages_over_pairs(eval_tokens, tmp_path):
    model = speaking_classifier()
    objectives = [BradleyTerry(0.99), TextRegularizer(0.01, "dpo")]
    got = trainer(model, tmp_path, 1.0, objectives=objectives, eval_tokens=eval_tokens).evaluate()
    logps, lengths = logprobs_of(model, pairs())
    (chosen, rejected, ref_chosen, ref_rejected), bradley_terry = (x.detach() for x in logps), scores_of(model, pairs(), 1.0)
    gap = (bradley_terry[0] - bradley_terry[1]).detach()
    expected = {
        "eval_bt_loss": torch.log1p(torch.exp(-gap)).mean(),
        "eval_reg_loss": text_terms("dpo", logps).mean(),
        "eval_chosen_logprob": chosen.mean(),
        "eval_rejected_logprob": rejected.mean(),
        "eval_chosen_token_logprob": (chosen / lengths[0]).mean(),
        "eval_logprob_accuracy": (chosen - ref_chosen > rejected - ref_rejected).double().mean(),
        "eval_accuracy": (gap > 0).double().mean(),
    }
    assert {key: got[key] for key in expected} == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-5)
    assert got["eval_loss"] == pytest.approx(0.99 * got["eval_bt_loss"] + 0.01 * got["eval_reg_loss"])


@pytest.mark.parametrize("threshold", LEVELS)
@pytest.mark.parametrize("eval_tokens", [1, 40, 10**6])
def test_evaluation_counts_each_pair_once_in_any_batches(threshold, eval_tokens, tmp_path):
    model = tiny_models.classifier("llama")
    smoothed = [BradleyTerry(label_smoothing=0.1)]
    got = trainer(model, tmp_path, threshold, eval_tokens=eval_tokens, objectives=smoothed).evaluate()
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
        argv += tiny_models.as_argv(settings | options)
        return tmp_path / name, tiny_models.run_command(train_rm, "train-rm", argv)

    return run


BANDIT = {"reward_level": "bandit", "entropy_threshold": None}


@pytest.mark.parametrize(
    "options, is_asked",
    [
        (BANDIT, False),
        ({"segmenter": "step", "entropy_threshold": None}, False),
        ({**BANDIT, "reg_type": "dpo", "reg_coef": 0.2}, True),
    ],
    ids=str,
)
def test_the_frozen_model_is_loaded_and_asked_only_where_it_is_read(options, is_asked, train, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(
        reward_pairs, "load_policy", lambda path, *args, **kw: loads.append(path) or load_policy(path, *args, **kw)
    )
    _, metrics = train(cache_dir=tmp_path / "cache", epochs=1, **options)
    assert np.isfinite(metrics["eval_loss"])
    # For the training rows; the held-out ones are the same.
    assert len(loads) == is_asked and bool([*tmp_path.glob("cache/reference")]) == is_asked


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


def test_a_model_is_trained_on_the_sum_of_its_segments(files, train):
    output, metrics = train(agg_func="sum")
    model, rows = new_reward_model(str(files / "sft"), "fp32", seed=42), tokenised(files)

    def sums(of) -> list[torch.Tensor]:
        pairs = zip(rows * 2, ["chosen"] * len(rows) + ["rejected"] * len(rows))
        found = [score(of, row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_entropy"], 5.3) for row, side in pairs]
        return torch.stack([mean * len(segments) for mean, segments in found]).chunk(2)

    chosen, rejected = sums(model)
    loss = -torch.log(torch.sigmoid(chosen - rejected)).mean()
    loss.backward()
    norm = math.sqrt(sum((p.grad.double() ** 2).sum().item() for p in model.parameters()))
    first = read_metrics(output / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-4) and first["grad_norm"] == pytest.approx(norm, rel=1e-3)
    config = json.loads((output / "config.json").read_text())
    assert config["segment_reward"]["agg_func"] == "sum"
    # The mean and std of scores, for the scalar normaliser, are those of sums.
    scores = torch.cat(sums(load_reward_model(str(output), "fp32").eval()))
    assert (config["mean"], config["std"]) == pytest.approx((scores.mean().item(), scores.std(correction=0).item()), rel=1e-3)


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


def test_a_model_trained_by_relative_paths_is_read_from_any_folder(files, train, tmp_path, monkeypatch):
    shutil.copytree(files / "sft", tmp_path / "runs/sft")
    monkeypatch.chdir(tmp_path)
    train("runs/rm", model="runs/sft", output_dir="runs/rm")
    prompts, responses = [[{"role": "user", "content": "Why?"}]], ["The boat is red."]
    expected = RewardScorer(["runs/rm"])(prompts, responses)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # A model of the same name that happens to be here is another one.
    tiny_models.save_language_model(tmp_path / "elsewhere/runs/sft", seed=9)
    assert RewardScorer([str(tmp_path / "runs/rm")])(prompts, responses) == pytest.approx(expected)
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    assert RewardScorer(["../moved/rm"])(prompts, responses) == pytest.approx(expected)
    tiny_models.save_language_model(tmp_path / "moved/sft", seed=9)
    with pytest.raises(UserError, match="moved/rm/config.json names .*moved/sft .*with other weights"):
        RewardScorer([str(tmp_path / "moved/rm")])


def test_the_saved_config_says_how_scores_are_read(files, train):
    output, metrics = train()
    config, tokenizer = json.loads((output / "config.json").read_text()), AutoTokenizer.from_pretrained(output)
    digest = config["segment_reward"].pop("sft_fingerprint")
    assert digest == f"fp32:{file_fingerprint(files / 'sft', 'fp32')[:32]}"
    assert config["segment_reward"] == {
        "sft_model": str(files / "sft"),
        "sft_from_here": os.path.relpath(files / "sft", output),
        "entropy_threshold": 5.3,
        "agg_func": "avg",
        "read_at": "end_of_turn",
        "max_length": 64,
        "max_prompt_length": 48,
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


GRM = {"reg_type": "sft", "reg_coef": 0.05}
MLP = {"head_type": "mlp", "head_width": 8}


def same_bits(one, other) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize("head", [{}, MLP])
def test_a_text_term_of_weight_zero_is_plain_training_to_the_bit(head, train):
    plain, _ = train("plain", epochs=3, **head)
    off, _ = train("off", epochs=3, reg_type="dpo", reg_coef=0, **head)
    assert same_bits(plain, off)
    assert (plain / "metrics.jsonl").read_bytes() == (off / "metrics.jsonl").read_bytes()


def test_the_first_step_of_a_segment_level_dpo_run_is_that_of_a_loop(files, train):
    """From text on: at the first step the trained model is the reference, whose log-probabilities were computed beforehand."""
    output, _ = train(reg_type="dpo", reg_coef=0.2, reg_beta=0.5)
    model, policy = new_reward_model(str(files / "sft"), "fp32", seed=42), load_policy(str(files / "sft"), "fp32").eval()
    rows = tokenised(files)
    chosen, rejected = scores_of(model, rows, 5.3)
    first = read_metrics(output / "metrics.jsonl")[0]
    plain = torch.log1p(torch.exp(rejected - chosen)).mean().item()
    assert first["bt_loss"] == pytest.approx(plain, rel=1e-4)
    assert first["reg_loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert first["loss"] == pytest.approx(0.8 * plain + 0.2 * math.log(2), rel=1e-4)
    with torch.no_grad():
        model.lm_head = policy.get_output_embeddings()
        expected = torch.stack([logprob(model, row["prompt_ids"], row["chosen_ids"]) for row in rows]).mean().item()
    assert first["chosen_logprob"] == pytest.approx(expected, rel=1e-5)


def test_a_segment_level_grm_learns_pairs_and_to_speak_and_is_saved_without_its_language_model_head(files, train):
    output, metrics = train(epochs=10, lr=3e-3, save_steps=5, **GRM, **MLP)
    first, *_, last = [row for row in read_metrics(output / "metrics.jsonl") if "loss" in row]
    assert metrics["eval_accuracy"] == 1.0
    assert last["chosen_logprob"] > first["chosen_logprob"] + 5 and last["reg_loss"] < first["reg_loss"]
    assert "lm_head.weight" not in load_file(output / "model.safetensors")
    model = load_reward_model(str(output), "fp32")
    assert [type(step).__name__ for step in model.score] == ["Dropout", "Fp32Linear", "ReLU", "Fp32Linear"]
    assert not model.training


def test_a_frozen_trunk_stays_as_it_is_and_its_head_learns(files, train):
    output, _ = train(epochs=3, freeze_trunk=True, **MLP)
    trained = load_file(output / "model.safetensors")
    fresh = new_reward_model(str(files / "sft"), "fp32", 42, Head("mlp", width=8)).state_dict()
    trunk = [name for name in trained if not name.startswith("score.")]
    assert trunk and all(torch.equal(trained[name], fresh[name]) for name in trunk)
    assert set(trained) - set(trunk) == {name for name in fresh if name.startswith("score.")}
    assert all(not torch.equal(trained[name], fresh[name]) for name in fresh if name.startswith("score."))


def test_adapters_learn_from_the_text_term_and_leave_the_language_model_head_alone(files, train):
    pytest.importorskip("peft")
    output, _ = train(lora_rank=2, epochs=3, **GRM)
    trained, fresh = load_file(output / "model.safetensors"), new_reward_model(str(files / "sft"), "fp32", seed=42).state_dict()
    assert trained.keys() == fresh.keys()
    changed = {name for name, weight in fresh.items() if not torch.equal(weight, trained[name])}
    assert changed == {name for name in fresh if "proj" in name or name == "score.weight"}
    assert not any("lm_head" in name for name in load_file(output / "adapter" / "adapter_model.safetensors"))


def test_flipped_labels_are_those_of_training_alone(files, train):
    """Without updates, on the rows that are held out as well: what is right there is wrong in training."""
    output, metrics = train(lr=0, flip_frac=1.0)
    (first, _) = read_metrics(output / "metrics.jsonl")
    chosen, rejected = scores_of(new_reward_model(str(files / "sft"), "fp32", 42), tokenised(files), 5.3)
    assert metrics["eval_reward_difference"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-3)
    assert first["reward_difference"] == pytest.approx(-metrics["eval_reward_difference"], rel=1e-5)
    assert 0 < metrics["eval_accuracy"] < 1 and first["accuracy"] == pytest.approx(1 - metrics["eval_accuracy"])


def test_soft_labels_from_ratings(files, train, tmp_path):
    rows = [json.loads(line) for line in (files / "pairs.jsonl").read_text().splitlines()]
    rows = [row | {"chosen_rating": 1 + i % 3, "rejected_rating": 1} for i, row in enumerate(rows)]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output, _ = train(data=tmp_path / "rated.jsonl", soft_label_scale=2.0)
    chosen, rejected = (x.detach() for x in scores_of(new_reward_model(str(files / "sft"), "fp32", 42), tokenised(files), 5.3))
    right = torch.sigmoid(torch.tensor([i % 3 / 2 for i in range(8)]))
    gap = chosen - rejected
    expected = (right * torch.log1p(torch.exp(-gap)) + (1 - right) * torch.log1p(torch.exp(gap))).mean().item()
    assert read_metrics(output / "metrics.jsonl")[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("option", [{"use_margin": True}, {"soft_label_scale": 1.0}])
def test_ratings_that_nothing_has_are_missed(option, train):
    (name,) = option
    with pytest.raises(UserError, match=f"--{name} has no effect: no row of the data has ratings that differ"):
        train(**option)


MARGINAL = {"use_margin": True, "label_smoothing": 0.1, "centring": 0.01, "soft_label_scale": 3.0}


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, [BradleyTerry()]),
        ({"reg_type": "dpo", "reg_coef": 0.0}, [BradleyTerry()]),
        ({"reg_type": "sft"}, [BradleyTerry(0.99), TextRegularizer(0.01, "sft", 0.1, "sum")]),
        ({"pos_reg": 0.1, **MARGINAL}, [BradleyTerry(1.0, True, 0.1, 0.01, 3.0), PositiveRegularizer(0.1)]),
        (
            {"reg_type": "dpo", "reg_coef": 0.25, "reg_beta": 2.0, "reg_logp": "mean", "pos_reg": 0.5},
            [BradleyTerry(0.75), PositiveRegularizer(0.5), TextRegularizer(0.25, "dpo", 2.0, "mean")],
        ),
    ],
)
def test_flags_become_objectives(flags, expected):
    assert make_objectives(train_rm.Options(model="m", data=["d"], output_dir="o", **flags)) == expected


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}, {"freeze_trunk": True}], ids=str)
def test_a_model_of_labels_is_trained_and_saved_as_a_language_model(options, files, train):
    """Its scores are the log-odds of the tokens that the template writes for + and -, by the stock class."""
    if "lora_rank" in options:
        pytest.importorskip("peft")
    output, metrics = train(head_type="label", entropy_threshold=1000, epochs=4, **options)
    tokenizer = AutoTokenizer.from_pretrained(output)
    ids = [tokenizer.encode(label) for label in "+-"]
    head = {"kind": "label", "bias": False, "labels": ["+", "-"], "label_ids": [i for (i,) in ids], "scale": 1.0, "cap": None}
    config = json.loads((output / "config.json").read_text())
    assert config["segment_reward"]["head"] == head and config["architectures"] == ["LlamaForCausalLM"]
    stock, before = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (output, files / "sft"))
    ours, rows = load_reward_model(str(output), "fp32"), tokenised(files)
    sequences = [row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected") for row in rows]
    with torch.no_grad():
        logits = torch.stack([stock(torch.tensor([row])).logits[0, -1] for row in sequences])
        scores = torch.stack([ours(torch.tensor([row])).logits[0, 0] for row in sequences])
    torch.testing.assert_close(scores, (logits[:, ids[0]] - logits[:, ids[1]]).squeeze(1), rtol=0, atol=1e-5)
    assert metrics["eval_score_mean"] == pytest.approx(scores.mean().item(), rel=1e-4)
    assert metrics["eval_score_std"] == pytest.approx(scores.std(correction=0).item(), rel=1e-4)
    moved = (stock.lm_head.weight != before.lm_head.weight).any(1)
    assert moved.nonzero().flatten().tolist() == sorted(head["label_ids"])
    same = torch.equal(stock.model.layers[0].mlp.up_proj.weight, before.model.layers[0].mlp.up_proj.weight)
    assert same == ("freeze_trunk" in options)
