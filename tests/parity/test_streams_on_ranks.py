"""Fine-tuning on a stream: windows are the same on one and two ranks, a resumed run ends with the same bits, and what a run
learns in one window is what it learns of those rows as a file.
"""

import json
import shutil

import pytest
from ranks import run
from real_runs import Training, differences
from test_zero3 import same_numbers
from tiny_models import as_argv

SETTINGS = {"batch_size": 4, "micro_batch_size": 4, "lr": 1e-3, "warmup_ratio": 0.2, "logging_steps": 1, "max_length": 96}
STREAM = {"streaming": True, "stream_window": 7, "max_steps": 9, "save_steps": 3, "save_total_limit": 9}


@pytest.fixture(scope="module")
def sft(world, trainings, tmp_path_factory):
    """Demonstrations in nine files of a folder; 24 rows, so that windows of 7 reach over files and the end."""
    folder = tmp_path_factory.mktemp("stream") / "rows"
    folder.mkdir()
    for number in range(24):
        row = {"prompt": f"Tell me about boat {number}.", "response": "The river and the old bridge " * (1 + number % 3)}
        with (folder / f"{number % 9}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def argv(output, **options) -> list[str]:
        return as_argv({"model": world.sft, "data": folder, "output_dir": output, **SETTINGS, **options})

    return Training("train_sft", argv, STREAM)


def test_a_stream_that_is_one_window_is_learned_as_the_file_would_be(sft, tmp_path):
    """To the bit but for the order of files, which is the seed's: the window's own file, as it was left, in its place."""
    kept = tmp_path / "rows.jsonl"
    whole = run(sft, tmp_path / "stream", before=Keeping(kept), stream_window=24, max_steps=6)
    off = {"streaming": None, "stream_window": None, "max_steps": None, "save_steps": 0, "save_total_limit": None}
    plain = run(sft, tmp_path / "file", data=kept, **off)
    assert len(kept.read_text().splitlines()) == 24
    apart = [found for found in differences(whole, plain) if "checkpoints" not in found]
    assert apart == ["only in one: stream/windows.json"]


class Keeping:
    """Called in the run's process: what is made of a window is made, and its file copied."""

    def __init__(self, target):
        self.target = target

    def __call__(self):
        from denserl.data.windows import Windows

        write = Windows._written

        def kept(windows, number, folder):
            found = write(windows, number, folder)
            shutil.copy(folder / "rows.jsonl", self.target)
            return found

        Windows._written = kept


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks(stage, sft, tmp_path):
    one = run(sft, tmp_path / "one")
    same_numbers(one, run(sft, tmp_path / "two", 2, zero_stage=stage, micro_batch_size=2))


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("step", [3, 6])
def test_a_run_goes_on_to_the_bit(ranks, step, sft, tmp_path):
    """From within a window, and where windows before it are gone."""
    options = {"micro_batch_size": 2, "zero_stage": 1}
    whole, resumed = run(sft, tmp_path / "whole", ranks, before=Staying(), **options), tmp_path / "resumed"
    half = f"step-{step:06d}"
    shutil.copytree(whole / "checkpoints" / half, resumed / "checkpoints" / half)
    shutil.copytree(whole / "stream", resumed / "stream", ignore=shutil.ignore_patterns("window-*"))
    for file in whole.glob("*.jsonl"):
        shutil.copy(file, resumed)
    run(sft, resumed, ranks, before=Staying(), resume=True, **options)
    found = differences(whole, resumed)
    assert not [name for name in found if "checkpoints" not in name and "window-" not in name]


class Staying:
    """Called in the run's process: what is known of windows stays when the run has ended."""

    def __call__(self):
        from denserl.data.windows import Windows

        Windows.close = lambda windows: None
