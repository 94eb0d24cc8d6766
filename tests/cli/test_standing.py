"""How far a command came that may have run before: by what it has left in its folder, and by the files it has read."""

import json
import shlex

import pytest

from denserl.cli.standing import standing
from denserl.data.inputs import stamp


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("{}\n")
    return file


def words_of(folder, *others):
    return ["train-rm", "--data", str(folder.parent / "data.jsonl"), "--output_dir", str(folder), *others]


def leaves(folder, data, outcome, *others):
    folder.mkdir()
    entry = {"command": shlex.join(["denserl", *words_of(folder, *others)]), "outcome": outcome}
    entry["inputs"] = {"data": {str(data): {**stamp(str(data)), "sha256": "not looked at"}}}
    (folder / "command.json").write_text(json.dumps([{"command": "denserl train-rm", "outcome": "failed"}, entry]))


@pytest.mark.parametrize(
    "outcome, others, now, found",
    [
        ("finished", [], [], "finished"),
        ("finished", ["--resume"], [], "finished"),
        ("finished", ["--lr", "1"], [], "new"),
        ("finished", [], ["--lr", "1"], "new"),
        ("stopped: by a signal", [], [], "new"),
        (None, [], [], "new"),
    ],
)
def test_a_command_has_finished_that_ended_well_in_these_words(data, tmp_path, outcome, others, now, found):
    leaves(tmp_path / "out", data, outcome, *others)
    assert standing(words_of(tmp_path / "out", *now)) == found


def test_other_files_are_another_command(data, tmp_path):
    leaves(tmp_path / "out", data, "finished")
    data.write_text("{}\n{}\n")
    assert standing(words_of(tmp_path / "out")) == "new"


@pytest.mark.parametrize("outcome", [None, "stopped: by a signal"])
def test_one_with_a_checkpoint_goes_on(data, tmp_path, outcome):
    leaves(tmp_path / "out", data, outcome)
    (tmp_path / "out/checkpoints/step-000002").mkdir(parents=True)
    assert standing(words_of(tmp_path / "out")) == "stopped"


def test_where_nothing_was_written_it_is_new(tmp_path):
    assert standing(words_of(tmp_path / "out")) == standing(["report", "run"]) == "new"
