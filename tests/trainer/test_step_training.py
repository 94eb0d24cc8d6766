"""Training on labelled steps against a plain loop over solutions, and what train-rm writes of it."""

import json
import math
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from datasets import Dataset
from trained_models import LEARNING, Trained, train_on
from transformers import TrainingArguments

from denserl.cli import train_rm
from denserl.data.step_encoding import StepLayout, encode_steps, tokenize_steps
from denserl.data.step_records import load_steps
from denserl.errors import UserError
from denserl.models.loading import load_policy
from denserl.models.reward_models import load_reward_model
from denserl.models.scoring import token_rewards
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.objectives import Objective, StepLabels, TextRegularizer
from denserl.trainer.reward_steps import split_by_question
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.step_trainer import StepTrainer
from denserl.trainer.trackers import read_metrics

NAN = math.nan
# In the first two steps of the second solution end within one token; of the third only the last step is labelled.
READ_AT = [[1, 4, 6], [2, 2, 5], [0, 3], [8]]
LABELS = [[1.0, 0.75, 0.0], [0.0, 1.0, NAN], [NAN, 0.25], [1.0]]
RESPONSES = [8, 6, 5, 10]


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


def solutions() -> Dataset:
    columns = {"prompt_ids": tiny_models.random_rows([4, 2, 6, 3], seed=1), "read_at": READ_AT, "labels": LABELS}
    return Dataset.from_dict({**columns, "response_ids": tiny_models.random_rows(RESPONSES, seed=2)})


def logits(model, row) -> torch.Tensor:
    """The score of each step, by one unpadded row (differentiable)."""
    hidden = model.base_model(input_ids=torch.tensor([row["prompt_ids"] + row["response_ids"]])).last_hidden_state[0]
    return hidden[[len(row["prompt_ids"]) + at for at in row["read_at"]]].double() @ model.score.weight[0].double()


def loss_of(model, rows, average) -> torch.Tensor:
    """Binary cross-entropy of torch, of the labelled steps of each solution."""
    found = []
    for row in rows:
        labels, values = torch.tensor(row["labels"], dtype=torch.float64), logits(model, row)
        known = ~labels.isnan()
        found.append(torch.nn.functional.binary_cross_entropy(values[known].sigmoid(), labels[known], reduction="none"))
    return torch.cat(found).mean() if average == "steps" else torch.stack([row.mean() for row in found]).mean()


def trainer(model, folder, average="steps", **kw) -> StepTrainer:
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], remove_unused_columns=False)
    objectives = [StepLabels(average=average), *kw.pop("objectives", [])]
    return StepTrainer(model=model, args=args, eval_dataset=solutions(), objectives=objectives, pad_id=0, **kw)


def batch_of(running, rows, counted=None) -> dict:
    counted = [True] * len(rows) if counted is None else counted
    return {**running.data_collator(rows), "counted": torch.tensor(counted)}


@pytest.mark.parametrize("average", ["steps", "solutions"])
@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradients_are_those_of_a_loop_however_a_step_is_split(average, packed, tmp_path):
    model, other = tiny_models.classifier("llama"), tiny_models.classifier("llama")
    running = trainer(tiny_models.probed(model) if packed else model, tmp_path, average)
    rows = list(solutions())
    batches = [batch_of(running, part) for part in (rows[:1], rows[1:3], [rows[0], rows[3]])]
    batches[2]["counted"][0] = False
    count = sum(running.count(batch) for batch in batches)
    assert count == (7 if average == "steps" else 4)
    loss = sum(running.compute_loss(model, batch, num_items_in_batch=count) for batch in batches)
    loss.backward()
    expected = loss_of(other, rows, average)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, got), want in zip(model.named_parameters(), other.parameters(), strict=True):
        scale = want.grad.abs().max().item()
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("eval_tokens", [1, 30, 10**6])
def test_evaluation_counts_each_step_once_in_any_batches(eval_tokens, tmp_path):
    model, rows = tiny_models.classifier("llama"), list(solutions())
    got = trainer(model, tmp_path, eval_tokens=eval_tokens).evaluate()
    with torch.no_grad():
        values = [logits(model, row) for row in rows]
        loss = loss_of(model, rows, "steps").item()
    pairs = [(x.item(), y) for row, labels in zip(values, LABELS) for x, y in zip(row, labels) if not math.isnan(y)]
    least = torch.stack([row.min() for row in values])
    expected = {
        "eval_loss": loss,
        "eval_step_accuracy": sum((x >= 0) == (y >= 0.5) for x, y in pairs) / 7,
        "eval_always_plus_accuracy": 4 / 7,
        "eval_steps_per_solution": 7 / 4,
        "eval_wrong_solutions": 3 / 4,
        "eval_bad_probability": sum(1 / (1 + math.exp(-x)) for x, y in pairs if y < 0.5) / 3,
        "eval_score_mean": least.mean().item(),
        "eval_score_std": least.std(correction=0).item(),
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [512, 7, 3, 1])
def test_whole_questions_are_held_out(size):
    prompts = ["long"] * 30 + [f"of four {i // 4}" for i in range(16)] + [f"one {i}" for i in range(4)]
    rows = Dataset.from_dict({"prompt": prompts, "number": range(50)})
    train, held_out = split_by_question(rows, size, seed=3)
    assert not {*train["prompt"]} & {*held_out["prompt"]} and sorted([*train["number"], *held_out["number"]]) == [*range(50)]
    # As they fit, and where none does, one of the shortest.
    assert 0 < len(held_out) <= max(min(size, 5), 1)


class Shortest(Objective):
    """The least score of a solution towards 0."""

    def __call__(self, groups):
        losses = groups.scores[:, 0] ** 2
        return losses, {"least_square": losses, "of_steps": groups.steps.labels.isnan().float().sum(1)}


def test_an_objective_of_solutions_goes_with_the_mean_over_solutions(tmp_path):
    model, rows = tiny_models.classifier("llama"), list(solutions())
    got = trainer(model, tmp_path, "solutions", objectives=[Shortest()]).evaluate()
    with torch.no_grad():
        squares = sum(logits(model, row).min().item() ** 2 for row in rows) / 4
        loss = loss_of(model, rows, "solutions").item()
    assert got["eval_least_square"] == pytest.approx(squares) and got["eval_loss"] == pytest.approx(loss + squares)
    with pytest.raises(UserError, match="StepLabels over steps and Shortest over groups"):
        trainer(model, tmp_path, "steps", objectives=[Shortest()])


SIGNS = ["The river runs.", "The kettle hums.", "No bridge.", "Old boats wait."]  # two right steps, two wrong ones


def answer(i: int) -> dict:
    """A solution with one to four steps, of which those from some wrong one on are wrong; some labels are missing."""
    good = [(i + k) % 5 != 4 and k < 3 for k in range(1 + i % 4)]
    good = [all(good[: k + 1]) for k in range(len(good))]
    steps = [SIGNS[(i + k) % 2 + 2 * (not right)] for k, right in enumerate(good)]
    return {"prompt": f"Tell me about {i % 9}.", "completions": steps, "labels": good}


def settings(root: Path, output: Path, **options) -> list[str]:
    own = {
        "model": root / "sft",
        "data": root / "steps.jsonl",
        "input": "steps",
        "output_dir": output,
        "epochs": 8,
        "max_length": 64,
        "max_prompt_length": 40,
    }
    return tiny_models.as_argv(LEARNING | own | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    root = tmp_path_factory.mktemp("steps")
    argv = settings(root, root / "prm")
    return train_on(root, root / "steps.jsonl", [answer(i) for i in range(90)], root / "prm", argv)


def test_steps_are_learned_from_text_on(trained):
    metrics = trained.metrics
    assert metrics["eval_step_accuracy"] > 0.95 > 0.9 > metrics["eval_always_plus_accuracy"]
    assert metrics["eval_first_error_f1"] > 0.9
    assert "of the labelled steps told right (by always saying +: " in trained.said and "first errors: F1 " in trained.said
    logged = read_metrics(trained.folder / "metrics.jsonl")
    assert logged[0]["loss"] > logged[-2]["loss"] and {"step_accuracy", "first_error_f1"} <= logged[0].keys()


def test_what_is_stored_says_how_the_model_is_read(trained):
    config = json.loads((trained.folder / "config.json").read_text())
    stored = config["segment_reward"]
    expected = {
        "scores": "logit",
        "segmenter": "step",
        "step_separator": ["\n\n"],
        "max_steps": 64,
        "context_signs": "none",
        "agg_func": "min",
        "max_length": 64,
    }
    assert {name: stored[name] for name in expected} == expected
    assert config["mean"] == trained.metrics["eval_score_mean"] and config["std"] == trained.metrics["eval_score_std"]


def test_the_saved_model_scores_steps_as_the_training_did(trained, tmp_path):
    model, tokenizer = load_reward_model(str(trained.folder), "fp32"), load_tokenizer(str(trained.folder))
    rows = tokenize_steps(load_steps([str(trained.root / "steps.jsonl")]), tokenizer, max_length=64, max_prompt_length=40)
    rows = list(rows)[:20]
    running = trainer(model, tmp_path)
    with torch.no_grad():
        found = running.groups(model, batch_of(running, rows)).steps
        right = []
        for row, values, labels in zip(rows, found.logits, found.labels):
            ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
            scores = token_rewards(model, ids, torch.ones_like(ids))[0, len(row["prompt_ids"]) :]
            torch.testing.assert_close(values[: len(row["read_at"])], scores[row["read_at"]], rtol=1e-5, atol=1e-5)
            right += ((values >= 0) == (labels >= 0.5))[~labels.isnan()].tolist()
    assert sum(right) / len(right) > 0.95


def test_one_forward_gives_what_a_forward_of_each_step_gives(trained):
    """With `+` at every sign, the score before it is that of the conversation that ends there."""
    model, tokenizer = load_reward_model(str(trained.folder), "fp32"), load_tokenizer(str(trained.folder))
    prompt, steps = [{"role": "user", "content": "Tell me about 3."}], SIGNS * 3
    whole = encode_steps(tokenizer, prompt, steps, StepLayout("plus"))

    def score(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return token_rewards(model, torch.tensor([ids]), torch.ones(1, len(ids)))[0]

    scores = score(whole.prompt_ids + whole.response_ids)[len(whole.prompt_ids) :][whole.read_at]
    alone = [encode_steps(tokenizer, prompt, steps[: k + 1], StepLayout("plus")) for k in range(12)]
    each = torch.stack([score(one.prompt_ids + one.response_ids)[-1] for one in alone])
    torch.testing.assert_close(scores, each, rtol=1e-4, atol=1e-4)


def run(trained, output, **options) -> dict:
    return tiny_models.run_command(train_rm, "train-rm", settings(trained.root, output, **options))


@pytest.mark.long
def test_a_resumed_run_ends_as_the_whole_one_and_labels_must_be_the_same(trained, tmp_path):
    options = {"epochs": 1, "save_steps": 2, "context_signs": "true", "stop_at_first_error": True, "lora_rank": 2}
    options["save_total_limit"] = 5
    metrics = run(trained, tmp_path / "whole", **options)
    checkpoint = Path("checkpoints/step-000002")
    shutil.copytree(tmp_path / "whole" / checkpoint, tmp_path / "half" / checkpoint)
    shutil.copy(tmp_path / "whole/metrics.jsonl", tmp_path / "half")
    with pytest.raises(UserError, match="content of data"):
        run(trained, tmp_path / "half", **options | {"stop_at_first_error": None, "resume": True})
    assert run(trained, tmp_path / "half", resume=True, **options) == metrics
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "half")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("loss", [pytest.param("restricted", marks=pytest.mark.long), "full"])
def test_labels_are_learned_in_their_place(loss, trained, tmp_path):
    """The first loss is that of the language model's own probabilities, and what is saved says its score as log-odds."""
    options = {"head_type": "label", "label_ce": loss, "context_signs": "plus", "epochs": 1, "batch_size": 80}
    run(trained, tmp_path / "prm", **options)
    sft, tokenizer = load_policy(str(trained.root / "sft"), "fp32").eval(), load_tokenizer(str(trained.root / "sft"))
    records, _ = split_by_question(load_steps([str(trained.root / "steps.jsonl")]), 512, seed=42)
    rows = list(tokenize_steps(records, tokenizer, StepLayout("plus"), max_length=64, max_prompt_length=40))
    plus, minus = tokenizer("+").input_ids + tokenizer("-").input_ids
    found, saved, reward = (
        [],
        load_policy(str(tmp_path / "prm"), "fp32").eval(),
        load_reward_model(str(tmp_path / "prm"), "fp32"),
    )
    with torch.no_grad():
        for number, row in enumerate(rows):
            ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
            at = [len(row["prompt_ids"]) + at for at in row["read_at"]]
            logits = sft(ids).logits[0, at]
            logits = logits if loss == "full" else logits[:, [plus, minus]]
            logprobs = logits.log_softmax(-1)[:, [plus, minus] if loss == "full" else [0, 1]]
            found += [-logprobs[k, int(y < 0.5)].item() for k, y in enumerate(row["labels"])]
            if number < 5:
                after = saved(ids).logits[0, at]
                scores = token_rewards(reward, ids, torch.ones_like(ids))[0, at]
                torch.testing.assert_close(scores, after[:, plus] - after[:, minus], rtol=1e-4, atol=1e-4)
                assert (after - sft(ids).logits[0, at]).abs().max() > 1e-3
    first = read_metrics(tmp_path / "prm/metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(sum(found) / len(found), rel=1e-4)


def test_outcomes_are_learned_as_solutions_of_one_step(trained, tmp_path):
    rows = [answer(i) for i in range(60)]
    lines = [
        {"question": row["prompt"], "answer": "\n".join(row["completions"]), "label": int(all(row["labels"]))} for row in rows
    ]
    (tmp_path / "outcomes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = run(trained, tmp_path / "orm", input="response", data=tmp_path / "outcomes.jsonl", epochs=1)
    assert (
        metrics["eval_steps_per_solution"] == 1.0
        and metrics["eval_always_plus_accuracy"] == 1 - metrics["eval_wrong_solutions"]
    )
    stored = json.loads((tmp_path / "orm/config.json").read_text())["segment_reward"]
    assert stored["max_steps"] == 1 and stored["segmenter"] == "step"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_margin": True}, "--use_margin has no effect without --input pairs"),
        ({"reward_level": "token"}, "--reward_level token has no effect with --input steps or response"),
        ({"agg_func": "sum"}, "--agg_func sum has no effect"),
        ({"input": "response", "max_steps": 3}, "--max_steps 3 has no effect with --input response"),
        ({"input": "response", "step_average": "solutions"}, "--step_average solutions has no effect without --input steps"),
        ({"input": "pairs", "context_signs": "plus"}, "--context_signs plus has no effect without --input steps or response"),
        ({"input": "pairs", "neutral": "good"}, "--neutral good has no effect"),
        ({"label_ce": "full"}, "--label_ce full has no effect without --head_type label"),
        ({"head_type": "label", "label_ce": "full", "lora_rank": 2}, "--label_ce full with --lora_rank"),
        ({"head_type": "label", "labels": ["good", "bad"]}, "--labels good bad: answers of one token each"),
        ({"input": "response"}, "learn the labels of steps with --input steps"),
        ({"skip_cut_step": True}, "--skip_cut_step has no effect"),
        ({"max_prompt_length": 63}, "--max_prompt_length 63 leave no room"),
        ({"limit": 9}, "9 rows on 9 questions are too few to split some off"),
        ({"every": 9}, "10 rows on 1 questions are too few to split some off"),
        ({"data": "nowhere.jsonl"}, "there is no file or folder 'nowhere.jsonl'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, reason, trained, tmp_path):
    labels = ["--labels", *options["labels"]] if "labels" in options else []
    argv = settings(trained.root, tmp_path / "out", **{name: value for name, value in options.items() if name != "labels"})
    with pytest.raises(UserError) as error:
        tiny_models.run_command(train_rm, "train-rm", argv + labels)
    assert reason in str(error.value)


def test_rows_of_steps_and_objectives_of_pairs_do_not_go_together(trained, tmp_path):
    def config(**kw) -> train_rm.Options:
        own = {"model": str(trained.root / "sft"), "data": [str(trained.root / "steps.jsonl")], "output_dir": str(tmp_path)}
        return train_rm.Options(**own, max_length=64, max_prompt_length=40, **kw)

    with pytest.raises(UserError, match="reads ref_logps, which rows of labelled steps do not have"):
        RewardTrainer.from_config(config(input="steps", step_average="solutions"), [TextRegularizer(kind="dpo")])
    with pytest.raises(UserError, match="reads steps, which pairs do not have"):
        RewardTrainer.from_config(config(), [StepLabels(average="solutions")])
