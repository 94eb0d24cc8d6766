"""Trackers of other packages: named, told the same numbers and texts, and through kills and resumes each of them once.

Those that are not installed are skipped; they were run with wandb 0.31.0 (offline), mlflow 3.17.2 and trackio 0.43.0.
"""

import json
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import tracking
from board import Points, scalars, texts

from denserl.errors import Stopped, UserError
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.tracker_runs import RUNS, chosen_trackers
from denserl.trainer.trackers import Trackers, read_metrics

SAMPLE = {
    "prompt": "Why?",
    "response": "Not <b>so</b>\n```\n# loud",
    "ended": True,
    "segments": [{"text": "Not <b>so", "raw": 0.5}],
}


def another_second():
    """Files of one process and second are read by a counter in their names, as text: the tenth before the ninth."""
    time.sleep(1)


def test_trackers_are_named_as_in_transformers(monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb", "tensorboard"])
    assert chosen_trackers([]) == chosen_trackers(["none"]) == []
    assert chosen_trackers(["all"]) == ["tensorboard", "wandb"]
    assert chosen_trackers(["wandb"]) == ["wandb"]


@pytest.mark.parametrize(
    "names, found, fix",
    [
        (["no-such-tracker"], "no-such-tracker is not known; known are .*tensorboard, wandb,.* none, all", "choose among"),
        (["tensorboard", "comet_ml"], "comet_ml is not installed; installed here: tensorboard", "pip install comet-ml"),
        (["none", "tensorboard"], "has none beside others", "give none alone"),
    ],
)
def test_an_unknown_tracker_is_an_error_with_a_fix(names, found, fix, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(UserError, match=found) as error:
        chosen_trackers(names)
    assert fix in error.value.fix


def test_tensorboard_gets_the_same_numbers_and_the_text_of_samples(tmp_path):
    pytest.importorskip("tensorboard")
    with Trackers(tmp_path, ["tensorboard"], {"lr": 1e-3, "names": ["a"], "nothing": None}) as trackers:
        for step, loss in ((1, 0.5), (2, 0.25)):
            trackers.log_samples("samples", step, [SAMPLE, SAMPLE | {"prompt": "Another"}])
            trackers.log(step, {"loss": loss})
    assert scalars(tmp_path, "loss") == [(1, 0.5), (2, 0.25)]
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 0.5), (2, 0.25)]
    shown = texts(tmp_path, "samples")
    assert [step for step, _ in shown] == [1, 2] and "Another" in shown[0][1]
    # What the response holds closes no block.
    assert "````\nNot <b>so</b>\n```\n# loud\n````" in shown[0][1] and "- `Not <b>so` raw 0.5" in shown[0][1]


def test_a_new_training_in_the_folder_of_an_old_one_has_its_own_numbers_alone(tmp_path):
    pytest.importorskip("tensorboard")
    for loss in (1.0, 2.0):
        with Trackers(tmp_path, ["tensorboard"], {}) as trackers:
            trackers.log(0, {"loss": loss})
        another_second()
    assert scalars(tmp_path, "loss") == [(0, 2.0)]


def test_ppo_resumed_shows_each_step_and_sample_once(ppo, monkeypatch):
    """It is ended after iteration 3, and goes on from the checkpoint of iteration 2."""
    pytest.importorskip("tensorboard")
    options = {"iterations": 4, "save_every": 2, "report_to": "tensorboard", "eval_prompts": None, "samples_logged": 1}
    iterate = PPOTrainer.iterate

    def three_times(self):
        if self.iteration == 3:
            raise Stopped
        return iterate(self)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(PPOTrainer, "iterate", three_times)
        ppo(**options)
    another_second()
    output = ppo(resume=True, **options)
    rows = read_metrics(output / "metrics.jsonl")
    assert scalars(output, "kl") == [(row["step"], pytest.approx(row["kl"])) for row in rows]
    assert [step for step, _ in scalars(output, "reward")] == [1, 2, 3, 4]
    assert [step for step, _ in texts(output, "samples")] == [1, 2, 3, 4]


# Run by name in a process that is killed: five steps, of which the checkpoint knows three.
KILLED = """
import json, os, signal, sys, time
from pathlib import Path
from denserl.trainer.trackers import Trackers
folder, name, sample, seconds = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4])
trackers = Trackers(folder, [name], {"lr": 0.1, "resume": False})
for step in range(1, 6):
    trackers.log_samples("samples", step, [sample])
    trackers.log(step, {"loss": 1 / step})
    if step == 3:
        (folder / "sizes.json").write_text(json.dumps(trackers.sizes))
time.sleep(seconds)
os.kill(os.getpid(), signal.SIGKILL)
"""
# Seconds after which what was sent is out of the tracker's own buffers, but for the last step of wandb, which waits for more.
BUFFERED = {"tensorboard": 0, "mlflow": 0, "trackio": 3, "wandb": 20}
LOST = {"wandb": {5}}


@pytest.mark.long
@pytest.mark.parametrize("name", BUFFERED)
def test_a_killed_training_goes_on_in_the_same_run_with_each_step_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "MLFLOW_TRACKING_URI": f"sqlite:///{name}.db"}
    for variable, value in local.items():
        monkeypatch.setenv(variable, value)
    pytest.importorskip(name)
    words = [sys.executable, "-c", KILLED, str(tmp_path / "run"), name, json.dumps(SAMPLE), str(BUFFERED[name])]
    (tmp_path / "run").mkdir()
    assert subprocess.run(words, capture_output=True).returncode == -signal.SIGKILL
    sizes = json.loads((tmp_path / "run/sizes.json").read_text())
    with Trackers(tmp_path / "run", [name], {"lr": 0.1, "resume": True}, sizes) as trackers:
        for step in range(4, 8):
            trackers.log_samples("samples", step, [SAMPLE])
            trackers.log(step, {"loss": 1 / step})
    steps = [step for step in range(1, 8) if step not in LOST.get(name, ())]
    points, shown = globals()[f"{name}_run"](tmp_path)
    assert sorted(points) == [(step, pytest.approx(1 / step)) for step in steps]
    assert sorted(step for step, _ in shown) == steps
    assert all("Why?" in text and "# loud" in text for _, text in shown)
    assert [row["step"] for row in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, 8))


def tensorboard_run(folder: Path) -> tuple[Points, list[tuple[int, str]]]:
    return scalars(folder / "run", "loss"), texts(folder / "run", "samples")


def mlflow_run(folder: Path) -> tuple[Points, list[tuple[int, str]]]:
    from mlflow import MlflowClient, search_experiments

    client = MlflowClient()
    (run,) = client.search_runs([each.experiment_id for each in search_experiments()])
    assert run.info.run_id == json.loads((folder / "run" / RUNS).read_text())["mlflow"]
    tables = client.list_artifacts(run.info.run_id, "samples")
    files = [client.download_artifacts(run.info.run_id, table.path) for table in tables]
    points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
    cells = [(int(Path(file).stem.removeprefix("step-")), json.loads(Path(file).read_text())["data"][0]) for file in files]
    return points, [(step, "\n".join(map(str, row))) for step, row in cells]


def trackio_run(folder: Path) -> tuple[Points, list[tuple[int, str]]]:
    (file,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        runs = {row[0] for row in database.execute("select run_name from metrics")}
        rows = [(step, json.loads(values)) for step, values in database.execute("select step, metrics from metrics")]
    assert runs == {json.loads((folder / "run" / RUNS).read_text())["trackio"]}
    tables = [(step, values["samples"]["_value"][0]) for step, values in rows if "samples" in values]
    return [(step, v["loss"]) for step, v in rows if "loss" in v], [(s, "\n".join(map(str, t.values()))) for s, t in tables]


def wandb_run(folder: Path) -> tuple[Points, list[tuple[int, str]]]:
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    (name,) = {file.name for file in files}
    assert name == f"run-{json.loads((folder / 'run' / RUNS).read_text())['wandb']}.wandb" and len(files) == 2
    points, shown = [], []
    for file in files:
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                points += [(items["_step"], items["loss"])]
                path = items.get("samples", {}).get("path") or items["samples/path"]
                table = json.loads((file.parent / "files" / path).read_text())
                shown.append((items["_step"], "\n".join(map(str, table["data"][0]))))
    return points, shown


def wandb_records(file: Path) -> Iterator:
    """The records of an offline run: behind seven bytes leveldb's log, whose blocks are of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4) and parts:
            yield Record.FromString(parts)
        parts = b"" if kind in (1, 4) else parts
