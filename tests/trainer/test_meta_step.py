"""The meta step: a worked example, its rounding, which responses are drawn; and train-rm's steps against a plain loop."""

import json
import shutil
from pathlib import Path

import pytest
import reference_loops as loops
import tiny_models
import torch
from datasets import Dataset
from test_reward_trainer import files, same_bits, scores_of, tokenised, train  # noqa: F401
from test_supervised_trainer import spoiled
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from denserl.data.responses import encode
from denserl.errors import UserError
from denserl.models.loading import load_policy
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.objectives import bradley_terry, separation
from denserl.trainer.lookahead import Moved, RankGradient, rounded
from denserl.trainer.meta_step import MetaSet, MetaStep
from denserl.trainer.trackers import read_metrics

MANY, LR = 3, 0.5


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


def nothing() -> None:
    pass


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.long)


def test_the_worked_example():
    """A linear reward, S = (1 0) (0 1) (1 1), the pairs (1 2) over (2 0) and (0 1) over (1 -1)."""
    weight = nn.Parameter(torch.tensor([0.5, -0.25]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    responses = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    chosen, rejected = torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([[2.0, 0], [1, -1]])
    slope, value = RankGradient([weight]), separation((responses @ weight)[None]).mean()
    slope.add(value)
    (direction,) = slope.total()
    assert value.item() == pytest.approx(0.41418101, abs=1e-6) and weight.grad is None
    assert direction.tolist() == pytest.approx([0.10064416, -0.10311757], abs=1e-6)
    moved = Moved([weight], [direction], 0.5, 0, nothing)
    assert weight.tolist() == pytest.approx([0.55032208, -0.30155879], abs=1e-6)
    loss = bradley_terry(chosen @ weight, rejected @ weight)
    loss.backward()
    assert loss.item() == pytest.approx(1.42769412, abs=1e-6)
    assert weight.grad.tolist() == pytest.approx([0.76013862, -1.52027724], abs=1e-6)
    moved.back()
    assert weight.tolist() == [0.5, -0.25]
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.42398614, -0.09797228], abs=1e-6)


def test_terms_are_added_up_and_weights_that_none_reads_stay():
    one, other = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))
    slope = RankGradient([one, other])
    for factor in (1.0, 10.0):
        slope.add((factor * one).sum())
    assert [x.tolist() for x in slope.total()] == [[11, 11], [0]]


def test_bf16_keeps_steps_that_rounding_would_lose_and_goes_back_to_the_bit():
    generator = torch.Generator().manual_seed(1)
    start = (torch.randn(400_000, generator=generator).abs() + 0.1).bfloat16()
    weight, slope = nn.Parameter(start.clone()), torch.randn(400_000, generator=generator)
    step = 1e-5
    assert torch.equal((start.float() + step * slope).bfloat16(), start), "each is below half of what bf16 tells apart"
    moved = Moved([weight], [slope.clone()], step, 3, nothing)
    gone = weight.detach().double() - start.double()
    # Rounding up by u has the chance step / u, so that the projection on the slope has the variance sum u step |slope|^3.
    unit = 2.0 ** (start.double().abs().log2().floor() - 7)
    spread = (unit * step * slope.double().abs() ** 3).sum().sqrt()
    wanted = step * (slope.double() ** 2).sum()
    assert abs((gone * slope).sum() - wanted) < 5 * spread and 5 * spread < 0.5 * wanted
    again = nn.Parameter(start.clone())
    Moved([again], [slope.clone()], step, 3, nothing)
    assert torch.equal(again, weight), "the seed says which are rounded up"
    moved.back()
    assert torch.equal(weight, start)


def test_what_is_no_number_stays_none():
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    found = rounded(values, torch.bfloat16, torch.Generator().manual_seed(0))
    assert found[0].isnan() and found[1:].tolist() == [float("inf"), -float("inf"), 1]


def test_what_is_drawn_is_said_by_seed_and_step():
    rows = [list(range(10 * prompt, 10 * prompt + 3 + prompt)) for prompt in range(5)]
    meta = MetaStep(MetaSet(Dataset.from_dict({}), rows), lr=1, many=3, prompts=2, at_once=1, seed=7)
    again = MetaStep(MetaSet(Dataset.from_dict({}), rows), lr=1, many=3, prompts=2, at_once=4, seed=7)
    drawn = [meta.drawn(step) for step in range(40)]
    assert [again.drawn(step) for step in range(20, 40)] == drawn[20:]
    flat = [each for step in drawn for each in step]
    # Each pass has every prompt once; all responses have their turn.
    assert all(sorted(each[0] // 10 for each in flat[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 80, 5))
    assert all(len({*each}) == 3 for each in flat) and {row for each in flat for row in each} == {*sum(rows, [])}
    few = MetaStep(MetaSet(Dataset.from_dict({}), rows), lr=1, many=3, prompts=16, at_once=1, seed=7)
    assert len(few.drawn(0)) == 5


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    """Three responses, one of them cut off, to each of three prompts, a row each."""
    words = "the old kettle hums in a small garden while rain falls on stone".split()
    rows = [
        {"prompt": f"Boat {i}?", "response": " ".join(words[i + k : i + 4 * k + 2]), "ended": k != 1}
        for i in range(3)
        for k in range(MANY)
    ]
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def separation_of(model, folder, samples: Path, threshold: float) -> torch.Tensor:
    """J, the mean over prompts, a response and a pair at a time."""
    tokenizer, policy = load_tokenizer(str(folder / "sft")), load_policy(str(folder / "sft"), "fp32").eval()
    scores: dict[str, list] = {}
    for row in map(json.loads, samples.read_text().splitlines()):
        one = encode(tokenizer, [{"role": "user", "content": row["prompt"]}], row["response"], 64, row["ended"])
        ids = torch.tensor([one.prompt_ids + one.response_ids])
        with torch.no_grad():
            logits = policy(ids).logits[0, len(one.prompt_ids) - 1 : -1]
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        hidden = model.base_model(input_ids=ids).last_hidden_state[0, len(one.prompt_ids) :].double()
        ended = torch.tensor([row["ended"]])
        (segments,) = loops.segment(entropy[None], torch.ones(1, len(entropy)), threshold, ended)
        values = hidden @ model.score.weight[0].double()
        scores.setdefault(row["prompt"], []).append(torch.stack([values[tokens[-1]] for tokens in segments]).mean())
    total = 0
    for each in scores.values():
        total = total + sum(torch.sigmoid((each[i] - each[j]).abs()) for i in range(MANY) for j in range(i)) * 2 / MANY**2
    return total / len(scores)


@pytest.mark.parametrize(
    "threshold, options",
    [(5.3, {}), slow(1000.0, {"reward_level": "bandit", "entropy_threshold": None, "zero_stage": 2, "micro_batch_size": 1})],
)
def test_the_first_step_is_that_of_a_loop(threshold, options, files, samples, train):  # noqa: F811
    """From text on: J, the loss where the weights would be, its gradient there; and J of what is written."""
    meta = {"meta_data": samples, "meta_lr": LR, "meta_samples": MANY, "meta_eval": samples}
    output, metrics = train(**meta, **options)
    model = new_reward_model(str(files / "sft"), "fp32", seed=42)
    value = separation_of(model, files, samples, threshold)
    value.backward()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.grad, alpha=LR)
            p.grad = None
    chosen, rejected = scores_of(model, tokenised(files), threshold)
    loss = -torch.log(torch.sigmoid(chosen - rejected)).mean()
    loss.backward()
    norm = sum((p.grad.double() ** 2).sum().item() for p in model.parameters()) ** 0.5
    first = read_metrics(output / "metrics.jsonl")[0]
    assert first["separation"] == pytest.approx(value.item(), abs=1e-6)
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-3)
    written = separation_of(load_reward_model(str(output), "fp32"), files, samples, threshold)
    assert metrics["eval_separation"] == pytest.approx(written.item(), abs=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", slow("bf16")])
def test_a_step_of_no_length_is_plain_training_to_the_bit(dtype, samples, train):  # noqa: F811
    options = {"epochs": 3, "head_type": "mlp", "dtype": dtype}
    plain, _ = train("plain", **options)
    still, _ = train("still", meta_data=samples, meta_lr=0, meta_samples=MANY, **options)
    assert same_bits(plain, still)
    rows = read_metrics(plain / "metrics.jsonl"), read_metrics(still / "metrics.jsonl")
    assert all(row.pop("separation") > 0 for row in rows[1] if "grad_norm" in row)
    assert [{k: v for k, v in row.items() if "second" not in k} for row in rows[0]] == [
        {k: v for k, v in row.items() if "second" not in k} for row in rows[1]
    ]


@pytest.mark.parametrize("dtype", [slow("fp32"), "bf16"])
def test_a_resumed_run_ends_with_the_same_bits(dtype, samples, train, tmp_path):  # noqa: F811
    """Which responses are drawn, and how bf16 weights are rounded, follows from the step."""
    options = {"meta_data": samples, "meta_lr": LR, "meta_samples": MANY, "meta_prompts": 2, "dtype": dtype}
    options |= {"epochs": 3, "save_steps": 1, "save_total_limit": 9}
    whole, _ = train("whole", **options)
    half = "checkpoints/step-000001"
    shutil.copytree(whole / half, tmp_path / "again" / half)
    shutil.copy(whole / "metrics.jsonl", tmp_path / "again")
    again, _ = train("again", resume=True, **options)
    assert same_bits(whole, again)
    first, other = (
        [row["separation"] for row in read_metrics(run / "metrics.jsonl") if "separation" in row] for run in (whole, again)
    )
    assert len(first) == 3 and first == other


@pytest.mark.parametrize("options", [slow({}), slow({"zero_stage": 3}), {"dtype": "bf16"}])
def test_a_skipped_step_leaves_the_weights_as_they_were(options, files, samples, train, tmp_path, monkeypatch):  # noqa: F811
    """To the bit."""
    spoiled(monkeypatch, set(range(8)))
    with pytest.raises(UserError, match="1 updates in a row were not finite"):
        train("rm", meta_data=samples, meta_lr=LR, meta_samples=MANY, max_skipped_steps=1, **options)
    unset_hf_deepspeed_config()
    saved = tiny_models.checkpoint_weights(tmp_path / "rm/checkpoints/step-000001")
    before = new_reward_model(str(files / "sft"), options.get("dtype", "fp32"), seed=42).state_dict()
    assert saved.keys() == before.keys() and all(torch.equal(saved[name], tensor.float()) for name, tensor in before.items())


@pytest.mark.parametrize(
    "options, found",
    [
        ({"input": "steps"}, "meta_data.* has no effect without --input pairs or ratings"),
        ({"input": "pair", "head_type": "label"}, "meta_data.* has no effect without --input pairs or ratings"),
        ({"meta_data": None, "meta_lr": 0.1}, "--meta_lr 0.1 has no effect without --meta_data"),
        ({"meta_data": None, "meta_samples": 2}, "--meta_samples 2 has no effect without --meta_data or --meta_eval"),
        ({"meta_samples": 9}, "its prompt has 3 responses, of which 9"),
    ],
)
def test_what_is_refused(options, found, samples, train):  # noqa: F811
    with pytest.raises(UserError, match=found):
        train(**{"meta_data": samples, **options})
