"""`denserl evaluate` as a user runs it: from the command line to files, and what it says of mistakes."""

import gzip
import json
import sys
from pathlib import Path

import pytest
import tiny_models
import torch

from denserl.cli import evaluate
from denserl.cli.options import parse
from denserl.errors import UserError
from denserl.evaluation.scorers import scorer_name
from denserl.models.reward_models import new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.sources.pair_model import PairModel

sys.path += [str(Path(__file__).parent.parent / room) for room in ("evaluation", "rewards")]
import suite_files  # noqa: E402
from reward_folders import save_pair_model  # noqa: E402


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    sft = tiny_models.save_language_model(folder / "sft")
    model = new_reward_model(str(sft), "fp32", 1)
    with torch.no_grad():
        model.score.weight.mul_(20)
    model.save_pretrained(folder / "rm")
    load_tokenizer(str(sft)).save_pretrained(folder / "rm")
    save_pair_model(folder / "pm", sft)
    suite_files.rmb(folder / "rmb")
    suite_files.pairs(folder)
    return folder


def command(*words):
    evaluate.main([str(word) for word in words])


def message(capsys, *words):
    """What a command that ends with status 2 says."""
    with pytest.raises(SystemExit) as end:
        command(*words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_reward_model_is_judged(folder, tmp_path, capsys):
    command("rmb", folder / "rmb", "--scorer", folder / "rm", "--output_dir", tmp_path, "--bootstrap", 50, "--device", "cpu")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["n"] == 9 and found["suite"] == "rmb" and found["complete"] is False
    four = [found[f"{half}_{kind}"] for half in ("helpful", "harmless") for kind in ("pairwise", "best_of_n")]
    assert found["overall"] == pytest.approx(sum(four) / 4)
    assert found["scorer"] == str(folder / "rm") and found["entropy_threshold"] == 1000 and found["precision"] == "fp32"
    assert found["length_baseline"]["helpful_pairwise"] == 0.25
    assert (tmp_path / "rm_result.json").is_file() and (tmp_path / "reliability.png").is_file()
    said = capsys.readouterr().out
    assert "overall" in said and "helpful_pairwise/Open QA" in said
    rows = [json.loads(line) for line in gzip.open(tmp_path / "rm_outputs.jsonl.gz")]
    pair = next(row for row in rows if row["id"] == "3")
    assert pair["scores_chosen"] == pair["scores_rejected"] and "<|im_start|>assistant\nsame<|im_end|>" in pair["text_chosen"]


def test_a_model_that_compares_is_judged(folder, tmp_path, capsys):
    command("rmb", folder / "rmb", "--scorer", folder / "pm", "--rank", "bt", "--output_dir", tmp_path, "--bootstrap", 20)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["n"] == 9 and found["rank"] == "bt" and found["pair_layout"] == "denserl" and found["ties"] > 0
    assert 0 < found["position_bias"] and 0 <= found["position_consistency"] <= 1 and "entropy_threshold" not in found
    assert "lists ranked by bt" in capsys.readouterr().out
    rows = [json.loads(line) for line in gzip.open(tmp_path / "pm_outputs.jsonl.gz")]
    pair = next(row for row in rows if isinstance(row["scores_chosen"], float) and row["scores_chosen"] != 0.5)
    texts = [pair[f"text_{side}"].split("assistant\n")[-1].removesuffix("<|im_end|>\n") for side in ("chosen", "rejected")]
    [chance] = PairModel.load(str(folder / "pm"))([pair["prompt"]], texts[:1], texts[1:])
    assert pair["scores_chosen"] == pytest.approx(chance, abs=1e-6) and pair["scores_rejected"] == 1 - pair["scores_chosen"]


def test_a_word_is_judged_and_options_may_come_from_a_file(folder, tmp_path):
    config = tmp_path / "options.yaml"
    config.write_text(f"scorer: [length]\noutput_dir: {tmp_path}\nbootstrap: 20\n")
    command("pairs", folder / "pairs.jsonl", "--config", config)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["accuracy"] == pytest.approx(2 / 3) and found["length_baseline"]["accuracy"] == found["accuracy"]
    assert found["scorer"] == "length" and found["options"]["bootstrap"] == 20


def test_few_pairs_and_exploded_scores_are_remarked_on(folder, tmp_path, capsys):
    model = new_reward_model(str(folder / "sft"), "fp32", 1)
    with torch.no_grad():
        model.score.weight.mul_(1e8)
    model.save_pretrained(tmp_path / "rm")
    load_tokenizer(str(folder / "sft")).save_pretrained(tmp_path / "rm")
    rows = [
        {"prompt": f"Q{number}", "chosen": text, "rejected": text[::-1]} for number, text in enumerate(("a b", "A quiet river"))
    ]
    path = suite_files.write_lines(tmp_path / "rows.jsonl", rows)
    command("pairs", path, "--scorer", tmp_path / "rm", "--output_dir", tmp_path / "out", "--device", "cpu")
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out/results.json").read_text())
    few, large = found["remarks"]
    low, high = found["intervals"]["accuracy"]
    assert few == f"accuracy {found['accuracy']:.3f} is of 2 questions only: 95% interval [{low:.3f}, {high:.3f}]"
    assert "scores reach" in large and few in said and large in said
    # Characters are no scores that explode.
    rows = [{"prompt": f"Q{number}", "chosen": "x" * 20000, "rejected": "y"} for number in range(100)]
    path = suite_files.write_lines(tmp_path / "long.jsonl", rows)
    command("pairs", path, "--scorer", "length", "--output_dir", tmp_path / "long")
    assert json.loads((tmp_path / "long/results.json").read_text())["remarks"] == []


def test_what_is_written_stays_apart_from_the_data(folder, tmp_path, capsys):
    words = ("rmb", folder / "rmb", "--scorer", "length", "--output_dir")
    assert "is the folder of the data" in message(capsys, *words, f"{folder}/rmb/")
    command(*words, tmp_path)
    shown = capsys.readouterr().out
    assert "not the complete suite: helpful_pairwise has 4 of 10067" in shown and "length 0." in shown
    assert len(shown.splitlines()) < 25


def test_a_row_that_cannot_be_judged_stops_or_is_dropped(folder, tmp_path, capsys):
    turns = [{"role": "user", "content": "Q\ud800"}]
    rows = [
        {"prompt": turns if bad else "Q", "chosen": "a", "rejected": "b", "subset": "hep-go", "id": int(bad)}
        for bad in (True, False)
    ]
    path = suite_files.write_lines(tmp_path / "rows.jsonl", rows)
    words = ("rewardbench", path, "--scorer", folder / "rm", "--output_dir", tmp_path / "out", "--bootstrap", 10)
    assert "rows.jsonl:1: 'prompt' holds half a surrogate pair" in message(capsys, *words)
    command(*words, "--on_bad_row", "skip")
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["n"] == 1 and sum(found["bad_rows"].values()) == 1


@pytest.mark.parametrize(
    "words, said",
    [
        (("nonsuch", "{pairs}", "--scorer", "length"), "nonsuch"),
        (("pairs", "{folder}/missing.jsonl", "--scorer", "length"), "there is no file or folder"),
        (("rmb", "{pairs}", "--scorer", "length"), "conversation_input"),
        (("pairs", "{pairs}", "--scorer", "{folder}/sft"), "holds no reward head"),
        (("pairs", "{pairs}", "--scorer", "{folder}/nowhere"), "there is no model folder"),
        (("pairs", "{pairs}", "--scorer", "length", "{folder}/rm"), "--scorer has length beside others"),
        (("pairs", "{pairs}"), "scorer"),
        (("pairs", "{pairs}", "--scorer", "length", "--bootstrap", "0"), "--bootstrap is 0"),
        (("pairs", "{pairs}", "--scorer", "length", "--max_length", "7"), "no effect with --scorer length or random"),
        (("pairs", "{pairs}", "--scorer", "random", "--system_prompt", "Hi"), "no effect with --scorer length or random"),
        (("pairs", "{pairs}", "--scorer", "length", "--paper_compat"), "no effect but on mtbench"),
        (("pairs", "{pairs}", "--scorer", "length", "--split", "dev"), "no effect where there are no splits"),
        (("rmb", "{folder}/rmb", "--scorer", "length", "--as_is"), "published suites are always judged whole"),
        (("rmb", "{folder}/rmb", "--scorer", "length", "--split", "dev"), "no effect where there are no splits"),
        (("pairs", "{pairs}", "--scorer", "{folder}/rm", "--ensemble", "min"), "no effect with a single reward model"),
        (("pairs", "{pairs}", "--scorer", "{folder}/rm", "--sft_model", "{folder}/sft"), "no effect at the bandit level"),
        (("pairs", "{pairs}", "--scorers", "length"), "did you mean --scorer?"),
        (("pairs", "{pairs}", "--scorer", "length", "--step_threshold", "0.3"), "no effect but on processbench"),
        (("pairs", "{pairs}", "--scorer", "length", "--choose", "majority"), "no effect but on bon_answers"),
        (("pairs", "{pairs}", "--scorer", "length", "--aggregate", "mean"), "no effect with --scorer length or random"),
        (("processbench", "{pairs}", "--scorer", "x", "--aggregate", "mean"), "no effect on processbench"),
        (("pairs", "{pairs}", "--scorer", "{folder}/rm", "--rank", "bt"), "scores responses one by one"),
        (("pairs", "{pairs}", "--scorer", "length", "--rank", "bt"), "no effect with --scorer length or random"),
        (("pairs", "{pairs}", "--scorer", "{folder}/pm", "--rank", "borda"), "Invalid choice"),
        (("pairs", "{pairs}", "--scorer", "{folder}/pm", "--segmenter", "peak"), "compares whole responses"),
        (("pairs", "{pairs}", "--scorer", "{folder}/pm", "{folder}/pm"), "are no ensemble"),
        (("pairs", "{pairs}", "--scorer", "{folder}/pm", "{folder}/rm"), "models that compare responses are no ensemble"),
        (("processbench", "{pairs}", "--scorer", "x", "--step_threshold", "1"), "must be above 0 and below 1"),
        (("bon_answers", "{pairs}", "--scorer", "random", "--final_answer", "a"), "no module:name"),
    ],
)
def test_a_mistake_is_met_with_a_message(folder, tmp_path, capsys, words, said):
    words = [word.format(pairs=folder / "pairs.jsonl", folder=folder) for word in words]
    assert said in message(capsys, *words, "--output_dir", tmp_path)


def test_outputs_are_named_by_their_scorers(tmp_path):
    (tmp_path / "results").mkdir()
    assert scorer_name(["length"]) == "length"
    assert scorer_name(["user/model"]) == "user/model"
    assert scorer_name([str(tmp_path / "results")]) == "results-model"
    assert scorer_name([str(tmp_path), "user/model"]) == f"{tmp_path.name}+user/model"


def test_suite_and_path_stand_without_a_flag():
    options = parse(evaluate.Options, "evaluate", "hhh some/set --scorer a b --output_dir o".split())
    assert (options.suite, options.path, options.scorer) == ("hhh", "some/set", ["a", "b"])
    with pytest.raises(UserError, match="no option --bootstrp; did you mean --bootstrap?"):
        parse(evaluate.Options, "evaluate", "hhh some/set --bootstrp 3".split())
