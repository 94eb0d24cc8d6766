"""Folders that are half written, of other versions or made to harm: a page with a remark, or one message."""

import copy
import json
import random

import pytest
from run_folders import (
    answered,
    best_of_n,
    charts_of,
    evaluation,
    fit,
    judged,
    ppo,
    reward_model,
    sample,
    samples_of,
    series_of,
)

from denserl.cli import report as command
from denserl.errors import UserError
from denserl.report.build import report_of
from denserl.report.reading import LONGEST_TEXT

JUNK = [None, "x", -1, True, 10**400, 1e308, [], {}, [[]], {"a": {"b": []}}, "\x1b[31m", "\ud800"]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    folder = ppo(tmp_path / "a", samples=[sample(0, "p", ("x", 1.0))])
    for name in ("metrics.jsonl", "eval_samples.jsonl"):
        with open(folder / name, "a") as file:
            file.write('{"step": 4, "rewa')
    report = report_of([str(folder)])
    assert series_of(charts_of(report.html)["Reward"])["training"][-1] == (3, 1) and "cannot be read" not in report.text


def test_numbers_that_are_none_are_gaps(tmp_path):
    folder = reward_model(tmp_path / "a")
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.5}\n{"step": 3, "loss": -Infinity}\n{"step": 4, "loss": "1"}\n'
        '{"step": NaN, "loss": 3}\n{"step": 5, "loss": true}\n{"step": 6, "loss": 1e999}\n{"loss": 7}\n'
    )
    assert series_of(charts_of(report_of([str(folder)]).html).get("Loss"))["training"] == [(2, 1.5)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe" * 99,
        b"[" * 100_000,
        b"{}\n" * 9,
        b'"x"\n[1]\nnull\n',
        b'{"a": ' + b"9" * 5000 + b"}\n",
        b"<html>",
        b"\xef\xbb\xbf{}",
    ],
    ids=["empty", "bytes", "deep", "empty rows", "no rows", "a number without end", "a page", "a mark of the byte order"],
)
@pytest.mark.parametrize("name", ["command.json", "metrics.jsonl", "eval_samples.jsonl", "fits.json"])
def test_a_file_of_anything_gives_the_rest(tmp_path, name, content):
    folder = ppo(tmp_path / "a", samples=[sample(0, "p", ("x", 1.0))])
    (folder / name).write_bytes(content)
    assert "<h1>a</h1>" in report_of([str(folder)]).html


def test_what_cannot_be_read_is_said(tmp_path):
    folder = ppo(tmp_path / "a")
    (folder / "results.json").write_text("{")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("not JSON\n[]\n")
    text = report_of([str(folder)]).text
    assert "results.json cannot be read" in text and "metrics.jsonl: 2 of 6 rows cannot be read" in text


def test_a_cell_of_ten_megabytes_is_cut(tmp_path):
    big = "x" * 10_000_000
    rows = [sample(0, big, (big, 1.0), prompt_id=big)]
    folder = ppo(tmp_path / "a", samples=rows, setting=big)
    html = report_of([str(folder)]).html
    assert len(html) < 500_000 and f"[... {10_000_000 - LONGEST_TEXT} more characters]" in samples_of(html)["prompts"][0]


def test_missing_files_are_said_and_folders_that_are_files(tmp_path, capsys):
    folder = ppo(tmp_path / "a")
    (folder / "metrics.jsonl").unlink()
    (folder / "eval_samples.jsonl").unlink()
    (folder / "eval_samples.jsonl").mkdir()
    assert "metrics.jsonl is missing or empty" in report_of([str(folder)]).text
    with pytest.raises(SystemExit) as ended:
        command.main([str(folder / "command.json")])
    assert ended.value.code == 2 and "is no folder" in capsys.readouterr().err


def test_a_folder_of_many_runs_reads_no_others(tmp_path):
    """What command.json names is not followed, but for the file of a fit, whose numbers alone are shown."""
    folder = fit(tmp_path / "fit")
    (tmp_path / "secret").write_text('{"password": "hunter2"}')
    entry = {"command": "denserl fit-normalizer", "settings": {"fit": str(tmp_path / "secret"), "reward_model": ["\x00", 3]}}
    (folder / "command.json").write_text(json.dumps([entry]))
    assert "hunter2" not in report_of([str(folder)]).html


def places(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def with_junk(value, path, junk):
    if not path:
        return junk
    changed = copy.copy(value)
    changed[path[0]] = with_junk(value[path[0]], path[1:], junk)
    return changed


TOKENS = {"end": [1], "kl": [0.5], "entropy": [1.0]}
MAKERS = {
    "ppo": lambda folder: ppo(folder, samples=[sample(0, "p", ("x", 1.0), reward=1.0, length=1, tokens=TOKENS)] * 2),
    "fit": fit,
    "evaluate": lambda folder: evaluation(folder, length_bias={"by_gap": [{"low": -3, "high": 4, "n": 9, "accuracy": 0.5}]}),
    "bon": best_of_n,
    "answer": answered,
    "judge": judged,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_any_value_may_be_another(tmp_path, kind):
    """One value at a time, in every file; a page comes of it, or a message that it is no run."""
    folder = MAKERS[kind](tmp_path / "a")
    chance = random.Random(kind)
    for path in sorted(folder.iterdir()):
        whole = path.read_text()
        rows = [json.loads(whole)] if path.suffix == ".json" else [json.loads(line) for line in whole.splitlines()]
        found = list(places(rows))[1:]
        for place in chance.sample(found, min(25, len(found))):
            changed = with_junk(rows, place, chance.choice(JUNK))
            path.write_text("".join(json.dumps(row) + "\n" for row in changed))
            for seeds in ("apart", "mean"):
                try:
                    assert "</html>" in report_of([str(folder)], seeds=seeds).html, (path.name, place)
                except UserError as error:
                    assert "holds no run" in error.found
        path.write_text(whole)
