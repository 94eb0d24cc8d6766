"""The studies of noisy labels and of PPO's switches: their commands, parsed and not run, and what is counted in them."""

import json
import math
import random
import sys
from itertools import combinations
from pathlib import Path

import parsed_stages
import pytest
import tiny_models
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import levels  # noqa: E402
import noisy_labels  # noqa: E402
import ppo_switches  # noqa: E402
import preference_methods  # noqa: E402

from denserl.data.strength_file import MEAN  # noqa: E402

CURVE = ("true_reward", "kl", "normalised_reward", "response_length", "segments")


@pytest.fixture
def parsed(monkeypatch):
    """The commands that would have been run, each leaving what is read of it."""

    def leave(command, options):
        folder = Path(options.output_dir)
        if command == "evaluate":
            (folder / "results.json").write_text(json.dumps({"accuracy": 0.7 if "-noisy" in folder.name else 0.8}))
        if command == "strength":
            rows = [json.loads(line) for line in Path(options.data[0]).read_text().splitlines()]
            (folder / "strength.jsonl").write_text("".join(json.dumps({MEAN: i % 2 - 0.5}) + "\n" for i in range(len(rows))))
        if command == "bon":
            (folder / "results.json").write_text("{}")
            prompt = [{"role": "user", "content": "Topic: tea\nTone: kind"}]
            rows = [{"id": 0, "prompt": prompt, "response": text} for text in ("one", "two")]
            (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if command == "train-rm":
            (folder / "metrics.jsonl").write_text('{"eval_separation": 0.5}\n{"loss": 0.1}\n')
        if command == "train-ppo":
            rows = [{"step": step, **{f"eval_{name}": step / 20 for name in CURVE}} for step in (0, 40, 120)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    commands, stage = parsed_stages.recorder(leave)
    for module in (noisy_labels, preference_methods, levels):
        monkeypatch.setattr(module, "stage", stage)
    return commands


@pytest.mark.long
def test_strengths_are_of_the_pairs_that_are_trained_on(parsed, tmp_path, monkeypatch):
    monkeypatch.setattr(noisy_labels, "PAIRS", 20)
    monkeypatch.setattr(noisy_labels, "true_reward", lambda prompts, responses: list(map(float, range(len(responses)))))
    # Of what looks ahead the models are read, which are none here.
    options = noisy_labels.Options(seeds=[1], parts=[part for part in noisy_labels.PARTS if part != "ahead"], runs=tmp_path)
    noisy_labels.main(options)
    results = json.loads((tmp_path / "noisy_labels.json").read_text())
    assert set(results) == set(options.parts)
    trained = {Path(o.output_dir).name: o for command, o in parsed if command == "train-rm"}
    assert {trained[name.replace(" ", "-")].data[0] for name in noisy_labels.USES} == {str(tmp_path / "seed1/fair/noisy.jsonl")}
    assert set(results["uses"]) - {"seeds"} == {
        *noisy_labels.USES,
        *(f"{labels} labels{passes}" for labels in ("right", "wrong") for passes in ("", ", 2 passes")),
    }
    done = len(parsed)
    noisy_labels.main(options)
    assert len(parsed) == done


@pytest.mark.long
def test_every_switch_is_tried_at_every_level(parsed, tmp_path, monkeypatch):
    monkeypatch.setattr(levels, "draw", lambda *_: None)
    monkeypatch.setattr(levels, "repeated", lambda path: dict.fromkeys((0, 40, 120), 0.0))
    options = ppo_switches.Options(seeds=[0], runs=tmp_path)
    for name, part in ppo_switches.PARTS.items():
        assert set(part(options)["0.05"]) == {f"{name}, {switch}" for switch in ppo_switches.SWITCHES}
    runs = [o for command, o in parsed if command == "train-ppo"]
    assert len(runs) == 3 * len(ppo_switches.SWITCHES) and {o.iterations for o in runs} == {120}


def test_separation_is_of_the_scores_at_last_tokens():
    """Two prompts with META's four responses each, one by one, in float64 and as the formula stands."""
    model = tiny_models.classifier("llama").double()
    rows = tiny_models.random_rows([5, 9, 3, 7, 4, 4, 8, 6])
    found = noisy_labels.mean_separation(model, rows).item()
    with torch.no_grad():
        scores = [model(torch.tensor([row])).logits[0, 0].item() for row in rows]
    sums = [sum(1 / (1 + math.exp(-abs(a - b))) for a, b in combinations(four, 2)) for four in (scores[:4], scores[4:])]
    assert found == pytest.approx(2 / 16 * sum(sums) / 2, abs=1e-6)


def test_pairs_by_truth_have_the_better_sample_chosen(monkeypatch):
    monkeypatch.setattr(noisy_labels, "true_reward", lambda prompts, responses: [float(text) for text in responses])
    samples = [{"id": i, "prompt": [{"content": str(i)}], "response": text} for i in (0, 1) for text in ("1", "3", "3")]
    pairs = list(noisy_labels.pairs_by_truth(samples, random.Random(0)))
    assert len(pairs) == 6 and {(row["chosen"], row["rejected"]) for row in pairs} == {("3", "1")}
