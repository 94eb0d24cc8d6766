"""One good folder or file of each kind that the commands read, made once, and the flags of a run of each command on them."""

import gzip
import json
import shutil
import socket
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
import tiny_models
from huggingface_hub import constants

from denserl.data import hub
from denserl.models.reward_models import new_reward_model
from denserl.models.tokenizers import load_tokenizer

PROMPT = "Tell me about the old kettle."
PAIRS = [{"prompt": PROMPT, "chosen": f"The kettle hums {n} times.", "rejected": "No."} for n in range(4)]


class World(NamedTuple):
    """Good inputs under `good`, shared by all tests, and a folder `own` of the test that asks."""

    good: Path
    own: Path

    def flags(self, command: str) -> dict:
        """The flags of a run of the command in which nothing is wrong."""
        sft, rm, pairs, prompts = (self.good / name for name in ("sft", "rm", "pairs.jsonl", "prompts.jsonl"))
        sizes = {"batch_size": 2, "micro_batch_size": 2, "max_length": 64, "save_steps": 0, "device": "cpu"}
        fitted = {"fit": self.good / "fits.json"}
        ppo = {"rollout_batch_size": 4, "train_batch_size": 4, "micro_batch_size": 4, "max_new_tokens": 8, "iterations": 1}
        lengths = {"max_prompt_length": 32, "cache_dir": self.own / "cache"}
        own = {
            "make-world": {},
            "demo": {},
            "new-model": {"data": pairs},
            "train-sft": {"model": sft, "data": pairs, **sizes},
            "train-rm": {"model": sft, "data": pairs, "eval_data": pairs, **sizes, **lengths},
            "fit-normalizer": {
                "reward_model": rm,
                "data": pairs,
                "fit": self.own / "fits.json",
                "max_length": 64,
                **lengths,
            },
            "train-ppo": {"model": sft, "reward_model": rm, "data": prompts, "assignment": "even", **fitted, **ppo},
            "bon": {
                "model": sft,
                "reward_model": rm,
                "gold_reward_model": rm,
                "data": prompts,
                "samples": 2,
                "max_new_tokens": 8,
            },
            # It writes nothing.
            "plan": {"output_dir": None, "model": sft, "gpu_memory": 80},
        }
        return {"output_dir": self.own / "out", **own[command]}

    def file(self, name: str, content: bytes | str) -> Path:
        """A file of the test's own; its content is compressed where the name ends with .gz."""
        data = content.encode() if isinstance(content, str) else content
        path = self.own / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    def folder(self, good: str) -> Path:
        """A copy of a good folder, to be spoilt."""
        return Path(shutil.copytree(self.good / good, self.own / good))


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("good")
    sft = tiny_models.save_language_model(root / "sft")
    tokenizer = load_tokenizer(str(sft))
    model = new_reward_model(str(sft), "fp32")
    # As train-rm leaves it, but for the mean and std of its scores.
    model.config.segment_reward = {"sft_model": str(sft), "entropy_threshold": 1.75}
    model.save_pretrained(root / "rm")
    tokenizer.save_pretrained(root / "rm")
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in PAIRS))
    (root / "fits.json").write_text(json.dumps({"peak/avg/1.75": {"constants": [0.3, -0.1, 0.2, 1.5]}}))
    return root


@pytest.fixture
def world(good, tmp_path, monkeypatch) -> World:
    # The hub cannot be reached, whether it can or not; afterwards it can be again.
    monkeypatch.setattr(hub, "_answers", lambda url: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hub.go_offline_if_unreachable.cache_clear()
    with tiny_models.restored_environment():
        yield World(good, tmp_path)
    hub.go_offline_if_unreachable.cache_clear()


@pytest.fixture
def taken_port():
    """A port that something listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]
