"""Commands as users start them, on a GPU: as on the CPU in fp32, and in bf16; at ZeRO stages, with adapters, resumed."""

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from parity.conftest import make_trainings
from parity.ranks import deviations
from real_runs import SET_BY_LAUNCHERS, Training
from tiny_models import as_argv
from trainer.conftest import World, world  # noqa: F401

from denserl.trainer.trackers import read_metrics

TESTS = Path(__file__).parent.parent
SECONDS = 280
# In fp32 sums are taken in another order on a GPU. What comes of it over ten steps is told for the CPU in test_parity; here
# products differ as well, and Adam's steps of gradients that are themselves rounding.
METRICS, WEIGHTS = 1e-3, 1e-3
# In bf16, relative to losses of a few nats, on the way of ten steps.
NARROW = 0.1


class Started:
    """A command in a process of its own."""

    def __init__(self, command: str, argv: list[str], log: Path):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(SET_BY_LAUNCHERS)}
        # Functions that are named on the command line are among the tests' modules.
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *filter(None, [environment.get("PYTHONPATH")])])
        self.log, argv = log, [sys.executable, "-m", f"denserl.cli.{command}", *map(str, argv)]
        with open(log, "w") as file:
            self.process = subprocess.Popen(argv, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def ended(self) -> str:
        """What it wrote, when it has ended well."""
        try:
            assert self.process.wait(SECONDS) == 0, self.log.read_text()[-20000:]
        finally:
            self.process.kill()
        return self.log.read_text()


def start(training: Training, output: Path, device: str = "cuda", **options) -> Started:
    argv = training.arguments(output, **{"device": device, "dtype": "fp32", **options})
    return Started(training.command, argv, output.with_suffix(f".{len(list(output.parent.iterdir()))}.log"))


@pytest.fixture(scope="module")
def trainings(world, tmp_path_factory) -> dict[str, Training]:  # noqa: F811
    return make_trainings(world, tmp_path_factory.mktemp("trainings"))


@pytest.mark.parametrize(
    "name, zero_stage",
    [
        *((name, stage) for name in ("rm", "ppo", "sft") for stage in (0, 2, 3)),
        ("ppo-of-groups", 0),
        ("ratings", 0),
        ("labels", 0),
    ],
)
def test_in_fp32_a_training_goes_as_on_the_cpu(name, zero_stage, trainings, tmp_path):
    both = [
        start(trainings[name], tmp_path / "cpu", "cpu", zero_stage=0),
        start(trainings[name], tmp_path / "gpu", zero_stage=zero_stage),
    ]
    for one in both:
        one.ended()
    found = deviations(tmp_path / "cpu", tmp_path / "gpu")
    beyond = {key: value for key, value in found.items() if value > (WEIGHTS if key.endswith(".safetensors") else METRICS)}
    assert not beyond


LORA = {"lora_rank": 4, "lora_alpha": 8}


@pytest.mark.parametrize(
    "name, options",
    [
        ("rm", {"zero_stage": 0}),
        ("rm", {"zero_stage": 3}),
        ("rm", {"zero_stage": 2, **LORA}),
        ("rm", {"zero_stage": 2, "offload_optimizer": True}),
        ("rm", {"use_liger_kernel": True}),
        ("disentangled", {"zero_stage": 2}),
        ("meta", {"zero_stage": 2}),
        ("sft", {"zero_stage": 2}),
        ("ppo", {"zero_stage": 0}),
        ("ppo", {"zero_stage": 3}),
        ("ppo", {"zero_stage": 2, **LORA}),
        ("ppo", {"zero_stage": 2, "use_liger_kernel": True}),
        ("ppo-compared", {"zero_stage": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{key}-{number}" for key, number in value.items()),
)
def test_in_bf16_a_training_stays_near_fp32(name, options, trainings, tmp_path):
    """Losses of what is learned from rows; and a resumed run ends where one that was not stopped does."""
    lora = {key: value for key, value in options.items() if "lora" in key}
    samples, saves = "ppo" in name, {"save_steps": 4, "save_total_limit": 3}
    if samples:
        saves = {"save_every": 2, "keep_checkpoints": 3}
    training, output = trainings[name], tmp_path / "gpu"
    other = None if samples else start(training, tmp_path / "fp32", "cpu", **lora)
    assert "row by row" not in start(training, output, dtype="bf16", **options, **saves).ended()
    narrow = read_metrics(output / "metrics.jsonl")
    assert all(math.isfinite(value) for row in narrow for value in row.values() if isinstance(value, float))
    if samples:
        # Policy and reference are the same to the bit before the first update.
        assert [row["kl"] for row in narrow if row["step"] == 1] == [0.0]
    else:
        other.ended()
        for row, found in zip(read_metrics(tmp_path / "fp32/metrics.jsonl"), narrow, strict=True):
            for key in row.keys() & {"loss", "eval_loss"}:
                assert found[key] == pytest.approx(row[key], rel=NARROW, abs=NARROW), (key, row, found)
    newest = (output / "checkpoints/latest").read_text().strip()
    shutil.copytree(output, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints" / newest)
    assert "going on from" in start(training, tmp_path / "resumed", dtype="bf16", resume=True, **options, **saves).ended()
    found = deviations(output, tmp_path / "resumed")
    assert not {key: value for key, value in found.items() if value > NARROW}


@pytest.fixture(scope="module")
def reward_model(trainings, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("reward-model") / "rm"
    start(trainings["rm"], output, "cpu").ended()
    return output


def rows(path: Path) -> list[dict]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_other_commands_say_what_they_say_on_the_cpu(reward_model, world, trainings, tmp_path):  # noqa: F811
    held_out = trainings["rm"].arguments(tmp_path)
    pairs = held_out[held_out.index("--eval_data") + 1]
    sampled = {
        "model": world.sft,
        "data": world.prompts,
        "samples": 4,
        "max_new_tokens": 8,
        "true_reward": "tiny_models:letters",
    }
    made = {
        "evaluate": lambda output, **more: ["pairs", pairs, *as_argv({"scorer": reward_model, "output_dir": output, **more})],
        "bon": lambda output, **more: as_argv({**sampled, "reward_model": reward_model, "output_dir": output, **more}),
        "fit_normalizer": lambda output, **more: as_argv(
            {"reward_model": reward_model, "data": pairs, "output_dir": output, "cache_dir": output / "cache", **more}
        ),
    }
    places = {"cpu": ("cpu", "fp32"), "gpu": ("cuda", "fp32"), "bf16": ("cuda", "bf16")}
    started = [
        Started(
            command,
            argv(tmp_path / f"{command}-{place}", device=device, dtype=dtype),
            tmp_path / f"{command}-{place}.log",
        )
        for command, argv in made.items()
        for place, (device, dtype) in places.items()
    ]
    for one in started:
        one.ended()
    for place, close in (("gpu", 1e-3), ("bf16", 0.3)):
        expected, found = (rows(next((tmp_path / f"evaluate-{name}").glob("*_outputs.jsonl.gz"))) for name in ("cpu", place))
        for row, other in zip(expected, found, strict=True):
            of_sides = {key: value for key, value in row.items() if key.startswith("scores_")}
            assert of_sides and {key: other[key] for key in of_sides} == pytest.approx(of_sides, rel=close, abs=close)
    texts = [[row["response"] for row in rows(tmp_path / f"bon-{place}/samples.jsonl")] for place in ("cpu", "gpu")]
    assert texts[0] == texts[1]
    scores = [[row["proxy"] for row in rows(tmp_path / f"bon-{place}/scores.jsonl")] for place in ("cpu", "gpu")]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
