"""metrics.jsonl through resumes, torn lines and numbers that are none; and the trackers of other packages."""

import json
from types import SimpleNamespace

import pytest

from denserl import distributed
from denserl.errors import UserError
from denserl.trainer.trackers import MetricsFileCallback, StepFile, Trackers, check_trackers, read_metrics


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


def test_opened_at_a_step_it_forgets_what_came_later(tmp_path):
    file = StepFile(tmp_path / "metrics.jsonl", 0)
    for step in range(5):
        file.write(step, {"loss": step})
    StepFile(tmp_path / "metrics.jsonl", 2).write(3, {"loss": 30})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_a_torn_last_line_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 1}]
    StepFile(path, 2).write(3, {"loss": 3})
    assert [row["step"] for row in read_metrics(path)] == [1, 3]


def test_opened_at_step_0_it_starts_anew(tmp_path):
    """The first row of a run may be step 0 itself, which an earlier run in the same folder has as well."""
    StepFile(tmp_path / "metrics.jsonl", 0).write(0, {"loss": 1.0})
    StepFile(tmp_path / "metrics.jsonl", 0).write(0, {"loss": 2.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 2.0}]


def test_samples_go_to_files_of_their_own_and_forget_like_metrics(tmp_path):
    trackers = Trackers(tmp_path, [], {})
    for step in (1, 2, 3):
        trackers.log_samples("samples", step, [{"response": f"a{step}"}, {"response": f"b{step}"}])
    Trackers(tmp_path, [], {}, step=2).log_samples("samples", 3, [{"response": "new"}])
    kept = [(row["step"], row["response"]) for row in read_metrics(tmp_path / "samples.jsonl")]
    assert kept == [(1, "a1"), (1, "b1"), (2, "a2"), (2, "b2"), (3, "new")]


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "nowhere.jsonl") == []


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    trackers = Trackers(tmp_path, ["no-such-tracker"], {})
    trackers.log(1, {"loss": 1.0})
    trackers.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_an_error_with_a_fix():
    with pytest.raises(UserError, match="no-such-tracker: not installed or not known") as error:
        check_trackers(["no-such-tracker"])
    assert error.value.fix == "pip install no-such-tracker"


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(tmp_path, ["tensorboard"], {"lr": 1e-3, "names": ["a"], "nothing": None})
    for step, loss in ((1, 0.5), (2, 0.25)):
        trackers.log(step, {"loss": loss})
    trackers.finish()
    folder = next(path.parent for path in tmp_path.rglob("events.out.tfevents.*"))
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("first_rank", [True, False])
def test_the_trainer_of_transformers_writes_the_same_file(tmp_path, first_rank):
    callback = MetricsFileCallback(tmp_path)
    state = SimpleNamespace(is_world_process_zero=first_rank, global_step=0)
    callback.on_train_begin(None, state, None)
    state.global_step = 10
    callback.on_log(None, state, None, logs={"loss": 0.5, "epoch": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == ([{"step": 10, "loss": 0.5, "epoch": 1.0}] if first_rank else [])
