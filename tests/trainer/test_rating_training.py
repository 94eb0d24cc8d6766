"""Training on rated responses against a plain loop, ridge against a direct solve, and what train-rm writes of either."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
import tiny_models
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainingArguments

from denserl.cli import train_rm
from denserl.data.rated_rows import load_ratings, tokenize_ratings
from denserl.errors import UserError
from denserl.models.heads import Head, make_head
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.attributes import ALPHAS
from denserl.rewards.objectives import BradleyTerry, RatingErrors
from denserl.rewards.scorer import RewardScorer
from denserl.segmentation import Segmenter
from denserl.streams import Purpose, stream
from denserl.trainer.rating_trainer import RatingTrainer
from denserl.trainer.reward_steps import split_by_question, whole_questions

NAN = math.nan
NAMES = ("true", "long")
RATINGS = [[0.9, NAN], [0.1, 0.3], [NAN, 0.8], [0.7, 0.5], [0.2, NAN]]
LENGTHS = [8, 6, 5, 10, 3]


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


def rated() -> Dataset:
    columns = {"prompt_ids": tiny_models.random_rows([4, 2, 6, 3, 5], seed=1), "attributes": RATINGS}
    return Dataset.from_dict({**columns, "response_ids": tiny_models.random_rows(LENGTHS, seed=2)})


def model_of_two():
    model = tiny_models.classifier("llama")
    torch.manual_seed(3)
    model.score = make_head(32, Head("attributes", names=NAMES, weights=(0.75, 0.5)))
    return model


def predictions(model, row) -> torch.Tensor:
    """The ratings at the last token, by one unpadded row (differentiable)."""
    hidden = model.base_model(input_ids=torch.tensor([row["prompt_ids"] + row["response_ids"]])).last_hidden_state[0, -1]
    return model.score.weight.double() @ hidden.double()


def errors(model, rows) -> torch.Tensor:
    """The squared error of every rating, one by one."""
    found = []
    for row in rows:
        for value, rating in zip(predictions(model, row), row["attributes"]):
            if not math.isnan(rating):
                found.append((value - rating) ** 2)
    return torch.stack(found)


def trainer(model, folder, **kw) -> RatingTrainer:
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], remove_unused_columns=False)
    return RatingTrainer(model=model, args=args, eval_dataset=rated(), names=NAMES, segmenter=Segmenter(1e3), pad_id=0, **kw)


def batch_of(running, rows, counted=None) -> dict:
    marks = {"counted": torch.tensor(counted or [True] * len(rows)), "row": torch.arange(len(rows))}
    return {**running.data_collator(rows), **marks}


@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradients_are_those_of_a_loop_over_ratings_however_a_step_is_split(packed, tmp_path):
    """The mean over seven ratings, in three micro-batches, one with a row that does not count; scores bear no part of it."""
    model, other = model_of_two(), model_of_two()
    running, rows = trainer(tiny_models.probed(model) if packed else model, tmp_path), list(rated())
    batches = [batch_of(running, rows[:1]), batch_of(running, rows[1:3]), batch_of(running, [rows[0], *rows[3:]])]
    batches[2]["counted"][0] = False
    count = sum(running.count(batch) for batch in batches)
    assert count == 7
    loss = sum(running.compute_loss(model, batch, num_items_in_batch=count) for batch in batches)
    loss.backward()
    expected = errors(other, rows).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, got), want in zip(model.named_parameters(), other.parameters(), strict=True):
        scale = want.grad.abs().max().item()
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("eval_tokens", [1, 30, 10**6])
def test_evaluation_counts_each_rating_once_in_any_batches(eval_tokens, tmp_path):
    model, rows = model_of_two(), list(rated())
    got = trainer(model, tmp_path, eval_tokens=eval_tokens).evaluate()
    with torch.no_grad():
        values = torch.stack([predictions(model, row) for row in rows]).numpy()
        each = errors(model, rows).numpy()
    ratings, scores = np.array(RATINGS), values @ [0.75, 0.5]
    pairs = [(values[known, k], ratings[known, k]) for k, known in enumerate(~np.isnan(ratings).T)]
    expected = {
        "eval_loss": each.mean(),
        "eval_mse": each.mean(),
        "eval_mean_mse": sum(((y - y.mean()) ** 2).sum() for _, y in pairs) / 7,
        "eval_score_mean": scores.mean(),
        "eval_score_std": scores.std(),
    }
    for name, (p, y) in zip(NAMES, pairs):
        expected |= {f"eval_mse/{name}": ((p - y) ** 2).mean(), f"eval_pearson/{name}": np.corrcoef(p, y)[0, 1]}
        expected[f"eval_spearman/{name}"] = scipy.stats.spearmanr(p, y).statistic
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_losses_of_groups_cannot_be_averaged_with_those_of_ratings(tmp_path):
    with pytest.raises(UserError, match="RatingErrors over entries and BradleyTerry over groups"):
        trainer(model_of_two(), tmp_path, objectives=[RatingErrors(), BradleyTerry()])


WORDS = "kettle garden river bridge rain boats kitchen".split()


def row(i: int) -> dict:
    """A response of one to six words; how many, and which share is wet, is rated in most rows."""
    said = [WORDS[(i * i + 3 * k * k + i // 7) % 7] for k in range(1 + (5 * i + i // 6) % 6)]
    made = {"prompt": f"Tell me {i % 60}.", "response": " ".join(said), "attributes": {}}
    if i % 5:
        made["attributes"]["long"] = len(said) / 6
    if i % 3:
        made["attributes"]["wet"] = sum(word in ("river", "rain", "boats") for word in said) / len(said)
    return made


class Fitted(NamedTuple):
    """A tiny language model, rated rows, and the options of a training on them."""

    root: Path

    def run(self, output: Path, **options) -> dict[str, float]:
        own = {
            "model": self.root / "sft",
            "data": self.root / "rated.jsonl",
            "input": "ratings",
            "head_type": "attributes",
            "rating_columns": ["long", "wet"],
            "output_dir": output,
            "max_length": 64,
            "max_prompt_length": 40,
            "cache_dir": self.root / "cache",
            "score_tokens": 2000,
        }
        return tiny_models.run_command(train_rm, "train-rm", tiny_models.as_argv(own | options))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Fitted:
    root = tmp_path_factory.mktemp("rated")
    tiny_models.save_language_model(root / "sft")
    (root / "rated.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(240)))
    return Fitted(root)


def test_ridge_is_a_direct_solve_on_features_of_the_stock_class(fitted, tmp_path):
    """Weights, penalties and errors by numpy from the hidden states of single rows, read where a bandit model is."""
    metrics = fitted.run(tmp_path, attribute_fit="ridge", reward_level="bandit", attribute_weights=[1, 3])
    tokenizer = load_tokenizer(str(tmp_path))
    train, held_out = split_by_question(
        load_ratings([str(fitted.root / "rated.jsonl")], names=["long", "wet"], seed=42), 512, 42
    )
    parts = [tokenize_ratings(part, tokenizer, max_length=64, max_prompt_length=40) for part in (train, held_out)]
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()

    def features(rows) -> np.ndarray:
        with torch.no_grad():
            ids = [torch.tensor([one["prompt_ids"] + one["response_ids"]]) for one in rows]
            return torch.stack([stock.base_model(input_ids=i).last_hidden_state[0, -1] for i in ids]).double().numpy()

    (z, judged), (y, truth) = map(features, parts), (np.array(part["attributes"]) for part in parts)
    chooses = whole_questions(parts[0]["prompt_ids"], len(z) // 5, stream(42, Purpose.PENALTIES))
    chooses = np.array([i in chooses for i in range(len(z))])
    assert 0.1 < chooses.mean() <= 0.2
    weights = []
    for k in range(2):
        own, other = (part & ~np.isnan(y[:, k]) for part in (~chooses, chooses))
        tried = [np.linalg.solve(z[own].T @ z[own] + a * np.eye(32), z[own].T @ y[own, k]) for a in ALPHAS]
        weights.append(min(tried, key=lambda w: np.mean((z[other] @ w - y[other, k]) ** 2)))
    weights = np.stack(weights)
    np.testing.assert_allclose(stock.score.weight.detach().numpy(), weights, rtol=1e-3, atol=1e-4)
    assert np.nanmean((judged @ weights.T - truth) ** 2) == pytest.approx(metrics["eval_mse"], rel=1e-3)
    assert metrics["eval_mse"] < metrics["eval_mean_mse"]
    # The saved model is read by whatever reads a reward model: its score is the weighted sum.
    prompt, answer = [{"role": "user", "content": "Tell me 3."}], "river kettle"
    ids = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], return_dict=False)
    end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
    with torch.no_grad():
        expected = stock(input_ids=torch.tensor([ids[:end]])).logits[0].double() @ torch.tensor([1.0, 3.0]).double()
    assert RewardScorer([str(tmp_path)])([prompt], [answer])[0] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.long
def test_gradient_steps_learn_ratings_at_segment_level_on_a_reward_models_trunk(fitted, tmp_path):
    """A first model is trained, and its trunk alone kept, as it is, under a head by ridge; both cut by the same SFT model."""
    options = {"epochs": 4, "batch_size": 16, "micro_batch_size": 16, "lr": 5e-3, "entropy_threshold": 5.3}
    steps = {"logging_steps": 1, "save_steps": 0, "eval_steps": 0, "warmup_ratio": 0.0}
    metrics = fitted.run(tmp_path / "first", **options, **steps)
    assert metrics["eval_mse"] < 0.8 * metrics["eval_mean_mse"] and metrics["eval_segments_per_response"] > 1.5
    again = fitted.run(tmp_path / "second", model=tmp_path / "first", attribute_fit="ridge", entropy_threshold=5.3)
    assert again["eval_mse"] < 1.1 * metrics["eval_mse"]
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert first["segment_reward"] == second["segment_reward"] | {"sft_from_here": first["segment_reward"]["sft_from_here"]}
    assert first["mean"] != second["mean"]


@pytest.mark.parametrize(
    "options, found",
    [
        ({"head_type": "linear"}, "--head_type linear with --input ratings"),
        ({"input": "pairs", "rating_columns": None}, "--head_type attributes with --input pairs"),
        ({"attribute_weights": [1, 2, 3]}, "3 numbers for 2 ratings: long, wet"),
        ({"attribute_fit": "ridge", "agg_func": "min"}, "--attribute_fit ridge with --agg_func min"),
        ({"attribute_fit": "ridge", "lr": 1e-3}, "--lr 0.001 has no effect with --attribute_fit ridge"),
        ({"label_smoothing": 0.1}, "--label_smoothing 0.1 has no effect without --input pairs"),
        ({"rating_columns": None}, "it is not said which ratings are learned"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(fitted, tmp_path, options, found):
    with pytest.raises(UserError) as error:
        fitted.run(tmp_path, model="nowhere", **options)
    assert found in error.value.found
