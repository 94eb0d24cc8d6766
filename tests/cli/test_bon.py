"""denserl bon on tiny models: scores by hand from the file of samples, other runs on the same samples, stops and mistakes."""

import functools
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import tiny_models
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification

from denserl.cli import bon, serve_rewards
from denserl.data import templates
from denserl.data.chat import encode_prompt
from denserl.data.responses import Responses
from denserl.data.schemas import BadRow
from denserl.data.step_records import load_steps
from denserl.errors import Stopped, UserError
from denserl.evaluation.best_of_n import unbiased_curve
from denserl.models.reward_models import new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards import ranking
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.pair_model import PairModel
from denserl.rewards.sources.reading import response_text
from denserl.rollouts.policy import PolicySampler
from denserl.steps import StepRule, step_spans

sys.path.append(str(Path(__file__).parent.parent / "rewards"))
from reward_folders import save_pair_model  # noqa: E402

PROMPTS = ["The kettle", "A quiet river, why?", "Tell me."]
MOMENTS = {"proxy": (0.2, 0.5), "second": (-1.0, 2.0), "gold": (None, None)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A policy, three reward models of the bandit level, and prompts."""
    root = tmp_path_factory.mktemp("bon")
    sft = tiny_models.save_language_model(root / "sft", stops=60)
    tokenizer = load_tokenizer(str(sft))
    for seed, (name, (mean, std)) in enumerate(MOMENTS.items()):
        model = new_reward_model(str(sft), "fp32", seed=seed)
        with torch.no_grad():
            model.score.weight.mul_(20)
        model.config.segment_reward, model.config.mean, model.config.std = {"entropy_threshold": 1000.0}, mean, std
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return root


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture
def run(folder, tmp_path):
    """Runs bon: reward models by name, options -> its results and its output folder."""

    def best(proxies: str = "proxy", name: str = "run", **options) -> tuple[dict, Path]:
        settings = {
            "model": folder / "sft",
            "data": folder / "prompts.jsonl",
            "samples": 4,
            "max_new_tokens": 8,
            "sample_batch_size": 1,
            "output_dir": tmp_path / name,
            **({} if "gold_reward_model" in options else {"true_reward": "tiny_models:letters"}),
        }
        argv = tiny_models.as_argv(settings | options)
        argv += ["--reward_model", *(str(folder / proxy) for proxy in proxies.split())] if proxies else []
        return tiny_models.run_command(bon, "bon", argv), tmp_path / name

    return best


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_hand(model: Path, sample: dict) -> float:
    """The stock classifier's score of a sample's very tokens, at the last of them, whether or not it ended."""
    ids = sample["prompt_ids"] + sample["response_ids"]
    classifier = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        return classifier(input_ids=torch.tensor([ids])).logits.item()


def test_scores_and_results_are_of_the_samples(run, folder):
    found, output = run("proxy second", ensemble="min", gold_reward_model=folder / "gold")
    samples, scores = lines(output / "samples.jsonl"), lines(output / "scores.jsonl")
    assert [(s["id"], s["sample"]) for s in samples] == [(row, number) for row in range(3) for number in range(4)]
    assert [s["prompt"] for s in samples] == [[{"role": "user", "content": text}] for text in PROMPTS for _ in range(4)]
    assert len({s["response"] for s in samples}) > 4 and {s["ended"] for s in samples} == {True, False}
    tokenizer = load_tokenizer(str(folder / "sft"))
    for s in samples:
        assert tokenizer.decode(s["response_ids"], skip_special_tokens=True) == s["response"]
        assert s["prompt_ids"] == encode_prompt(tokenizer, s["prompt"])
    for sample, score in zip(samples, scores, strict=True):
        members = [(by_hand(folder / name, sample) - MOMENTS[name][0]) / MOMENTS[name][1] for name in ("proxy", "second")]
        assert (score["id"], score["sample"]) == (sample["id"], sample["sample"])
        assert score["proxy"] == pytest.approx(min(members), abs=1e-3)
        assert score["gold"] == pytest.approx(by_hand(folder / "gold", sample), abs=1e-3)
    assert json.loads((output / "results.json").read_text()) == found
    assert (found["prompts"], found["samples"], found["n"]) == (3, 4, [1, 2, 3, 4])
    assert found["ended"] == sum(s["ended"] for s in samples) / 12
    # The best of all four samples of each prompt, and the mean of all.
    by_prompt = [scores[first : first + 4] for first in (0, 4, 8)]
    chosen = [max(of_prompt, key=lambda score: score["proxy"])["gold"] for of_prompt in by_prompt]
    assert found["gold"][-1] == pytest.approx(sum(chosen) / 3)
    assert found["gold"][0] == pytest.approx(sum(score["gold"] for score in scores) / 12)
    with Image.open(output / "bon.png") as plot:
        assert min(plot.size) > 200


def test_several_proxies_are_compared_on_the_same_samples(run, tmp_path):
    shared = tmp_path / "shared/samples.jsonl"
    _, first = run("proxy", "first", samples_file=shared)
    before = shared.read_bytes()
    found, second = run("second", "second", samples_file=shared)
    assert shared.read_bytes() == before and not (second / "samples.jsonl").exists()
    golds = [[score["gold"] for score in lines(output / "scores.jsonl")] for output in (first, second)]
    assert golds[0] == golds[1] == [len(s["response"]) + 0.1 * len(s["prompt"][-1]["content"]) for s in lines(shared)]
    proxies = [score["proxy"] for score in lines(second / "scores.jsonl")]
    curves = [unbiased_curve(proxies[first : first + 4], golds[1][first : first + 4]) for first in (0, 4, 8)]
    assert found["gold"] == pytest.approx([sum(of_n) / 3 for of_n in zip(*curves, strict=True)])


def test_a_model_of_steps_is_a_proxy(run, folder):
    """The tokens' own ids are read: the stock class at each of the ends of the text's steps."""
    shutil.copytree(folder / "proxy", folder / "judge")
    config = json.loads((folder / "judge/config.json").read_text()) | {"mean": None, "std": None}
    config["segment_reward"] = {"scores": "logit", "segmenter": "step", "step_separator": [*"_=(Xa"], "agg_func": "min"}
    (folder / "judge/config.json").write_text(json.dumps(config))
    found, output = run("judge", aggregate="mean_logit")
    tokenizer, several = load_tokenizer(str(folder / "sft")), 0
    for sample, score in zip(lines(output / "samples.jsonl"), lines(output / "scores.jsonl"), strict=True):
        content = sample["response_ids"][: -1 if sample["ended"] else None]
        ends = step_spans(content, response_text(tokenizer), StepRule(tuple("_=(Xa")))[1]
        logits = [by_hand(folder / "judge", {**sample, "response_ids": content[:end]}) for end in ends]
        several += len(logits) > 1
        assert score["proxy"] == pytest.approx(sum(logits) / max(len(logits), 1), abs=1e-3)
    assert several > 3 and found["samples"] == 4


def test_a_model_that_compares_is_a_proxy(run, folder):
    save_pair_model(folder / "compares", folder / "sft")
    found, output = run("compares", rank="wins")
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (output / "scores.jsonl").read_text().splitlines()]
    model, chances = PairModel.load(str(folder / "compares")), {}
    for prompt in range(len(PROMPTS)):
        own = samples[4 * prompt : 4 * prompt + 4]
        for one, other in itertools.permutations(own, 2):
            ends = one["ended"], other["ended"]
            pair = model.encode(one["prompt"], one["response"], other["response"], ends)
            chances[prompt, one["sample"], other["sample"]] = ranking.chances(model.score([pair]))[0]

    # The best of a subset wins most of its meetings there, of equals the first.
    def best_of(prompt: int, subset: tuple) -> int:
        def wins(i: int) -> float:
            return sum((chances[prompt, i, j] > 0.5) + 0.5 * (chances[prompt, i, j] == 0.5) for j in subset if j != i)

        return max(subset, key=lambda i: (wins(i), -i))

    gold = [[row["gold"] for row in rows[4 * prompt : 4 * prompt + 4]] for prompt in range(len(PROMPTS))]
    curve = [
        statistics.fmean(
            gold[prompt][best_of(prompt, subset)]
            for prompt in range(len(PROMPTS))
            for subset in itertools.combinations(range(4), n)
        )
        for n in range(1, 5)
    ]
    assert found["rank"] == "wins" and found["gold"] == pytest.approx(curve)
    assert all(row["proxy"] in (0, 0.5, 1, 1.5, 2, 2.5, 3) for row in rows)


def test_a_model_that_compares_has_no_score_of_one_response(run, folder, tmp_path):
    save_pair_model(folder / "gold_compares", folder / "sft")
    with pytest.raises(UserError, match="compares two responses, and has no score of one alone"):
        run("proxy", gold_reward_model=folder / "gold_compares")
    with pytest.raises(UserError, match="--rank wins has no effect"):
        run("proxy", rank="wins")
    for several in ("gold_compares proxy", "proxy gold_compares"):
        with pytest.raises(UserError, match="are no ensemble"):
            run(several, name="mixed")
    with pytest.raises(UserError, match="--segmenter peak has no effect: .*gold_compares compares whole responses"):
        run("gold_compares", name="mixed", segmenter="peak")
    assert not (tmp_path / "mixed" / "samples.jsonl").exists()
    with pytest.raises(UserError, match="has no score of one alone"):
        serve_rewards.make_service(serve_rewards.Options(reward_model=[str(folder / "gold_compares")]))


def test_a_stopped_run_goes_on_and_needs_to_be_asked_to(run, monkeypatch, tmp_path):
    whole, _ = run(name="whole")
    sample = PolicySampler.__call__

    def signalled(self, prompts, streams):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # another thread hears it
        return sample(self, prompts, streams)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped with 8 responses still to sample"):
        patch.setattr(PolicySampler, "__call__", signalled)
        run()
    assert len(lines(tmp_path / "run/samples.jsonl")) == 4
    with pytest.raises(UserError, match="samples.jsonl holds 4 of the 12 samples that are asked for") as error:
        run()
    assert "--resume" in error.value.fix
    assert run(resume=True)[0] == whole
    assert (tmp_path / "run/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()
    # All are there: nothing is sampled, only scored.
    monkeypatch.setattr(PolicySampler, "__call__", None)
    assert run()[0] == whole
    with pytest.raises(UserError, match="seed: 42, now 3; temperature: 0.7, now 1.5"):
        run(seed=3, temperature=1.5)


def test_samples_are_added_and_scored_with_the_date_that_they_were_drawn_with(folder, run, tmp_path, monkeypatch):
    dated = shutil.copytree(folder / "sft", tmp_path / "dated")
    template = dated / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') + '\n' }}" + template.read_text())
    monkeypatch.setattr(templates, "today", lambda: "2026-03-05")
    _, output = run(model=dated, samples=2)
    monkeypatch.setattr(templates, "today", lambda: "2026-03-06")
    _, output = run(model=dated, samples=3, resume=True)
    tokenizer = load_tokenizer(str(dated), {"date": "2026-03-05"})
    samples = lines(output / "samples.jsonl")
    assert len(samples) == 3 * len(PROMPTS)
    assert all(s["prompt_ids"] == encode_prompt(tokenizer, s["prompt"]) for s in samples)
    with pytest.raises(UserError, match="template_date: 2026-03-05, now 2026-03-07"):
        run(model=dated, samples=3, resume=True, template_date="2026-03-07")


def test_steps_are_labelled_by_what_completions_of_them_come_to(run, tmp_path):
    (tmp_path / "verifier.py").write_text("def even(prompts, texts):\n    return [1 - len(text) % 2 for text in texts]\n")
    policy = tiny_models.save_language_model(tmp_path / "long", stops=15)
    options = {"true_reward": f"{tmp_path}/verifier.py:even", "step_pattern": "[a-z]", "continue_steps": 3}
    options |= {"model": policy, "max_new_tokens": 16}
    found, output = run("", **options)
    decode = functools.partial(load_tokenizer(str(policy)).decode, skip_special_tokens=True)
    completions, rows = defaultdict(list), lines(output / "steps.jsonl")
    for completion in lines(output / "continuations.jsonl"):
        completions[tuple(completion["prompt_ids"])].append(completion["response_ids"])
    cut = [(s, s["response_ids"][: len(s["response_ids"]) - s["ended"]]) for s in lines(output / "samples.jsonl")]
    steps_of = [[step.strip() for step in re.split("[a-z]", decode(ids)) if step.strip()] for _, ids in cut]
    assert [row["steps"] for row in rows] == [steps for steps in steps_of if steps]
    for (sample, ids), row in zip(itertools.compress(cut, steps_of), rows, strict=True):
        begun = [(ids[:size], completions[tuple(sample["prompt_ids"] + ids[:size])]) for size in range(1, len(ids))]
        even = [[len(decode(start + added)) % 2 == 0 for added in all_added] for start, all_added in begun if all_added]
        final = float(len(sample["response"]) % 2 == 0)
        assert all(len(judged) == 3 for judged in even) and row["final"] == final
        assert row["labels"] == [sum(judged) / 3 for judged in even] + [final if sample["ended"] else None]
    labels = [label for row in rows for label in row["labels"] if label is not None]
    assert {0, 1, 1 / 3, 2 / 3} == set(labels) and len(labels) > len(rows)
    means = {"right": statistics.mean(row["final"] for row in rows), "mean_label": statistics.mean(labels)}
    assert found.items() >= {"solutions": len(rows), "labelled_steps": len(labels)}.items()
    assert {name: found[name] for name in means} == pytest.approx(means)
    assert load_steps([str(output / "steps.jsonl")])["steps"][:] == [row["steps"] for row in rows]
    before = (output / "continuations.jsonl").read_bytes()
    run("", step_labels="hard", **options)
    assert (output / "continuations.jsonl").read_bytes() == before
    hard = [[label and float(label > 0) for label in row["labels"]] for row in rows]
    assert [row["labels"] for row in lines(output / "steps.jsonl")] == hard


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proxies": ""}, "--reward_model names no model"),
        ({"continue_steps": 2, "gold_reward_model": "rm"}, "a function must say which completions are right"),
        ({"proxies": "", "continue_steps": 2, "read_at": "last_token"}, "--read_at last_token has no effect without"),
        ({"step_labels": "hard"}, "--step_labels hard has no effect without"),
        ({"continue_steps": 1, "step_pattern": "[a-z]", "segmenter": "step"}, "letters returned .*, from 0 to 1"),
        ({"true_reward": None}, "one must say the gold reward"),
        ({"gold_reward_model": "/nowhere/rm"}, "no model folder '/nowhere/rm'"),
        ({"true_reward": "no_such_module:f"}, "no_such_module"),
        ({"true_reward": "builtins:zip"}, "--true_reward builtins:zip returned .* for the response"),
        ({"true_reward": "tiny_models:unbounded"}, "--true_reward tiny_models:unbounded returned inf for the response"),
        ({"samples_file": "/dev/null/samples.jsonl"}, "--samples_file /dev/null"),
        ({"samples_file": "/"}, "--samples_file / is a folder"),
    ],
)
def test_mistakes_are_named(options, message, run):
    with pytest.raises(UserError, match=message):
        run(**options)


def test_a_sample_that_a_template_refuses_is_no_traceback(run, monkeypatch):
    def refuse(self, responses, tokenizer):
        raise BadRow("the chat template refuses the messages: no")

    monkeypatch.setattr(RewardScorer, "of_responses", refuse)
    with pytest.raises(UserError, match="proxy: a sample cannot be scored: the chat template refuses the messages: no"):
        run(samples=1)


def test_a_gold_model_of_another_tokenizer_reads_the_text_and_closes_what_ended_alone(run, folder, tmp_path):
    """Ids by its own template, ChatML written out; a response that was cut off is not closed."""
    other = Path(shutil.copytree(folder / "gold", tmp_path / "other"))
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<|endoftext|>"', '"<|eot|>"'))
    _, output = run(gold_reward_model=other)
    tokenizer = load_tokenizer(str(other))
    for sample, score in zip(lines(output / "samples.jsonl"), lines(output / "scores.jsonl"), strict=True):
        start = f"<|im_start|>user\n{sample['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        whole = start + sample["response"] + ("<|im_end|>" if sample["ended"] else "")
        ids = tokenizer(whole, add_special_tokens=False).input_ids
        expected = by_hand(other, {"prompt_ids": ids, "response_ids": []})
        assert score["gold"] == pytest.approx(expected, abs=1e-3)


def test_samples_of_version_0_1_are_sampled_anew(run, tmp_path):
    _, output = run()
    rows = lines(output / "samples.jsonl")
    without = [{key: value for key, value in row.items() if not key.endswith("_ids")} for row in rows]
    (output / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in without))
    with pytest.raises(UserError, match="holds a row that is no sample") as error:
        run()
    assert "sample anew" in error.value.fix


def test_both_golds_are_one_too_many(run, folder):
    with pytest.raises(UserError, match="exactly one of the two"):
        run(gold_reward_model=folder / "gold", true_reward="tiny_models:letters")


def test_a_proxy_whose_sft_model_is_gone_is_read_with_one_that_is_named(run, folder, tmp_path):
    settings = {"entropy_threshold": 4.0, "sft_model": "/gone/sft"}
    shutil.copytree(folder / "proxy", folder / "moved")
    config = json.loads((folder / "moved/config.json").read_text())
    (folder / "moved/config.json").write_text(json.dumps({**config, "segment_reward": settings}))
    with pytest.raises(UserError, match="/moved/config.json names /gone/sft as the SFT model") as error:
        run("moved")
    assert error.value.fix == "give it with --sft_model, or correct it there"
    assert not (tmp_path / "run/samples.jsonl").exists()  # it is found before the sampling
    _, output = run("moved", "named", sft_model=folder / "sft")
    columns = ("prompt", "response", "prompt_ids", "response_ids", "ended")
    record = Responses(*([sample[name] for sample in lines(output / "samples.jsonl")] for name in columns))
    scorer = RewardScorer([str(folder / "moved")], sft_model=str(folder / "sft"))
    expected = scorer.of_responses(record, load_tokenizer(str(folder / "sft")))
    assert [row["proxy"] for row in lines(output / "scores.jsonl")] == pytest.approx(expected.tolist(), abs=1e-5)
