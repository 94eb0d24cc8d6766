"""denserl answer on a tiny policy: what each answer is drawn from, by hand; other batches and stops; files, and mistakes."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from denserl.cli import answer, judge
from denserl.cli.options import parse
from denserl.errors import UserError
from denserl.evaluation.policies.files import read_answers, read_questions
from denserl.models.loading import load_policy
from denserl.models.tokenizers import load_tokenizer
from denserl.rollouts.policy import PolicySampler
from denserl.streams import Purpose, stream

TURNS = [("writing", "The kettle", "Why?"), ("math", "A quiet river", "And then?"), ("stem", "Tell me.", "Once more.")]
TEMPERATURES = {"writing": 0.7, "math": None, "stem": 0.1}
STOPS = 60  # tokens that end an answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A policy and questions of MT-Bench."""
    root = tmp_path_factory.mktemp("answer")
    tiny_models.save_language_model(root / "policy", stops=STOPS)
    rows = [{"question_id": 81 + n, "category": kind, "turns": turns} for n, (kind, *turns) in enumerate(TURNS)]
    write(root / "mtbench.jsonl", *rows)
    return root


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture
def run(folder, tmp_path):
    """Runs answer: suite, name of the output folder, options -> the account and the folder."""

    def answered(suite: str = "mtbench", to: str = "run", **options) -> tuple[dict, Path]:
        settings = {"model": folder / "policy", "questions": folder / "mtbench.jsonl", "max_new_tokens": 7}
        argv = [suite, *tiny_models.as_argv({**settings, "output_dir": tmp_path / to, **options})]
        return tiny_models.run_command(answer, "answer", argv), tmp_path / to

    return answered


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(folder: Path) -> dict[str, bytes]:
    """The files of samples and answers."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


def drawn(model, ids: list[int], ends: set[int], temperature: float | None, numbers: np.ndarray) -> list[int]:
    """Tokens of a response, one after the other, each from a forward pass of the whole row: the first whose cumulative
    probability exceeds the next number, or without a temperature the most probable."""
    row = list(ids)
    for number in numbers:
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0, -1].double()
        if temperature is None:
            row.append(int(logits.argmax()))
        else:
            cumulative = (logits / temperature).softmax(0).cumsum(0).tolist()
            row.append(next(token for token, total in enumerate(cumulative) if total > number))
        if row[-1] in ends:
            break
    return row[len(ids) :]


def test_both_turns_are_drawn_from_the_conversation_at_the_temperature_of_the_category(run, folder):
    account, output = run(samples=2, seed=5)
    tokenizer, model = load_tokenizer(str(folder / "policy")), load_policy(str(folder / "policy"), "fp32").eval()
    ends = {tokenizer.eos_token_id, *range(len(tokenizer) - STOPS, len(tokenizer))}
    found = read_answers("mtbench", str(output)).by_question
    cut = []
    for row, (kind, *turns) in enumerate(TURNS):
        for sample in range(2):
            messages, texts, unfinished = [], [], []
            for turn, text in enumerate(turns):
                messages.append({"role": "user", "content": text})
                ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
                numbers = np.random.default_rng(stream(5, Purpose.ANSWERS, row, turn, sample)).random(7)
                response = drawn(model, ids, ends, TEMPERATURES[kind], numbers)
                unfinished.append(response[-1] not in ends)
                texts.append(tokenizer.decode(response, skip_special_tokens=True).strip())
                messages.append({"role": "assistant", "content": texts[-1]})
            given = found[81 + row][sample]
            assert (given.turns, given.truncated) == (tuple(texts), tuple(unfinished))
            cut.append(unfinished)
    assert {True, False} == {end for ends in cut for end in ends} and account["truncated"] == sum(map(any, cut)) / 6
    # The most likely tokens are the same each time, others are not.
    assert found[82][0].turns == found[82][1].turns and found[81][0].turns != found[81][1].turns
    assert account["files"] == ["policy.jsonl", "policy-s1.jsonl"]
    settings = {
        "suite": "mtbench",
        "name": "policy",
        "seed": 5,
        "temperature": "by category",
        "max_new_tokens": 7,
        "samples": 2,
    }
    assert account.items() >= settings.items() and json.loads((output / "answers.json").read_text()) == account


def test_answers_are_the_same_in_any_batch_and_after_a_stop_at_any_place(run, tmp_path, monkeypatch):
    _, whole = run(samples=2)
    assert written(run(to="one", samples=2, sample_batch_size=1)[1]) == written(whole)
    # As a kill leaves it: in the middle of a line of either turn, before answers are written.
    for turn, share in ((1, 0.5), (2, 0.3)):
        output = shutil.copytree(whole, tmp_path / f"stopped-{turn}")
        for path in [*output.glob("policy*"), *(output / f"samples-turn-{later}.jsonl" for later in range(turn + 1, 3))]:
            path.unlink()
        samples = output / f"samples-turn-{turn}.jsonl"
        os.truncate(samples, int(samples.stat().st_size * share))
        run(to=output.name, samples=2)
        assert written(output) == written(whole)
    # More samples leave the first ones as they are; and where all are there, none is drawn.
    _, fewer = run(to="fewer")
    before = written(fewer)["policy.jsonl"]
    run(to="fewer", samples=2)
    answers = {name: content for name, content in written(fewer).items() if name.startswith("policy")}
    assert answers["policy.jsonl"] == before and answers.items() <= written(whole).items()
    monkeypatch.setattr(PolicySampler, "__call__", None)
    run(to="fewer", samples=2)
    with pytest.raises(UserError, match="seed: 42, now 3"):
        run(to="fewer", samples=2, seed=3)


def test_each_suite_has_files_of_its_own(run, folder, tmp_path):
    asked = {
        "alpacaeval": {"instruction": "Say hi", "dataset": "koala", "output": "Hello", "generator": "baseline"},
        "arenahard": {"uid": "a", "category": "arena-hard-v0.1", "cluster": "c", "prompt": "Sort it."},
        "prompts": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"}]},
    }
    rows = {}
    for suite, row in asked.items():
        options = {"questions": write(tmp_path / "q.jsonl", row), "name": "mine"}
        account, output = run(suite, suite, samples=2, temperature=1.5, **options)
        assert read_questions(suite, str(options["questions"]))[0].id in read_answers(suite, str(output)).by_question
        texts = [(output / name).read_text() for name in account["files"]]
        rows[suite] = [json.loads(part) for text in texts for part in ([text] if text[0] == "[" else text.splitlines())]
    (first,), (second,) = rows["alpacaeval"]
    assert first.keys() == {"instruction", "dataset", "output", "generator", "truncated"}
    assert (first["generator"], second["generator"]) == ("mine", "mine-s1") and first["output"] != second["output"]
    tokenizer = load_tokenizer(str(folder / "policy"))
    for row, name in zip(rows["arenahard"], ("mine", "mine-s1"), strict=True):
        text = row["messages"][1]["content"]["answer"]
        assert row["model"] == name and row["metadata"]["token_len"] == len(tokenizer(text, add_special_tokens=False).input_ids)
    assert [(row["id"], row["sample"], row["messages"]) for row in rows["prompts"]] == [
        (0, sample, asked["prompts"]["messages"]) for sample in range(2)
    ]
    _, output = run("arenahard", "older", questions=write(tmp_path / "q.jsonl", asked["arenahard"]), shape="v0.1")
    (row,) = map(json.loads, (output / "policy.jsonl").read_text().splitlines())
    assert row["choices"][0]["turns"][0].keys() == {"content"} and row["conv_metadata"].keys() >= {"token_len"}


def test_prompts_that_are_shortened_are_told_and_what_comes_next_is_understood(run, caplog):
    caplog.set_level(logging.INFO)
    account, _ = run(max_prompt_length=12)
    assert account["shortened_prompts"] > 0 and "lost tokens on their left" in caplog.text
    (words,) = re.findall(r"next: denserl judge (.*)", caplog.text)
    parse(judge.Options, "judge", words.split()).check()


@pytest.mark.parametrize(
    ("suite", "options", "message"),
    [
        ("mtbench", {"questions": None}, "the questions of mtbench are not given"),
        ("mtbench", {"questions": "nowhere.jsonl"}, "nowhere.jsonl"),
        ("mtbench", {"shape": "v0.1"}, "--shape v0.1 has no effect but on arenahard"),
        ("mtbench", {"samples": 2, "temperature": 0}, "--samples 2 would all be the same, at temperature 0"),
        ("mtbench", {"name": "a/b"}, "is called 'a/b', which no file can be"),
        ("mtbench", {"model": "/nowhere/policy"}, "no model folder '/nowhere/policy'"),
        ("mtbench", {"max_new_tokens": 10**6}, "with a response of --max_new_tokens 1000000"),
        ("alpacaeval", {}, "'instruction' is missing"),
    ],
)
def test_mistakes_are_named(suite, options, message, run, tmp_path):
    with pytest.raises(UserError, match=message):
        run(suite, **options)
    assert not (tmp_path / "run/answers.json").exists()
