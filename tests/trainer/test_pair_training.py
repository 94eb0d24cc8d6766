"""Training on pairs whose responses stand in one text, against a loop over their orders, and what train-rm writes of it."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from datasets import Dataset
from trained_models import LEARNING, Trained, train_on
from transformers import TrainingArguments

from denserl.cli import merge, train_rm
from denserl.data.pair_encoding import encode_orders, tokenize_orders
from denserl.data.preferences import load_preferences
from denserl.errors import UserError
from denserl.models.heads import Head
from denserl.models.loading import load_policy
from denserl.models.reward_models import load_reward_model, new_reward_model, train_whole_head
from denserl.models.scoring import token_rewards
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.objectives import PairLabels, PositionBias
from denserl.trainer.pair_trainer import PairTrainer
from denserl.trainer.reward_orders import with_orders
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.trackers import read_metrics

IDS = (11, 29, 30)
P_CHOSEN, WEIGHT = [1.0, 0.5, 0.2, 1.0], [1.0, 2.5, 0.5, 1.0]


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


def pairs() -> Dataset:
    lengths = [8, 6, 5, 10]
    texts = {side: tiny_models.random_rows(lengths, seed=seed) for seed, side in ((2, "chosen_ids"), (3, "rejected_ids"))}
    numbers = {"margin": [0.0] * 4, "p_chosen": P_CHOSEN, "weight": WEIGHT}
    return Dataset.from_dict({"prompt_ids": tiny_models.random_rows([4, 2, 6, 3], seed=1), **texts, **numbers})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.language_model("llama").save_pretrained(folder)
    return folder


def loss_of(model, row, ids, symmetry, whole) -> torch.Tensor:
    """By the language model's own logits of each text alone (differentiable)."""
    losses, log_odds = [], []
    for order in row["orders"]:
        text = row["prompt_ids"] + row[("chosen_ids", "rejected_ids")[order]]
        logits = model(torch.tensor([text])).logits[0, -1].double()
        logprobs = (logits if whole else logits[list(ids)]).log_softmax(0)
        logprobs = logprobs[list(ids)] if whole else logprobs
        p = 1 - row["p_chosen"] if order else row["p_chosen"]
        is_tie = len(ids) == 3 and p == 0.5
        losses.append(-logprobs[2] if is_tie else -p * logprobs[0] - (1 - p) * logprobs[1])
        log_odds.append(logprobs[0] - logprobs[1])
    bias = torch.stack(log_odds).mean() ** 2 if symmetry else 0.0
    return row["weight"] * (torch.stack(losses).mean() + symmetry * bias)


@pytest.mark.parametrize(
    ("seed", "labels", "symmetry", "whole"),
    [(None, 2, 0.3, False), (5, 2, 0.0, False), (None, 3, 0.0, False), (5, 3, 0.0, True), (None, 2, 0.3, True)],
)
def test_loss_and_gradients_are_those_of_a_loop_however_a_step_is_split(seed, labels, symmetry, whole, folder, tmp_path):
    ids = IDS[:labels]
    model = new_reward_model(str(folder), "fp32", head=Head("label", labels=tuple("ABC")[:labels], label_ids=ids))
    if whole:
        train_whole_head(model, str(folder), "fp32")
    other, rows = tiny_models.language_model("llama"), with_orders(pairs(), seed)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False)
    objectives = [PairLabels(loss="full" if whole else "restricted"), *([PositionBias(symmetry)] if symmetry else [])]
    running = PairTrainer(model=model, args=args, eval_dataset=rows, objectives=objectives, pad_id=0)
    rows = list(rows)
    batches = [
        {**running.data_collator(part), "counted": torch.tensor([True] * len(part))} for part in (rows[:1], rows[1:3], rows[2:])
    ]
    batches[2]["counted"][0] = False
    count = sum(running.count(batch) for batch in batches)
    assert count == sum(WEIGHT)
    loss = sum(running.compute_loss(model, batch, num_items_in_batch=count) for batch in batches)
    loss.backward()
    expected = sum(loss_of(other, row, ids, symmetry, whole) for row in rows) / sum(WEIGHT)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        want = wanted["lm_head.weight"] if name.startswith(("score", "lm_head")) else wanted[name]
        grad = want.grad if whole or not name.startswith("score") else want.grad[list(ids)]
        scale = grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, grad.float(), rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_one_fair_coin_a_pair_says_which_order_is_read():
    rows = Dataset.from_dict({"number": range(2000)})
    coins = [order for (order,) in with_orders(rows, 7)["orders"]]
    assert coins == [order for (order,) in with_orders(rows, 7)["orders"]]
    assert coins != [order for (order,) in with_orders(rows, 8)["orders"]] and {*coins} == {0, 1}
    assert abs(sum(coins) - 1000) < 100  # over four standard deviations
    assert with_orders(rows, None)["orders"][0] == [0, 1]


def pair(i: int) -> dict:
    """The better response speaks of a river, wherever it stands; one of them looks like a mark."""
    good, bad = f"The river {'runs' * (i % 2)} [RESPONSE B]", "No bridge." * (1 + i % 2)
    return {"prompt": f"Tell me about {i % 9}.", "chosen": good, "rejected": bad}


def settings(root: Path, output: Path, **options) -> list[str]:
    own = {
        "model": root / "sft",
        "data": root / "pairs.jsonl",
        "input": "pair",
        "head_type": "label",
        "output_dir": output,
        "epochs": 4,
        "max_length": 160,
    }
    labels = ["--labels", *options.pop("labels")] if "labels" in options else []
    return tiny_models.as_argv(LEARNING | own | options) + labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    root = tmp_path_factory.mktemp("pairs")
    argv = settings(root, root / "pm", both_orders=True, symmetry=0.1)
    return train_on(root, root / "pairs.jsonl", [pair(i) for i in range(90)], root / "pm", argv)


def run(trained, output, **options) -> dict:
    return tiny_models.run_command(train_rm, "train-rm", settings(trained.root, output, **options))


def tokenised(trained, tokenizer) -> Dataset:
    return tokenize_orders(load_preferences([str(trained.root / "pairs.jsonl")]), tokenizer, max_length=160)


def log_odds(model, tokenizer, text: list[int]) -> torch.Tensor:
    """Of a stock language model: the logit of A less that of B behind a text."""
    a, b = tokenizer("A").input_ids + tokenizer("B").input_ids
    with torch.no_grad():
        logits = model(torch.tensor([text])).logits[0, -1]
    return logits[a] - logits[b]


def test_the_better_response_is_named_wherever_it_stands(trained):
    metrics = trained.metrics
    assert metrics["eval_accuracy"] > 0.95 and metrics["eval_position_consistency"] > 0.95
    assert "by both orders together; they agree in 1.000 of the pairs, and the first place is worth" in trained.said
    logged = read_metrics(trained.folder / "metrics.jsonl")
    assert logged[0]["loss"] > logged[-2]["loss"] and {"position_bias", "squared_position_bias"} <= logged[0].keys()
    config = json.loads((trained.folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["std"] == metrics["eval_score_std"]
    stored = config["segment_reward"]
    assert (stored["input"], stored["pair_layout"], stored["max_length"]) == ("pair", "denserl", 160)
    assert not {"max_prompt_length", "entropy_threshold", "scores"} & stored.keys()


def test_the_saved_model_says_as_a_stock_language_model_what_training_read(trained):
    """On the ids of inference, which are those of training up to the label."""
    saved, tokenizer = load_policy(str(trained.folder), "fp32").eval(), load_tokenizer(str(trained.folder))
    reward = load_reward_model(str(trained.folder), "fp32")
    for i, row in enumerate(tokenised(trained, tokenizer).select(range(6))):
        own = pair(i)
        prompt = [{"role": "user", "content": own["prompt"]}]
        orders = encode_orders(tokenizer, prompt, own["chosen"], own["rejected"], max_length=160)
        for ids, side, is_chosen in zip(orders, ("chosen_ids", "rejected_ids"), (True, False), strict=True):
            assert (ids.prompt_ids, ids.response_ids) == (row["prompt_ids"], row[side])
            text = torch.tensor([ids.prompt_ids + ids.response_ids])
            with torch.no_grad():
                score = token_rewards(reward, text, torch.ones_like(text))[0, -1]
            torch.testing.assert_close(score, log_odds(saved, tokenizer, text[0].tolist()), rtol=1e-4, atol=1e-4)
            assert (score > 0) == is_chosen


def test_the_first_loss_is_that_of_the_language_model_in_the_orders_that_were_drawn(trained, tmp_path):
    options = {"eval_data": trained.root / "pairs.jsonl", "epochs": 1, "batch_size": 90, "micro_batch_size": 45}
    run(trained, tmp_path / "pm", **options)
    sft, tokenizer = load_policy(str(trained.root / "sft"), "fp32").eval(), load_tokenizer(str(trained.root / "sft"))
    losses = []
    for row in with_orders(tokenised(trained, tokenizer), 42):
        (order,) = row["orders"]
        found = log_odds(sft, tokenizer, row["prompt_ids"] + row[("chosen_ids", "rejected_ids")[order]])
        losses.append(torch.nn.functional.softplus(found if order else -found))
    logged = read_metrics(tmp_path / "pm/metrics.jsonl")[0]
    assert logged["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert "position_bias" not in logged and 0 < logged["accuracy"] < 1


@pytest.mark.long
@pytest.mark.parametrize("options", [{"lora_rank": 2, "labels": ["A", "B", "C"]}, {"label_ce": "full", "both_orders": True}])
def test_a_resumed_run_ends_as_the_whole_one_and_orders_must_be_the_same(options, trained, tmp_path):
    options = {"epochs": 1, "save_steps": 2, "save_total_limit": 5, **options}
    metrics = run(trained, tmp_path / "whole", **options)
    checkpoint = Path("checkpoints/step-000002")
    shutil.copytree(tmp_path / "whole" / checkpoint, tmp_path / "half" / checkpoint)
    shutil.copy(tmp_path / "whole/metrics.jsonl", tmp_path / "half")
    with pytest.raises(UserError, match="both_orders"):
        other = not options.get("both_orders") or None
        run(trained, tmp_path / "half", **options | {"both_orders": other, "resume": True})
    assert run(trained, tmp_path / "half", resume=True, **options) == metrics
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "half")]
    assert weights[0] == weights[1]
    assert ("eval_label_mass" in metrics) == ("label_ce" in options)
    if "lora_rank" in options:
        argv = tiny_models.as_argv(
            {"model": trained.root / "sft", "adapter": tmp_path / "whole/adapter", "output_dir": tmp_path / "merged"}
        )
        tiny_models.run_command(merge, "merge", argv)
        merged = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "merged")]
        assert merged[0]["segment_reward"] == merged[1]["segment_reward"]
        models = [load_reward_model(str(tmp_path / name), "fp32") for name in ("whole", "merged")]
        ids = torch.tensor([[7, 20, 33, 64, 5]])
        with torch.no_grad():
            torch.testing.assert_close(*(token_rewards(model, ids, torch.ones_like(ids)) for model in models))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head_type": "linear"}, "--input pair with --head_type linear"),
        ({"symmetry": 0.1}, "--symmetry 0.1 has no effect without --both_orders"),
        ({"input": "pairs", "both_orders": True}, "--both_orders has no effect without --input pair"),
        ({"agg_func": "sum"}, "--agg_func sum has no effect with --input pair"),
        ({"reward_level": "bandit"}, "--reward_level bandit has no effect with --input pair"),
        ({"use_margin": True}, "--use_margin has no effect without --input pairs"),
        ({"max_prompt_length": 40}, "--max_prompt_length 40 has no effect with --input pair"),
        ({"context_signs": "plus"}, "--context_signs plus has no effect without --input steps or response"),
        ({"step_separator": ";"}, "--step_separator [';'] has no effect"),
        ({"labels": ["A", "B", "Same"]}, "--labels A B Same: answers of one token each"),
        ({"labels": ["A"]}, "--labels A: 1 given"),
        ({"label_ce": "full", "lora_rank": 2}, "--label_ce full with --lora_rank"),
        ({"max_length": 12}, "--max_length 12 leaves no room for two responses"),
    ],
)
def test_what_does_not_go_together_is_refused(options, reason, trained, tmp_path):
    with pytest.raises(UserError) as error:
        run(trained, tmp_path / "pm", **options)
    assert reason in str(error.value)


def test_cuts_are_counted_and_said(trained, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("denserl.data.pair_encoding.log.warning", lambda words, *values: said.append(words % values))
    tokenizer = load_tokenizer(str(trained.root / "sft"))
    rows = tokenize_orders(load_preferences([str(trained.root / "pairs.jsonl")]), tokenizer, max_length=40)
    assert max(len(row["prompt_ids"] + row["chosen_ids"]) for row in rows) == 40
    assert said[0].startswith("90 of 90 pairs are longer than `max_length` 40: their contexts lose their beginnings")
    assert "of 90 pairs have no context left, and lose the ends of responses too" in said[1]


def test_an_objective_of_log_probabilities_is_refused(trained, tmp_path):
    config = train_rm.Options(
        model=str(trained.root / "sft"),
        data=[str(trained.root / "pairs.jsonl")],
        input="pair",
        head_type="label",
        output_dir=str(tmp_path / "pm"),
        objective=["denserl.rewards.objectives.grm:TextRegularizer"],
    )
    with pytest.raises(UserError, match="reads first_logps, which two responses in one text do not have"):
        RewardTrainer.from_config(config)
