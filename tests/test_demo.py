"""`make demo`'s pipeline in a shortened form: every stage runs, and leaves what the next one needs."""

import json
import os
import re
import signal

import pytest

from denserl.cli import demo
from denserl.cli.demo_ways import SFT
from denserl.cli.options import parse
from denserl.cli.pipeline import stage
from denserl.errors import Stopped
from denserl.trainer.sft_trainer import SFTTrainer


@pytest.fixture(
    scope="module",
    # With half the data segments are not yet longer than tokens.
    params=["0.01 segment bandit", pytest.param("0.02 segment token bandit", marks=pytest.mark.long)],
)
def finished(request, tmp_path_factory):
    folder, (scale, *levels) = tmp_path_factory.mktemp("demo"), request.param.split()
    options = parse(demo.Options, "demo", ["--output_dir", str(folder), "--scale", scale, "--levels", *levels])
    return folder, demo.run(options)


def test_all_levels_run_to_the_end(finished):
    folder, results = finished
    ways = {"segment": "difference_end", "segment-published": "even", "token": "difference_end", "bandit": "mean_last"}
    found = {name: way["assignment"] for name, way in results["levels"].items()}
    assert list(found.items()) == [way for way in ways.items() if way[0] in found]
    assert found.keys() == ways.keys() - ({"token"} if len(found) == 3 else set())
    for level, result in results["levels"].items():
        assert 0 <= result["rm_accuracy"] <= 1
        assert -1 <= result["true_before"] <= 1 and -1 <= result["true_after"] <= 1
        for file in ("model.safetensors", "critic/model.safetensors", "metrics.jsonl", "eval_samples.jsonl"):
            assert (folder / f"ppo-{level}" / file).is_file()
    assert json.loads((folder / "results.json").read_text())["levels"] == results["levels"]


def test_levels_differ_in_their_segments_alone(finished):
    folder, results = finished
    first = {
        level: json.loads((folder / f"ppo-{level}/metrics.jsonl").read_text().splitlines()[0])["eval_segments"]
        for level in results["levels"]
    }
    assert first["bandit"] == 1 < first["segment"]
    # One segment per content token, up to those the model is certain of.
    if "token" in first:
        assert first["token"] > first["segment"]


def test_the_normaliser_was_stored_for_the_way_that_uses_it(finished):
    folder, _ = finished
    stored = json.loads((folder / "rm-segment/fits.json").read_text())
    assert set(stored) == {"peak/avg/1.5"} and len(stored["peak/avg/1.5"]["constants"]) == 4
    assert stored["peak/avg/1.5"]["max_length"] == 256  # the reward model's


def test_the_report_is_one_file_that_names_every_level(finished):
    folder, results = finished
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html and not re.search(r"(src|href)=\"(?!data:|#)", html)
    for level in results["levels"]:
        assert level in html


def test_a_stage_that_was_stopped_goes_on_when_the_demo_is_called_again(finished, tmp_path, monkeypatch):
    folder, _ = finished
    flags = {**SFT, "model": folder / "world/base", "data": folder / "world/sft.jsonl", "output_dir": tmp_path, "seed": 0}
    sums = SFTTrainer.sums

    def signalled(self, model, batch):
        os.kill(os.getpid(), signal.SIGINT)
        return sums(self, model, batch)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="after step 1 of"):
        patch.setattr(SFTTrainer, "sums", signalled)
        stage("train-sft", **flags)
    # The second time it goes on, the third time it is at its end already.
    for _ in range(2):
        stage("train-sft", **flags)
        assert (tmp_path / "model.safetensors").read_bytes() == (folder / "sft/model.safetensors").read_bytes()
        assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "sft/metrics.jsonl").read_bytes()
