"""A server for tests that speaks what is spoken with vLLM: a tiny model, the project's own sampler, weights that it is given.

    with serving(folder) as server:
        denserl train-ppo --rollout_engine vllm --rollout_url {server.url}

It takes weights by the very code that vLLM's workers run, on stand-ins of vLLM's classes, and is as strict as vLLM: it gives
no tokens while it is paused, and until its cache is emptied, those of the weights before.
`server.streams` may hold the streams that seeds were drawn from; then responses are those of the project's own decoder.
`server.fault` is asked before each request is answered: (path, body) -> None, or (status, JSON or text), or an exception.

As a program, `rollout_stub.py FOLDER ADDRESS`, it prints its URL, serves until its input ends, and prints what it has seen.
"""

import contextlib
import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import torch
from reward_server import listening, respond
from transformers import AutoModelForCausalLM

from denserl.rollouts.policy import PolicySampler
from denserl.rollouts.servers import TRIED
from denserl.rollouts.starting import IN_SERVER

SETTINGS = {
    "model_config": {"max_model_len": 4096, "logprobs_mode": "processed_logprobs", "enable_sleep_mode": True},
    "parallel_config": {"worker_extension_cls": "denserl_engine.Extension"},
    "weight_transfer_config": {"backend": "denserl"},
}


class Hang(Exception):
    """The server does not answer until it is closed."""


class Stand:
    """vLLM's own class, as far as an engine of weights is derived from it."""

    def __init__(self, model):
        self.model, self.device = model, torch.device("cpu")
        self.parallel_config = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        text = SimpleNamespace(tie_word_embeddings=model.policy.config.tie_word_embeddings)
        self.model_config = SimpleNamespace(hf_text_config=text)

    def __class_getitem__(cls, kinds):
        return cls


def worker_code() -> ModuleType:
    """The extension of vLLM's workers, loaded beside stand-ins of what it imports."""
    names = {
        "vllm.distributed.weight_transfer.base": {
            "WeightTransferEngine": Stand,
            "WeightTransferInitInfo": object,
            "WeightTransferUpdateInfo": object,
        },
        "vllm.distributed.weight_transfer.factory": {
            "WeightTransferEngineFactory": SimpleNamespace(register_engine=lambda *_: None)
        },
        "vllm.model_executor.model_loader.reload": {
            "initialize_layerwise_reload": lambda model: model.begin(),
            "finalize_layerwise_reload": lambda model, _: model.end(),
        },
    }
    modules = {}
    for name, content in names.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(content)
    spec = importlib.util.spec_from_file_location("denserl_engine", IN_SERVER / "denserl_engine.py")
    code = importlib.util.module_from_spec(spec)
    before = dict(sys.modules)
    sys.modules.update(modules)
    sys.path.insert(0, str(IN_SERVER))
    try:
        spec.loader.exec_module(code)
    finally:
        sys.path.remove(str(IN_SERVER))
        for name in modules:
            sys.modules.pop(name)
        sys.modules.update({name: before[name] for name in modules if name in before})
    return code


class Model:
    """A policy as vLLM's loaders see it: it takes weights by name, all of them between `begin` and `end`."""

    def __init__(self, folder: str):
        self.policy, self.loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), False

    def begin(self) -> None:
        self.loading = True

    def end(self) -> None:
        self.loading = False

    def named_parameters(self):
        return self.policy.named_parameters()

    def load_weights(self, weights) -> set[str]:
        own = dict(self.policy.named_parameters())
        for name, weight in weights:
            assert self.loading and own[name].shape == weight.shape, (name, weight.shape)
            with torch.no_grad():
                own[name].copy_(weight)
        return {name for name, _ in weights}


class Server:
    """What a server holds and has seen: paths in order, bodies of requests for responses."""

    url = ""

    def __init__(self, folder: str):
        self.model, self.engine = Model(folder), None
        self.cached = None  # the policy before the last update, while its cache is there
        self.version, self.paused, self.asleep, self.tells = "default", False, False, TRIED[-1]
        self.settings = json.loads(json.dumps(SETTINGS))
        self.seen: list[str] = []
        self.bodies: list[dict] = []
        self.streams: dict[int, object] = {}
        self.fault: Callable[[str, dict], object] = lambda path, body: None
        self.closing, self.lock = threading.Event(), threading.Lock()

    def answer(self, path: str, body: dict) -> object:
        """What is said to a request; KeyError for a path that there is not."""
        plain = {
            "/version": lambda: {"version": self.tells},
            "/server_info": lambda: {"vllm_config": self.settings},
            "/weight_info": lambda: {"weight_version": self.version},
            "/get_world_size": lambda: {"world_size": 1},
            "/inference/v1/generate": lambda: self.generate(body),
            "/pause": lambda: self.set(paused=True),
            "/resume": lambda: self.set(paused=False),
            "/sleep": lambda: self.set(asleep=True),
            "/wake_up": lambda: self.set(asleep=False),
            "/reset_prefix_cache": lambda: self.set(cached=None),
            "/update_weight_version": lambda: self.set(version=body["new_version"]),
            "/collective_rpc": lambda: self.reload(body["kwargs"]["folder"]),
            "/init_weight_transfer_engine": lambda: self.meet(body["init_info"]),
            "/start_weight_update": lambda: self.change(lambda: self.engine.start_weight_update()),
            "/update_weights": lambda: self.change(lambda: self.receive(body["update_info"])),
            "/finish_weight_update": lambda: self.change(lambda: self.model.end()),
        }
        return plain[path]()

    def set(self, **values) -> dict:
        vars(self).update(values)
        return {"success": True}

    def change(self, act: Callable[[], object]) -> dict:
        assert self.paused and not self.asleep
        act()
        return {"message": "done"}

    def reload(self, folder: str) -> dict:
        self.cached = self.model.policy
        return self.change(lambda: self.set(model=Model(folder)))

    def meet(self, meeting: dict) -> dict:
        code, old = loaded_code(), self.model.policy
        self.cached = AutoModelForCausalLM.from_config(old.config).eval()
        self.cached.load_state_dict(old.state_dict())
        self.engine = code.Engine(self.model)
        self.engine.init_transfer_engine(code.InitInfo(**meeting))
        return {"message": "done"}

    def receive(self, update: dict) -> None:
        self.engine.receive_weights(loaded_code().UpdateInfo(**update))

    def generate(self, body: dict) -> dict:
        """A response by the project's own sampler, with its log-probabilities by a plain forward."""
        assert not self.paused and not self.asleep
        self.bodies.append(body)
        policy, how, prompt = self.cached or self.model.policy, body["sampling_params"], body["token_ids"]
        stream = self.streams.get(how["seed"], np.random.SeedSequence(how["seed"]))
        settings = how["max_tokens"], how["temperature"], how["top_p"]
        with self.lock, torch.no_grad():
            (ids,) = PolicySampler(lambda: policy, how["stop_token_ids"], 0, *settings)([prompt], [stream]).responses
            logits = policy(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        told = torch.log_softmax(logits / how["temperature"], -1).gather(1, torch.tensor(ids)[:, None]).squeeze(1).tolist()
        content = [{"token_id": token, "logprob": number} for token, number in zip(ids, told, strict=True)]
        choice = {
            "index": 0,
            "token_ids": ids,
            "logprobs": {"content": content},
            "finish_reason": "stop" if ids[-1] in how["stop_token_ids"] else "length",
            "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}],
        }
        return {"choices": [choice]}


_LOADED: list[ModuleType] = []


def loaded_code() -> ModuleType:
    """`worker_code`, once."""
    if not _LOADED:
        _LOADED.append(worker_code())
    return _LOADED[0]


@contextlib.contextmanager
def serving(folder: Path | str, address: str = "127.0.0.1") -> Iterator[Server]:
    """Serves the model of a folder at an address of this machine while the context lasts."""
    server = Server(str(folder))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.say(urlsplit(self.path).path, {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.say(urlsplit(self.path).path, body)

        def say(self, path: str, body: dict):
            server.seen.append(path)
            try:
                said = server.fault(path, body) or (200, server.answer(path, body))
            except Hang:
                closing = server.closing
                closing.wait()
                self.close_connection = True
                return
            except ConnectionError:
                self.close_connection = True
                return
            except KeyError:
                said = 404, {"detail": "Not Found"}
            except Exception as error:
                said = 500, {"error": {"message": f"{type(error).__name__}: {error}"}}
            content = said[1] if isinstance(said[1], str) else json.dumps(said[1])
            respond(self, said[0], {"content-type": "application/json"}, content.encode())

        def log_message(self, *args):
            pass

    with listening(Handler, address) as bound:
        server.url = f"http://{address}:{bound}"
        try:
            yield server
        finally:
            server.closing.set()


if __name__ == "__main__":
    with serving(*sys.argv[1:]) as server:
        print(server.url, flush=True)
        sys.stdin.read()
        print(json.dumps({"seen": server.seen, "responses": len(server.bodies)}))
