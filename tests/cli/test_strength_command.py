"""`denserl strength` as a user runs it, and what `denserl evaluate` makes of its file."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny_models

from denserl.cli import evaluate, strength
from denserl.data.preferences import load_preferences
from denserl.data.strength_file import read_strength
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.pair_model import PairModel

sys.path += [str(Path(__file__).parent.parent / "rewards")]
from reward_folders import PROMPTS, TEXTS, save_pair_model, save_reward_model  # noqa: E402

READ = {"entropy_threshold": 1000.0, "read_at": "end_of_turn"}


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strength")
    sft = tiny_models.save_language_model(folder / "sft")
    save_reward_model(folder / "rm", sft, 1, moments=(0.0, 2.0), **READ)
    save_pair_model(folder / "pm", sft)
    prompts = [*PROMPTS[:2], [{"role": "user", "content": "tell me <b>now</b>"}]]
    rows = [{"prompt": prompt, "chosen": a, "rejected": b} for prompt in prompts for a in TEXTS for b in TEXTS if a != b]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(folder, output, *words, command=strength):
    command.main([str(word) for word in words] + ["--output_dir", str(output), "--device", "cpu"])


def test_pairs_are_measured_and_judged_by_strength(folder, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    data = folder / "pairs.jsonl"
    measure = ["--reward_model", folder / "rm", folder / "pm", "--data", data]
    command(folder, tmp_path, *measure)
    said, summary = capsys.readouterr().out, json.loads((tmp_path / "summary.json").read_text())
    assert "18 pairs by 2 members" in said and "incorrect" in said and (tmp_path / "strength.png").stat().st_size > 1000
    page = (tmp_path / "strength.html").read_text()
    assert (
        "tell me <b>now</b>".replace("<", "&lt;").replace(">", "&gt;") in page
        and "<b>" not in page
        and "data:image/png" in page
    )
    own, others = [one["std"] for one in summary["each"]]
    assert own == 2 and [one["std_is_stored"] for one in summary["each"]] == [True, False]
    pairs = load_preferences([str(data)])
    chosen, rejected = (RewardScorer([str(folder / "rm")])(pairs["prompt"], pairs[side]) for side in ("chosen", "rejected"))
    odds = PairModel.load(str(folder / "pm")).log_odds(pairs["prompt"], pairs["chosen"], pairs["rejected"])
    unit = (own + others) / 2
    expected = ((chosen - rejected) / own + (odds[:, 0] - odds[:, 1]) / 2 / others) / 2 * unit
    assert read_strength(tmp_path, pairs).mean == pytest.approx(expected, abs=1e-4)
    # Once more nothing is scored.
    command(folder, tmp_path, *measure)
    assert caplog.text.count("its scores are found in") == 2

    command(folder, tmp_path / "out", "pairs", data, "--scorer", "length", "--strength_from", tmp_path, command=evaluate)
    groups = json.loads((tmp_path / "out/results.json").read_text())["groups"]
    assert sum(groups[f"strength {part}"]["n"] for part in ("incorrect", "ambiguous", "normal", "strong")) == 18
    assert "strength decile 1" in capsys.readouterr().out and (tmp_path / "out/strength.png").is_file()
    # Of annotated pairs in a folder, those of the same split.
    (tmp_path / "all").mkdir()
    shutil.copy(tmp_path / "strength.jsonl", tmp_path / "all/valid.jsonl")
    (tmp_path / "all/train.jsonl").write_text((tmp_path / "strength.jsonl").read_text().splitlines()[0])
    split = ["--split", "valid", "--scorer", "length", "--strength_from", tmp_path / "all"]
    command(folder, tmp_path / "split", "pairs", tmp_path / "all", *split, command=evaluate)
    assert json.loads((tmp_path / "split/results.json").read_text())["groups"] == groups
    page = (tmp_path / "out/strength.html").read_text()
    assert "Judged otherwise" in page and "accuracy by strength" in page and "<b>" not in page


def message(capsys, *words, **how) -> str:
    with pytest.raises(SystemExit) as end:
        command(*words, **how)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_mistakes_are_said_before_anything_is_loaded(folder, tmp_path, capsys):
    data, rm = folder / "pairs.jsonl", folder / "rm"
    assert "there is no option --ensemble" in message(
        capsys, folder, tmp_path, "--reward_model", rm, "--data", data, "--ensemble", "min"
    )
    assert "is the folder of the data" in message(capsys, folder, folder, "--reward_model", rm, "--data", folder)
    judge = [capsys, folder, tmp_path, "pairs", data, "--scorer", "/nowhere", "--strength_from"]
    assert "there is no file or folder" in message(*judge, tmp_path / "none.jsonl", command=evaluate)
    assert "has no 'mean preference difference'" in message(*judge, data, command=evaluate)
    rmb = [capsys, folder, tmp_path, "rmb", data, "--scorer", "length", "--strength_from", data]
    assert "--strength_from" in message(*rmb, command=evaluate)


def test_kept_scores_are_of_what_is_in_the_files_that_options_name(folder, tmp_path):
    template, sft = tmp_path / "t.jinja", shutil.copytree(folder / "sft", tmp_path / "sft")
    template.write_text("{{ messages }}")
    named = {"chat_template": str(template), "sft_model": str(sft), "max_length": 64}

    def read(**given) -> str:
        options = strength.Options(reward_model=["rm"], data=["pairs"], output_dir="out", **{**named, **given})
        return strength._how_read(options, "fp32")

    known = [read(), read(max_length=65), read(aggregate="min"), read(read_at="last_token"), read(system_prompt="Be brief.")]
    assert read() == known[0]
    template.write_text("{{ messages[0] }}")
    known.append(read())
    (sft / "config.json").write_text((sft / "config.json").read_text() + " ")
    known.append(read())
    assert len({*known}) == len(known)
