"""Do OpenRLHF, TRL and verl get from `denserl serve-rewards` what denserl scores in process? Run by hand:

    .venv/bin/python tests/clients/served_rewards.py

Makes an environment of its own for them, once; serves a tiny reward model with segments behind a token, and lets their own code
ask: OpenRLHF's executor of single turns, GRPOTrainer with examples/trl_rewards.py, and a reward manager of verl's with
examples/verl_rewards.py. Ends with status 1 where a number differs.
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
BARE = ("openrlhf==0.11.2", "verl==0.9.1")
NEEDED = (
    *("trl==1.16.0", "aiohttp", "ray==2.55.0", "tensordict", "codetiming", "hydra-core", "orjson", "torchdata"),
    *("cachetools", "prometheus_client"),
)


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
    rows = [scorer.encode(prompt, text, ended or client == "verl") for prompt, text, ended in conversations()]
    if client == "openrlhf":
        return [reward for (reward,) in found], scorer.score(rows).tolist()
    expected = []
    for row, reading, paid in zip(rows, scorer.read(rows), found, strict=True):
        shares = [0.0] * len(paid)
        for token, score in reading.segments:
            shares[_whole(scorer.tokenizer, row.response_ids, token)] += score / len(reading.segments)
        expected += shares
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
        str(HERE / "ask_served_rewards.py"),
        client,
        with_token,
        str(scratch / "sft"),
        str(scratch / f"{client}.json"),
    ]
    settings = {"REWARDS_URL": f"{url}/rewards", "REWARDS_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(words, check=True, cwd=scratch, env=environment | settings, stdout=subprocess.DEVNULL)
    found = json.loads((scratch / f"{client}.json").read_text())
    print(f"{client} {found['version']}: ", end="", flush=True)
    return found["found"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", type=Path, help="their environment; default: a folder of the system's for temporary files")
    parser.add_argument("--clients", nargs="+", default=["openrlhf", "trl", "verl"])
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
