"""Hostile text in files and their names: one line a row, read back as it was, and no path that a text decides."""

import json
from pathlib import Path

import numpy as np
import pytest
from hostile import TEXTS, acting

from denserl.evaluation.plots import plot_normalizer
from denserl.ppo_utils.fits import choose_fit, fit_key, store_fit
from denserl.ppo_utils.normalizer import LocationNormalizer
from denserl.rewards.normalizer_fit import fit_lines, group_by_place
from denserl.trainer.trackers import SAMPLE_FILES, Trackers, read_metrics, write_batch

CONSTANTS = [0.5, -0.25, 1.0, 2.0]


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The folder around the run's own, and the working folder, which must stay as they are."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("name", SAMPLE_FILES)
def test_samples_are_one_line_each_and_read_back_as_they_were(outside, name):
    trackers = Trackers(outside / "run", [], {"model": "x"})
    segments = [[{"text": text, "raw": 1.0, "normalised": -1.0}] for text in TEXTS]
    samples = [{"prompt": t, "response": t, "ended": True, "segments": s} for t, s in zip(TEXTS, segments, strict=True)]
    trackers.log_samples(name, 3, samples)
    path = outside / "run" / f"{name}.jsonl"
    assert read_metrics(path) == [{"step": 3, **sample} for sample in samples]
    lines = path.read_bytes().decode("ascii").splitlines()  # which breaks lines at every separator that Unicode knows
    assert [json.loads(line)["prompt"] for line in lines] == TEXTS
    assert not acting("\n".join(lines))  # inert for whoever reads them with tail
    assert everything_in(outside) == {f"run/{file}.jsonl" for file in ("metrics", *SAMPLE_FILES)}


def test_skipped_batches_are_one_line_each_and_read_back_as_they_were(outside):
    rows = [{"prompt": text, "response": text, "reward": 0.5} for text in TEXTS]
    path = write_batch(outside / "skipped", "step-000001", rows)
    lines = path.read_bytes().decode("ascii").splitlines()
    assert [json.loads(line) for line in lines] == rows and not acting("\n".join(lines))


def test_metrics_of_hostile_names_are_one_line(outside):
    trackers = Trackers(outside / "run", [], {})
    trackers.log(1, {text: 1.0 for text in TEXTS})
    (row,) = read_metrics(outside / "run/metrics.jsonl")
    assert row == {"step": 1, **{text: 1.0 for text in TEXTS}}


@pytest.mark.parametrize("text", TEXTS)
def test_a_fit_by_a_hostile_segmenter_is_found_again_and_names_no_file(outside, text):
    """How responses are cut is a key in fits.json, never a part of a path."""
    text = text.encode(errors="replace").decode()  # a command line and a config hold no half surrogate pair
    path = outside / "fits" / "fits.json"
    for constants in (CONSTANTS, CONSTANTS[::-1]):
        store_fit(path, fit_key(text, "avg", 1.5), {"constants": constants, "reward_model": text})
    assert json.loads(path.read_text()) == {f"{text}/avg/1.5": {"constants": CONSTANTS[::-1], "reward_model": text}}
    assert choose_fit(str(path), [text], text, "avg", 1.5) == LocationNormalizer(*CONSTANTS[::-1])
    assert everything_in(outside) == {"fits/fits.json"}


def test_the_plot_of_a_fit_has_one_name(outside):
    rng = np.random.default_rng(0)
    groups = group_by_place([rng.normal(size=4) for _ in range(40)], 2)
    plot_normalizer(groups, *fit_lines(groups), outside / "run/normalizer.png")
    assert everything_in(outside) == {"run/normalizer.png"}


def test_a_tracker_keeps_options_inside_its_folder(outside):
    pytest.importorskip("tensorboard")
    options = {f"option{i}": text.encode(errors="replace").decode() for i, text in enumerate(TEXTS)}
    with Trackers(outside / "run", ["tensorboard"], options) as trackers:
        trackers.log(1, {"reward": 1.0})
        trackers.log_samples("samples", 1, [{"response": text, "segments": [{"text": text}]} for text in TEXTS])
    made = everything_in(outside)
    assert any("tfevents" in name for name in made)
    assert all(name.startswith("run/") and not acting(name) for name in made)
