"""metrics.jsonl through resumes, torn lines and numbers that are none."""

import json
from types import SimpleNamespace

import pytest

from denserl import distributed
from denserl.trainer.trackers import LogCallback, StepFile, Trackers, read_metrics, write_batch


def test_one_line_a_step(tmp_path):
    file = StepFile(tmp_path / "new" / "metrics.jsonl", 0)
    file.write(1, {"loss": 0.5})
    file.write(2, {"loss": 0.25, "kl": 3})
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "kl": 3}]
    assert read_metrics(tmp_path / "new" / "metrics.jsonl") == [json.loads(line) for line in lines]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_null(tmp_path, value):
    StepFile(tmp_path / "metrics.jsonl", 0).write(1, {"loss": value, "kl": 1.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "kl": 1.0}\n'


def test_what_is_no_number_is_null_at_any_depth(tmp_path):
    file = StepFile(tmp_path / "samples.jsonl")
    file.write(1, {"segments": [{"raw": float("nan"), "text": "a"}, {"raw": 0.5, "text": "NaN"}]})
    row = json.loads((tmp_path / "samples.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"step": 1, "segments": [{"raw": None, "text": "a"}, {"raw": 0.5, "text": "NaN"}]}


def test_opened_at_a_size_it_forgets_what_came_later(tmp_path):
    path, sizes = tmp_path / "metrics.jsonl", []
    file = StepFile(path)
    for step in range(5):
        file.write(step, {"loss": step})
        sizes.append(path.stat().st_size)
    assert file.size == sizes[-1]
    StepFile(path, sizes[2]).write(3, {"loss": 30})
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_a_torn_last_line_is_left_out_and_written_over(tmp_path):
    path, whole = tmp_path / "metrics.jsonl", '{"step": 1, "loss": 1}\n'
    path.write_text(whole + '{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 1}]
    StepFile(path, len(whole)).write(2, {"loss": 3})
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("left, kept", [("", []), ('{"step": 1}\n', [1]), ('{"step": 1}\n{"step": 2}\n{"ste', [1, 2])])
def test_a_file_that_lost_rows_says_so_and_goes_on_after_its_last_whole_one(tmp_path, caplog, left, kept):
    (tmp_path / "metrics.jsonl").write_text(left)
    StepFile(tmp_path / "metrics.jsonl", 1000).write(7, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [*kept, 7]
    assert "rows are missing" in caplog.text and "1000" in caplog.text


def test_opened_without_a_size_it_starts_anew(tmp_path):
    StepFile(tmp_path / "metrics.jsonl").write(0, {"loss": 1.0})
    StepFile(tmp_path / "metrics.jsonl").write(0, {"loss": 2.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 2.0}]


def test_samples_go_to_files_of_their_own_and_forget_like_metrics(tmp_path):
    trackers = Trackers(tmp_path, [], {})
    sizes = {}
    for step in (1, 2, 3):
        trackers.log_samples("samples", step, [{"response": f"a{step}"}, {"response": f"b{step}"}])
        sizes[step] = trackers.sizes
    Trackers(tmp_path, [], {}, sizes[2]).log_samples("samples", 3, [{"response": "new"}])
    kept = [(row["step"], row["response"]) for row in read_metrics(tmp_path / "samples.jsonl")]
    assert kept == [(1, "a1"), (1, "b1"), (2, "a2"), (2, "b2"), (3, "new")]


def test_a_batch_for_study_names_its_rank_and_what_is_no_number(tmp_path):
    rows = [{"prompt": "a\nb", "advantages": [float("nan"), 1.5, float("-inf")]}, {"margin": float("inf")}]
    path = write_batch(tmp_path / "skipped", "step-000003", rows)
    assert path == tmp_path / "skipped" / "step-000003-rank-0.jsonl"
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert lines == [{"prompt": "a\nb", "advantages": ["nan", 1.5, "-inf"]}, {"margin": "inf"}]


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "nowhere.jsonl") == []


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    trackers = Trackers(tmp_path, ["no-such-tracker"], {})
    with trackers:
        trackers.log(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first_rank", [True, False])
def test_the_trainer_of_transformers_writes_the_same_file(tmp_path, first_rank, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 0 if first_rank else 1)
    callback, state = LogCallback(tmp_path), SimpleNamespace(global_step=0)
    callback.on_train_begin(None, state, None)
    state.global_step = 10
    callback.on_log(None, state, None, logs={"loss": 0.5, "epoch": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == ([{"step": 10, "loss": 0.5, "epoch": 1.0}] if first_rank else [])
