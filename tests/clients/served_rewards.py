"""Do OpenRLHF, TRL, verl and SkyRL get from `denserl serve-rewards` what denserl scores in process? Run by hand:

    .venv/bin/python tests/clients/served_rewards.py

Makes an environment of its own for them, once; serves a tiny reward model with segments behind a token, and lets their own code
ask: OpenRLHF's executor of single turns and GRPOTrainer with examples/trl_rewards.py for a number a response; by
denserl/integrations, verl's workers of agent loops and of rewards, SkyRL's generator and OpenRLHF's maker of experiences.
Ends with status 1 where a number differs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import tiny_models  # noqa: E402
from ask_served_rewards import conversations  # noqa: E402

from denserl.models.reward_models import new_reward_model  # noqa: E402
from denserl.models.reward_settings import store_settings  # noqa: E402
from denserl.models.tokenizers import load_tokenizer  # noqa: E402
from denserl.rewards.scorer import RewardScorer  # noqa: E402

TOKEN = "a-token-of-the-test"
TOLERANCE = 1e-5  # of fp32 scores, relative to their size
# Without what they bring for GPUs and clusters, none of which the code that asks needs.
BARE = ("openrlhf==0.11.2", "verl==0.9.1", "skyrl==0.3.0", "skyrl-gym==0.4.0")
NEEDED = (
    *("trl==1.16.0", "aiohttp", "ray==2.55.0", "tensordict", "codetiming", "hydra-core", "orjson", "torchdata", "cachetools"),
    *("prometheus_client", "TransferQueue", "uvicorn", "fastapi", "peft", "pillow", "pylatexenc", "jsonlines", "loralib"),
    *("deepspeed", "torchmetrics", "loguru", "func_timeout", "jaxtyping", "polars", "httpx", "cloudpathlib", "lazy-loader"),
)
# What each is asked by.
SCALAR = dict.fromkeys(("openrlhf", "trl"), "ask_served_rewards.py")
DENSE = dict.fromkeys(("verl", "skyrl", "openrlhf-dense"), "ask_dense_rewards.py")


def environment(folder: Path) -> str:
    """The Python of an environment with the clients, made where it is not there yet."""
    python, made = folder / "bin" / "python", folder / "made"
    if not made.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, f"torch=={version('torch').partition('+')[0]}"], check=True)
        subprocess.run([*pip, *NEEDED, "-c", str(HERE.parents[1] / "constraints.txt")], check=True)
        subprocess.run([*pip, "--no-deps", *BARE], check=True)
        made.touch()
    return str(python)


def make(folder: Path) -> Path:
    """A policy, and a reward model that is cut by its entropies."""
    sft = tiny_models.save_language_model(folder / "sft")
    model = new_reward_model(str(sft), "fp32", 1)
    with torch.no_grad():
        model.score.weight.mul_(20)
    store_settings(model.config, agg_func="avg", entropy_threshold=5.31, sft_model=str(sft))
    model.save_pretrained(folder / "rm")
    load_tokenizer(str(sft)).save_pretrained(folder / "rm")
    return folder / "rm"


def scored(scorer: RewardScorer, client: str, found: list) -> tuple[list[float], list[float]]:
    """What the client got, and what is scored here."""
    if client == "trl":
        prompts, texts, rewards = zip(*found)
        return list(rewards), scorer(prompts, texts).tolist()
    rows = [scorer.encode(*row) for row in conversations()]
    if client == "openrlhf":
        return [reward for (reward,) in found], scorer.score(rows).tolist()
    expected = []
    for row, reading, paid in zip(rows, scorer.read(rows), found, strict=True):
        changes, before = [0.0] * len(row.response_ids), 0.0
        for count, (token, _) in enumerate(reading.segments, 1):
            so_far = sum(score for _, score in reading.segments[:count]) / count
            place = len(changes) - 1 if count == len(reading.segments) else _whole(scorer.tokenizer, row.response_ids, token)
            changes[place] += so_far - before
            before = so_far
        assert len(paid) == len(changes)
        expected += changes
    return [reward for paid in found for reward in paid], expected


def _whole(tokenizer, ids: list[int], token: int) -> int:
    """The last token, up to the given one, with which a character ends: only there can a client see a segment's end."""
    wholes = [tokenizer.decode(ids[: n + 1]).rstrip("\ufffd") for n in range(token + 1)]
    return wholes.index(wholes[-1])


def ask(client: str, python: str, url: str, scratch: Path) -> list:
    """What a client is answered; it brings the token as it can."""
    with_token = url.replace("//", f"//any:{TOKEN}@") + "/get_reward"
    words = [
        python,
        str(HERE / (SCALAR | DENSE)[client]),
        client,
        with_token,
        str(scratch / "sft"),
        str(scratch / f"{client}.json"),
    ]
    settings = {"REWARDS_URL": f"{url}/rewards", "REWARDS_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if client in DENSE:
        settings["PYTHONPATH"] = str(HERE.parents[1])  # this package, without what it needs
    subprocess.run(words, check=True, cwd=scratch, env=environment | settings, stdout=subprocess.DEVNULL)
    found = json.loads((scratch / f"{client}.json").read_text())
    print(f"{client} {found['version']}: ", end="", flush=True)
    return found["found"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", type=Path, help="their environment; default: a folder of the system's for temporary files")
    parser.add_argument("--clients", nargs="+", default=[*SCALAR, *DENSE], choices=[*SCALAR, *DENSE])
    options = parser.parse_args()
    python = environment(options.env or Path(tempfile.gettempdir()) / "denserl-client-served-rewards")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = make(scratch)
        scorer = RewardScorer([str(model)])
        command = [sys.executable, "-m", "denserl.cli.main", "serve-rewards", "--reward_model", str(model), "--device", "cpu"]
        command += ["--port", "0", "--token_env", "THE_TOKEN"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "THE_TOKEN": TOKEN}) as server:
            url = re.search(r"http://[\d.:]+", server.stdout.readline())[0]
            try:
                for client in options.clients:
                    found, expected = scored(scorer, client, ask(client, python, url, scratch))
                    size = max(map(abs, expected))
                    difference = max(abs(a - b) for a, b in zip(found, expected, strict=True)) / size
                    print(f"{len(found)} rewards up to {size:.2f}, largest relative difference {difference:.1e}")
                    failed |= not difference < TOLERANCE
            finally:
                server.terminate()
    print("all alike" if not failed else "not alike")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
