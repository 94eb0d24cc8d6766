"""A judge behind a server of another library, `transformers serve`, in an environment of its own: `make engine-test`.

At temperature 0 it gives, to the letter, what the same model gives in our own sampler.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
import tiny_models
import torch
from transformers import GenerationConfig

from denserl.config import DeviceConfig
from denserl.errors import UserError
from denserl.http import Patience
from denserl.judging.contract import Decoding, Request
from denserl.judging.endpoint import Endpoint
from denserl.judging.local import LocalModel
from denserl.world.language import MEANINGS, TOPICS, make_prompt

ROOT = Path(__file__).parent.parent
SERVE = ROOT / "runs/engine/bin/transformers"
SECONDS = 300  # until the server is there
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model from which that server samples: it does so only where the model's own settings say it."""
    folder = tiny_models.save_language_model(tmp_path_factory.mktemp("judge"), hidden=64)
    settings = GenerationConfig.from_pretrained(folder)
    settings.do_sample = True
    settings.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    """The address of a server of the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["serve", str(folder), "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", port]
    said, began = tmp_path_factory.mktemp("server") / "log", time.monotonic()
    with open(said, "w") as log, subprocess.Popen([SERVE, *words], stdout=log, stderr=log, env=os.environ | OFFLINE) as server:
        try:
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None and time.monotonic() - began < SECONDS, said.read_text()[-3000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).status_code == 200
    except httpx2.RequestError:
        return False


def endpoint(url: str, folder: Path) -> Endpoint:
    return Endpoint(url, str(folder), None, 3, Patience(60.0, 2))


def questions(count: int, decoding: Decoding) -> list[Request]:
    turns = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "The kettle hums."}]
    return [Request([*turns[: 1 + i % 2], {"role": "user", "content": f"Why {i}?"}][i % 2 :], decoding) for i in range(count)]


def test_its_most_likely_answers_are_those_of_our_sampler(url, folder):
    """Texts, what is cut, and the counts of tokens."""
    asked = questions(12, Decoding(9))
    local = LocalModel(str(folder), DeviceConfig(), torch.device("cpu"), "fp32", 4)
    assert dict(endpoint(url, folder).replies(asked)) == dict(local.replies(asked))


def test_answers_are_drawn(url, folder):
    asked = [questions(1, Decoding(4, 1.0, 0.95))[0]._replace(sample=sample) for sample in range(10)]
    assert len({reply.text for _, reply in endpoint(url, folder).replies(asked)}) > 3


def test_a_server_without_log_probabilities_gives_no_verdict_by_them(url, folder):
    with pytest.raises(UserError, match="gave no log-probabilities"):
        list(endpoint(url, folder).replies(questions(1, Decoding(1, top_logprobs=5))))


def test_an_address_below_which_there_is_nothing(url, folder):
    with pytest.raises(UserError, match="answered 404: .*Not Found"):
        list(endpoint(url.removesuffix("/v1"), folder).replies(questions(1, Decoding(1))))


def test_a_suite_is_judged_alike(url, folder, tmp_path):
    """`denserl evaluate` by the server and by the model on this machine: the same answers, and numbers."""
    said, rows = sorted(MEANINGS), tmp_path / "pairs.jsonl"
    prompts = [make_prompt(topic, "cheap", 0) for topic in TOPICS]
    pairs = [{"prompt": prompt, "chosen": said[i], "rejected": said[-1 - i]} for i, prompt in enumerate(prompts)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")

    def judged(*judge: str) -> tuple[dict, list[str]]:
        output = tmp_path / str(len(judge))
        words = ["pairs", str(rows), "--judge", *judge, "--judge_max_new_tokens", "12", "--output_dir", str(output)]
        subprocess.run([sys.executable, "-m", "denserl.cli.evaluate", *words], check=True, env=os.environ | OFFLINE, cwd=ROOT)
        found = json.loads((output / "results.json").read_text(encoding="utf-8"))
        lines = (output / "judge_answers.jsonl").read_text(encoding="utf-8").splitlines()
        return found, sorted(json.loads(line)["text"] for line in lines)

    (served, texts), (local, same_texts) = judged(url, "--judge_model", str(folder)), judged(str(folder))
    assert len(texts) == 2 * len(pairs) and texts == same_texts
    assert served["accuracy"] == local["accuracy"]
    (one,), (other,) = served["judge"].pop("judges"), local["judge"].pop("judges")
    assert served["judge"] == local["judge"] and {**one, "version": other["version"]} == other
