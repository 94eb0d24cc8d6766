"""A server of vLLM started on this host, on loopback, from an environment of its own; it ends with whoever starts it."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from denserl.errors import UserError, require
from denserl.http import NoAnswer, Patience, get_json, new_client
from denserl.rollouts import keeper
from denserl.rollouts.servers import BACKEND, EXTENSION, PROCESSED

HOST, DASHES = "127.0.0.1", "--"
IN_SERVER = Path(__file__).parent / "in_server"
TO_END_SECONDS, POLL_SECONDS = 10.0, 0.2
LAST_LINES = 3
# What a launcher sets for the ranks of the training, and the paths of its packages.
NOT_THE_SERVERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "PYTHON")
# Where the environment says nothing else. On the CPU: GiB of cache, and threads that share their cores with the training.
USUALLY = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
# Updates of weights; nothing fetched, nothing told.
ALWAYS = {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class Sizes(NamedTuple):
    """What the server is started for: tokens of prompt and response together, responses at a time, precision, sleep."""

    tokens: int
    responses: int
    dtype: str  # fp32 or bf16
    cuda: bool
    sleep: bool


class Started:
    """A server that is being started from the Python of an environment; it serves the model of a folder at `url`.

    log: file for what it says. more: further arguments, as in a shell.
    """

    def __init__(self, python: str, model: Path, sizes: Sizes, log: Path, more: str | None):
        require(
            os.access(python, os.X_OK) and os.path.isfile(python),
            f"`rollout_python` {python} is no program",
            "give the Python of the environment that has vLLM, e.g. vllm/bin/python (docs/rollouts.md)",
        )
        self.log, port = log, free_port()
        self.url = f"http://{HOST}:{port}"
        place = [DASHES + "host", HOST, DASHES + "port", str(port)]
        words = [python, "-m", "vllm.entrypoints.openai.api_server", *place, *arguments(model, sizes), *shlex.split(more or "")]
        with open(log, "ab") as file:
            self.keeper = subprocess.Popen(
                [sys.executable, "-I", keeper.__file__, str(TO_END_SECONDS), *words],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=environment(os.environ),
                # Ctrl-C is for the training, which may have a step to finish.
                start_new_session=True,
            )

    def wait(self, seconds: float) -> None:
        """Wait until it answers. UserError with its last words where it ends, or does not in time."""
        client, until = new_client(), time.monotonic() + seconds
        while not _is_there(client, self.url):
            status = self.keeper.poll()
            found = f"ended with status {status}" if status is not None else f"does not answer after {seconds:g} s"
            if status is not None or time.monotonic() > until:
                self.close()
                raise UserError(f"the server that `rollout_python` starts {found}{self.said()}", f"see {self.log}")
            time.sleep(POLL_SECONDS)

    def said(self) -> str:
        """The last lines of its log, for a message."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "; its last words: " + " / ".join(line.strip() for line in lines) if lines else ""

    def close(self) -> None:
        """End it."""
        self.keeper.stdin.close()
        self.keeper.wait()


def arguments(model: Path, sizes: Sizes) -> list[str]:
    """How a server is started that a training can sample from."""
    options: dict[str, object] = {
        "model": model,
        "served-model-name": "policy",
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[sizes.dtype],
        "max-model-len": sizes.tokens,
        "max-num-seqs": sizes.responses,
        "logprobs-mode": PROCESSED,
        "worker-extension-cls": EXTENSION,
        "weight-transfer-config": json.dumps({"backend": BACKEND}),
        # Whatever the model's own settings say.
        "generation-config": "vllm",
        "skip-tokenizer-init": True,
        "enable-scale-out": True,
        "enable-sleep-mode": sizes.sleep,
    }
    if not sizes.cuda:
        # Compiling takes minutes; and seeds of single requests end the server where it reads a prompt in parts.
        options |= {"enforce-eager": True, "max-num-batched-tokens": sizes.tokens * sizes.responses}
    given = {name: value for name, value in options.items() if value is not False}
    return [word for name, value in given.items() for word in (DASHES + name, *([] if value is True else [str(value)]))]


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """The server's environment variables, made of this process's."""
    kept = {name: value for name, value in own.items() if not name.startswith(NOT_THE_SERVERS)}
    return {**USUALLY, **kept, **ALWAYS, "VLLM_HOST_IP": HOST, "PYTHONPATH": str(IN_SERVER)}


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        return free.getsockname()[1]


def _is_there(client, url: str) -> bool:
    try:
        get_json(client, f"{url}/version", Patience(5.0, 1))
    except NoAnswer:
        return False
    return True
