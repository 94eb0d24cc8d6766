"""command.json: one entry for each command that wrote into a folder, with what went into it and how it ended."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tiny_models

from denserl.cli import main, train_ppo, train_sft
from denserl.cli.launch import launch
from denserl.cli.record import RECORD
from denserl.cli.versions import version
from denserl.config import INPUT, MODEL, Config, options_of
from denserl.data.fingerprints import file_fingerprint
from denserl.data.inputs import stamp
from denserl.errors import Stopped, UserError


@dataclass(kw_only=True)
class Options(Config):
    """Of a command that writes."""

    output_dir: str = "out"
    """Folder."""
    data: Annotated[list[str] | None, INPUT] = None
    """Read."""
    rate: float = 0.5
    """A number."""


def launched(run, *argv: str) -> list[dict]:
    """The entries after a command, however it ends."""
    try:
        launch(Options, "work", run, list(argv))
    except (SystemExit, RuntimeError):
        pass
    return entries(Path("out"))


def entries(folder: Path) -> list[dict]:
    return json.loads((folder / RECORD).read_text()) if (folder / RECORD).exists() else []


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path


def test_an_entry_says_what_was_run_with_what_and_when(here):
    (here / "rows.jsonl").write_text("{}\n")
    (here / "folder/part").mkdir(parents=True)
    (here / "folder/a.jsonl").write_text("a")
    (here / "folder/part/b.jsonl").write_text("b")
    seen = []
    (entry,) = launched(lambda _: seen.extend(entries(here / "out")), "--data", "rows.jsonl", "folder", "gone", "--rate", "2")
    assert entry["command"] == "denserl work --data rows.jsonl folder gone --rate 2"
    assert entry["settings"] == {"output_dir": "out", "data": ["rows.jsonl", "folder", "gone"], "rate": 2.0}
    assert entry["versions"]["torch"] == version("torch") and entry["ranks"] == 1
    assert entry["outcome"] == "finished" and entry["started"] <= entry["ended"]
    found = entry["inputs"]["data"]
    assert found["rows.jsonl"]["sha256"] == hashlib.sha256(b"{}\n").hexdigest()
    assert found["folder"]["sha256"] == hashlib.sha256(b"ab").hexdigest() and found["folder"]["bytes"] == 2
    assert found["folder"]["path"] == str(here / "folder") and found["gone"] == {}
    # While it runs, it is there without an end.
    (running,) = seen
    assert (running["started"], running["ended"], running["outcome"]) == (entry["started"], None, None)


class Killed(BaseException):
    """As SIGKILL ends a process: nothing is tidied up."""


def test_what_a_kill_left_of_the_record_is_gone_with_the_next_command(here, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed)
        launched(lambda _: None)
    (left,) = (here / "out").iterdir()
    assert left.name != RECORD
    monkeypatch.setattr(os, "getpid", lambda: 1)  # another process
    assert [entry["outcome"] for entry in launched(lambda _: None)] == ["finished"]
    assert [path.name for path in (here / "out").iterdir()] == [RECORD]


def test_a_stop_a_failure_and_going_on_are_appended(here):
    def stops(_):
        raise Stopped("stopped after step 3")

    def breaks(_):
        raise RuntimeError("first line\nsecond")

    def leaves(_):
        (here / "out/some").write_text("")
        raise UserError("not finite", "lower it")

    for run in (stops, breaks, leaves, lambda _: None):
        found = launched(run)
    outcomes = ["stopped: stopped after step 3", "failed: first line", "failed: not finite", "finished"]
    assert [entry["outcome"] for entry in found] == outcomes
    assert sorted(path.name for path in (here / "out").iterdir()) == [RECORD, "some"]


def test_what_is_refused_leaves_everything_as_it_was(here):
    def refuses(_):
        raise UserError("wrong", "right it")

    launched(refuses, "--output_dir", "a/b/c")
    assert [*here.iterdir()] == []
    launched(lambda _: None)
    before = (here / "out" / RECORD).read_bytes()
    launched(refuses)
    assert (here / "out" / RECORD).read_bytes() == before and [*(here / "out").iterdir()] == [here / "out" / RECORD]


def test_only_the_first_rank_writes(here, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert launched(lambda _: None) == [] and not (here / "out").exists()


def test_a_record_that_is_broken_or_cannot_be_written_stops_nothing(here, monkeypatch, caplog):
    (here / "out").mkdir()
    (here / "out" / RECORD).write_text("{")
    (entry,) = launched(lambda _: None)
    assert entry["outcome"] == "finished" and "is not JSON" in caplog.text

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert launched(lambda _: None) == [entry] and "is not written: No space left" in caplog.text
    assert [*(here / "out").iterdir()] == [here / "out" / RECORD]


def test_of_a_hub_name_the_revision_that_was_fetched_is_kept(here, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
    for repo, file in (("models--user--model", "config.json"), ("datasets--user--rows", "README.md")):
        commit = hashlib.sha1(repo.encode()).hexdigest()
        (here / "hub" / repo / "snapshots" / commit).mkdir(parents=True)
        (here / "hub" / repo / "snapshots" / commit / file).write_text("{}")
        (here / "hub" / repo / "refs").mkdir()
        (here / "hub" / repo / "refs/main").write_text(commit)
    assert stamp("user/model") == {"revision": hashlib.sha1(b"models--user--model").hexdigest()}
    assert stamp("user/rows:config") == {"revision": hashlib.sha1(b"datasets--user--rows").hexdigest()}
    assert stamp("user/other") == stamp("length") == stamp("no\0name") == {}


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_option_that_names_what_is_read_is_an_input(command):
    module = __import__(f"denserl.cli.{command.replace('-', '_')}", fromlist=["Options"])
    found = {option.name for option in options_of(module.Options) if {INPUT, MODEL} & set(option.marks)}
    named = {"data", "eval_data", "eval_prompts", "ptx_data", "model", "reward_model", "gold_reward_model", "sft_model"}
    named |= {"unlabelled_data", "start_from", "pseudo_data", "augment_filter", "strength_from", "meta_data", "meta_eval"}
    named |= {
        "answers",
        "file",
        "baseline",
        "questions",
        "references",
        "annotations",
        "lc_files",
        "judge",
        "judge_template",
        "judge_reward_model",
    }
    named |= {"scorer", "path", "adapter", "with_", "checkpoint", "chat_template", "implicit_reward", "implicit_reference"} | (
        {"fit"} if command == "train-ppo" else set()
    )
    has_folder = any(option.name == "output_dir" for option in options_of(module.Options))
    assert found == {option.name for option in options_of(module.Options)} & named or not has_folder


def test_a_real_command_says_its_device_and_the_fingerprint_of_its_model(here):
    sft = tiny_models.save_language_model(here / "sft")
    with tiny_models.restored_environment(), pytest.raises(SystemExit):
        # Refused late: by a model that is no reward model.
        train_ppo.main([*"--model sft --reward_model sft --output_dir ppo --data".split(), str(sft / "config.json")])
    assert not (here / "ppo").exists()
    rows = here / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "Boats", "response": f"{n}"}) + "\n" for n in range(4)))
    argv = "--model sft --data rows.jsonl --output_dir out --batch_size 2 --micro_batch_size 2 --save_steps 0 --max_length 32"
    with tiny_models.restored_environment():
        train_sft.main(argv.split())
    (entry,) = entries(here / "out")
    assert (entry["settings"]["device"], entry["settings"]["dtype"]) == ("cpu", "fp32")
    assert entry["inputs"]["model"]["sft"]["fingerprint"] == f"fp32:{file_fingerprint(sft, 'fp32')[:32]}"
    assert (
        dataclasses.asdict(train_sft.Options(model="sft", data="rows.jsonl", output_dir="out")).keys()
        == entry["settings"].keys()
    )
