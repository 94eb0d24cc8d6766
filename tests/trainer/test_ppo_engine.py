"""PPO whose responses come from servers: the same run as with the own decoder, what befalls servers, and what is refused."""

from pathlib import Path

import pytest
import rollout_stub
import torch
from safetensors.torch import load_file
from tiny_models import restored_environment, run_command

from denserl.cli import train_ppo
from denserl.rollouts import vllm
from denserl.trainer.trackers import read_metrics

LETTERS = str(Path(__file__).parent.parent / "tiny_models.py") + ":letters"
RUN = {"reward_model": None, "entropy_threshold": None, "reward_function": LETTERS, "iterations": 3, "train_batch_size": 4}
BY_ENGINE = {"rollout_engine": "vllm", "rollout_timeout": 20}


def run(world, output: Path, **options) -> list[dict]:
    """A run in this process; its metrics without what a clock measured."""
    with restored_environment():
        run_command(train_ppo, "train-ppo", world.argv(output, **RUN | options))
    rows = read_metrics(output / "metrics.jsonl")
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def same_streams(monkeypatch):
    """Lets a server know the streams that seeds were drawn from."""

    def tell(server: rollout_stub.Server) -> None:
        seed_of = vllm.seed_of

        def told(stream):
            server.streams[seed_of(stream)] = stream
            return seed_of(stream)

        monkeypatch.setattr(vllm, "seed_of", told)

    return tell


@pytest.fixture(scope="module")
def by_decoder(world, tmp_path_factory):
    """Metrics and weights of a run with the own decoder."""
    output = tmp_path_factory.mktemp("decoder") / "run"
    rows = run(world, output, eval_prompts=world.prompts, eval_every=1)
    return rows, weights(output)


@pytest.mark.parametrize("sync", ["broadcast", "disk"])
def test_a_run_by_a_server_is_that_by_the_own_decoder(world, by_decoder, same_streams, sync, tmp_path):
    rows, final = by_decoder
    with rollout_stub.serving(world.sft) as server:
        same_streams(server)
        options = {"rollout_url": server.url, "rollout_sync": sync, "rollout_correction": "truncated"}
        found = run(world, tmp_path / "run", eval_prompts=world.prompts, eval_every=1, **BY_ENGINE, **options)
        assert not server.paused and server.cached is None
    for row, expected in zip(found, rows, strict=True):
        mismatches = [row.pop(key) for key in list(row) if "mismatch" in key]
        assert len(mismatches) % 3 == 0 and max(mismatches) < 1e-5
        assert row.keys() == expected.keys()
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, final[name], rtol=0, atol=1e-5)
