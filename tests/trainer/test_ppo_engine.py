"""PPO whose responses come from servers: the same run as with the own decoder, what befalls servers, and what is refused."""

from pathlib import Path

import pytest
import rollout_stub
import torch
from parity import ranks
from real_runs import Training
from safetensors.torch import load_file
from tiny_models import restored_environment, run_command

from denserl.cli import train_ppo
from denserl.errors import UserError
from denserl.rollouts import vllm
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_engine import check_mismatch
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


def test_a_run_whose_server_dies_goes_on_as_if_it_had_not(world, by_decoder, same_streams, tmp_path):
    rows, final = by_decoder
    options = {**BY_ENGINE, "save_every": 1, "eval_prompts": world.prompts, "eval_every": 1}
    with rollout_stub.serving(world.sft) as server:
        same_streams(server)

        def dies(path: str, body: dict) -> None:
            if len(server.bodies) > 30:  # 5 before training, 13 an iteration
                raise ConnectionError

        server.fault = dies
        with pytest.raises(UserError, match="gave no answer.*\n.*--resume"):
            run(world, tmp_path / "run", rollout_url=server.url, **options)
    with rollout_stub.serving(world.sft) as server:
        same_streams(server)
        found = run(world, tmp_path / "run", rollout_url=server.url, resume=True, **options)
        assert server.seen.index("/update_weights") < server.seen.index("/inference/v1/generate")
    for row, expected in zip(found, rows, strict=True):
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, final[name], rtol=0, atol=1e-5)


@pytest.mark.long
def test_two_ranks_share_servers_and_weights_that_are_spread(world, tmp_path):
    """At ZeRO 3, two servers: the run of one rank and one server."""
    rows = []
    for count in (1, 2):
        with rollout_stub.serving(world.sft) as one, rollout_stub.serving(world.sft) as two:
            training = Training("train_ppo", world.argv, {**RUN, **BY_ENGINE, "zero_stage": 3, "micro_batch_size": 2})
            output = ranks.run(training, tmp_path / str(count), count, rollout_url=[one.url, two.url][:count])
            assert len(one.bodies) + len(two.bodies) == 24 and (count == 1 or len(one.bodies) == 12)
        rows.append(read_metrics(Path(output) / "metrics.jsonl"))
    for single, shared in zip(*rows, strict=True):
        for name in ("reward", "policy_loss", "kl", "response_length", "actor_grad_norm"):
            assert shared[name] == pytest.approx(single[name], rel=1e-4, abs=1e-5), name
        assert shared["rollout_mismatch_max"] < 1e-5


def test_what_is_no_engine_of_the_policy_ends_the_run():
    check_mismatch({"rollout_mismatch_mean": 0.2})
    check_mismatch({})
    check_mismatch({"rollout_mismatch_mean": float("nan")})  # a step of it is skipped
    with pytest.raises(UserError, match="are 0.3 nats a token from the policy's"):
        check_mismatch({"rollout_mismatch_mean": 0.3})


REFUSED = {
    "neither": ({}, "none of `rollout_url` and `rollout_python`"),
    "both": ({"rollout_url": ["http://x"], "rollout_python": "p"}, "both of `rollout_url` and `rollout_python`"),
    "a correction": ({"rollout_url": ["http://x"], "rollout_correction": "masked", "top_p": 0.9}, "`top_p` 0.9"),
    "a temperature": ({"rollout_url": ["http://x"], "temperature": 0.001}, "`temperature` 0.001"),
    "an option of the engine": ({"rollout_engine": "policy", "rollout_sleep": True}, "`rollout_sleep` has no effect"),
    "arguments": ({"rollout_url": ["http://x"], "rollout_args": "x"}, "`rollout_args` x has no effect"),
    "a cap": ({"rollout_url": ["http://x"], "rollout_cap": 3.0}, "`rollout_cap` 3.0 has no effect"),
}


@pytest.mark.parametrize("options, words", REFUSED.values(), ids=REFUSED)
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(UserError, match=words):
        PPOConfig(
            **{"model": "m", "data": ["d"], "output_dir": "o", "reward_function": "f", "rollout_engine": "vllm", **options}
        ).check()
