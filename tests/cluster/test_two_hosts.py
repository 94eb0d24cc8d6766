"""Training on two hosts: two network namespaces of this machine joined by a cable, one rank each; with a server of rollouts on
one of them; and the hostfile launch.

Making network namespaces takes rights that ordinary users lack; the test is skipped without them.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rollout_stub
from parity.ranks import deviations
from real_runs import SET_BY_LAUNCHERS, Training

from denserl.cli import train_rm
from denserl.cli.options import parse

ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = "29511"
SECONDS = 180
# Sums over hosts are added in another order than sums over rows (see tests/parity).
ROUNDING = 1e-5
SHORT = {
    "ppo": {"iterations": 3, "train_batch_size": 8, "ppo_epochs": 1, "ptx_data": None, "actor_lr": 1e-4, "eval_every": 1},
    "rm": {"epochs": 1, "logging_steps": 1},
}
WEIGHTS = ["/pause", "/reset_prefix_cache", "/update_weight_version", "/resume"]
ON_ITS_WAY = {
    "broadcast": ["/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update"],
    "disk": ["/collective_rpc"],
}
DOCUMENTS = [path for folder in (".", "docs") for path in (Path(__file__).parents[2] / folder).glob("*.md")]


def ip(*words: str) -> None:
    """Run `ip`; its complaint becomes a skip, because that is what missing rights look like."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"network namespaces cannot be made here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def hosts():
    """The names of two network namespaces with an address each on the ends of one cable; removed afterwards in any case."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces cannot be made here: no command ip")
    names = [f"denserl-{os.getpid()}-{i}" for i in range(2)]
    with contextlib.ExitStack() as clean_up:
        for name in names:
            ip("netns", "add", name)
            clean_up.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names


def on_hosts(hosts: list[str], training: Training, output: Path, **options) -> None:
    """The documented torchrun command on each host."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(SET_BY_LAUNCHERS)}
    environment["GLOO_SOCKET_IFNAME"] = "cable"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(hosts)), "--nproc_per_node", "1"]
    torchrun += ["--master_addr", ADDRESSES[0], "--master_port", PORT]
    module = ["-m", f"denserl.cli.{training.command}", *training.arguments(output, **options)]
    logs = [output.with_name(f"{output.name}-{i}.log") for i in range(len(hosts))]
    started = []
    for node, (host, log) in enumerate(zip(hosts, logs)):
        argv = ["ip", "netns", "exec", host, *torchrun, "--node_rank", str(node), *module]
        with open(log, "w") as file:
            started.append(subprocess.Popen(argv, env=environment, stdout=file, stderr=file))
    try:
        codes = [process.wait(SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * len(hosts), "\n".join(log.read_text()[-3000:] for log in logs)


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("zero_stage", [2, 3])
@pytest.mark.parametrize("name", ["ppo", "rm"])
def test_two_hosts_do_what_one_process_does(name, zero_stage, hosts, trainings, tmp_path):
    training, short = trainings[f"{name}-zero0"], SHORT[name]
    code, said = training.run(tmp_path / "one", **short)
    assert code == 0, said[-3000:]
    on_hosts(hosts, training, tmp_path / "two", **short, zero_stage=zero_stage)
    apart = deviations(tmp_path / "one", tmp_path / "two")
    assert max(apart.values()) < ROUNDING, apart


@contextlib.contextmanager
def server_on(host: str, address: str, model: Path):
    """A stand-in of vLLM's server in a namespace; yields its URL, and a dictionary of what it has seen, filled when it ends."""
    argv = ["ip", "netns", "exec", host, sys.executable, rollout_stub.__file__, str(model), address]
    seen = {}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip(), seen
            seen.update(json.loads(process.communicate(timeout=SECONDS)[0]))
        finally:
            process.kill()


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("sync, ranks, zero_stage", [("broadcast", 1, 0), ("broadcast", 2, 3), ("disk", 2, 0)])
def test_a_server_on_one_of_two_hosts_is_given_the_weights(sync, ranks, zero_stage, hosts, trainings, world, tmp_path):
    """The run with such a server beside it on this machine. Namespaces share their disk."""
    training = trainings["ppo-zero0"]
    # Held-out prompts, dealt to ranks in equal numbers, would be asked for twice.
    options = {**SHORT["ppo"], "eval_prompts": None, "eval_every": None}
    options |= {"rollout_engine": "vllm", "rollout_sync": sync, "rollout_timeout": 60}
    with rollout_stub.serving(world.sft) as beside:
        code, said = training.run(tmp_path / "one", rollout_url=beside.url, **options)
        assert code == 0, said[-3000:]
    with server_on(hosts[1], ADDRESSES[1], world.sft) as (url, seen):
        assert url.startswith(f"http://{ADDRESSES[1]}:")
        on_hosts(hosts[:ranks], training, tmp_path / "two", rollout_url=url, zero_stage=zero_stage, **options)
    apart = deviations(tmp_path / "one", tmp_path / "two")
    assert max(apart.values()) < ROUNDING, apart
    assert seen["responses"] == len(beside.bodies) > 0
    for path in WEIGHTS + ON_ITS_WAY[sync]:
        assert seen["seen"].count(path) == beside.seen.count(path) >= options["iterations"], path


def documented(start: str) -> list[str]:
    """The lines of the documentation that begin with these words."""
    lines = [line.strip() for path in DOCUMENTS for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.startswith(start)]


def test_the_documented_hostfile_and_its_launch_are_read_by_deepspeed(tmp_path):
    from deepspeed.launcher import runner

    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    lines = dict(re.findall(r"(\w+) slots=(\d+)", text))
    assert lines
    (tmp_path / "hosts.txt").write_text("".join(f"{host} slots={slots}\n" for host, slots in lines.items()))
    assert runner.fetch_hostfile(str(tmp_path / "hosts.txt")) == {host: int(slots) for host, slots in lines.items()}
    commands = documented("deepspeed --hostfile")
    assert commands
    for command in commands:
        args = runner.parse_args(shlex.split(command)[1:])
        assert args.module and args.user_script == "denserl.cli.train_rm"
        assert parse(train_rm.Options, "train-rm", args.user_args).output_dir
