"""Responses by servers: what is asked, what is believed, how weights get there, and every way in which a server may fail."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny_models
import torch
from rollout_stub import Hang, serving
from transformers import AutoModelForCausalLM

from denserl.errors import UserError
from denserl.models.adapters import prepare_model
from denserl.models.config import AdapterConfig
from denserl.models.gathering import merged_weights
from denserl.models.loading import load_policy
from denserl.rollouts import keeper
from denserl.rollouts.policy import PolicySampler
from denserl.rollouts.servers import Needs, Servers
from denserl.rollouts.starting import Sizes, Started, arguments, environment
from denserl.rollouts.sync import Described, Sync, address_for
from denserl.rollouts.vllm import Decoding, VLLMSampler, read_response, seed_of
from denserl.streams import Purpose, stream

PROMPTS = tiny_models.random_rows([3, 7, 1, 5, 4], seed=4, vocabulary=300)
STREAMS = [stream(0, Purpose.SAMPLING, 0, i) for i in range(len(PROMPTS))]
HOW = Decoding([2, 9, *range(240, 320)], 8, 0.7, 1.0, 320)
NEEDS = Needs(64, True, False, False)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_models.save_language_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def untied(folder, tmp_path_factory) -> Path:
    model = load_policy(str(folder), "fp32")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.9)
    model.save_pretrained(tmp_path_factory.mktemp("untied"))
    return tmp_path_factory.getbasetemp() / "untied0"


class Weights:
    """Of a model, for servers."""

    def __init__(self, folder: Path):
        self.model, self.number = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), 0

    def change(self) -> None:
        """As an update would."""
        generator = torch.Generator().manual_seed(self.number)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) * parameter.std())
        self.number += 1

    def version(self):
        return self.number

    def described(self):
        return [Described(name, list(weight.shape), weight.dtype) for name, weight, _ in merged_weights(self.model)]

    def whole(self):
        for _, _, weight in merged_weights(self.model):
            yield weight()

    def save(self, folder):
        self.model.save_pretrained(folder)


def sampler(weights: Weights, *servers, files: Path | None = None, seconds: float = 20.0, **kw) -> VLLMSampler:
    def find() -> Servers:
        found = Servers([getattr(server, "url", server) for server in servers], seconds)
        found.check(NEEDS)
        return found

    return VLLMSampler(find, Sync(weights, files, seconds, CPU), HOW, **{"in_flight": 3, "sleep": False, **kw})


def logprobs(model, prompt: list[int], response: list[int]) -> list[float]:
    """Of a response at the temperature, by a plain forward."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / HOW.temperature
    return torch.log_softmax(logits, -1)[range(len(response)), response].tolist()


@pytest.mark.parametrize("way", ["broadcast", "files"])
@pytest.mark.parametrize("tied", [True, False])
def test_responses_are_of_the_weights_as_they_are(folder, untied, tied, way, tmp_path):
    """After each of two updates, with their log-probabilities, by the project's own decoder behind the server."""
    weights, own = Weights(folder if tied else untied), None
    with serving(folder if tied else untied) as server:
        server.streams = {seed_of(numbers): numbers for numbers in STREAMS}
        sample = sampler(weights, server, files=tmp_path / "weights" if way == "files" else None)
        for _ in range(2):
            weights.change()
            found = sample(PROMPTS, STREAMS)
            decoder = PolicySampler(lambda: weights.model, HOW.stop_ids, 0, HOW.max_new_tokens, HOW.temperature)
            expected = decoder(PROMPTS, STREAMS)
            assert found[:3] == expected[:3] and expected != own
            own = expected
            for prompt, response, told in zip(PROMPTS, found.responses, found.logprobs, strict=True):
                assert told == pytest.approx(logprobs(weights.model, prompt, response), abs=1e-5)


def test_weights_are_sent_once_for_a_version_and_again_to_a_server_that_has_lost_them(folder):
    weights = Weights(folder)
    with serving(folder) as server:
        sample = sampler(weights, server)
        first = sample(PROMPTS, STREAMS)
        assert sample(PROMPTS, STREAMS) == first and server.seen.count("/update_weights") == 1
        server.version = "default"  # as after a start of its own
        assert sample(PROMPTS, STREAMS) == first and server.seen.count("/update_weights") == 2


def test_each_of_several_servers_has_the_weights_and_its_share(folder):
    weights = Weights(folder)
    weights.change()
    with serving(folder) as one, serving(folder) as two, serving(folder) as alone:
        together = sampler(weights, one, two)(PROMPTS, STREAMS)
        assert [len(server.bodies) for server in (one, two)] == [3, 2]
        assert together == sampler(weights, alone)(PROMPTS, STREAMS)


def test_servers_sleep_between_rollouts(folder):
    with serving(folder) as server:
        sample = sampler(Weights(folder), server, sleep=True)
        sample(PROMPTS, STREAMS)
        assert server.asleep
        sample(PROMPTS, STREAMS)
        assert server.asleep and server.seen.count("/wake_up") == 2


def test_a_request_leaves_nothing_to_the_server(folder):
    with serving(folder) as server:
        sampler(Weights(folder), server)(PROMPTS, STREAMS)
    asked = {tuple(body["token_ids"]): body["sampling_params"] for body in server.bodies}
    assert sorted(asked) == sorted(map(tuple, PROMPTS))
    seeds = [how.pop("seed") for how in asked.values()]
    assert len(set(seeds)) == len(PROMPTS) and max(seeds) > 2**58 and all(0 <= seed < 2**63 for seed in seeds)
    neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    ours = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 8, "stop_token_ids": HOW.stop_ids, "ignore_eos": True}
    assert all(how == neutral | ours | {"logprobs": 0, "detokenize": False} for how in asked.values())


def test_with_nucleus_sampling_no_log_probabilities_are_told(folder):
    with serving(folder) as server:
        sample = sampler(Weights(folder), server)
        sample.decoding = HOW._replace(top_p=0.9)
        assert sample(PROMPTS, STREAMS).logprobs == []


def answer(ids: list[int], **changed) -> dict:
    content = [{"token_id": token, "logprob": -0.5} for token in ids]
    choice = {
        "token_ids": ids,
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "weight_versions": [{"version": "v"}],
    }
    return {"choices": [{**choice, **changed}]}


def told(*pairs: tuple) -> dict:
    return {"content": [{"token_id": token, "logprob": number} for token, number in pairs]}


NONSENSE = {
    "no JSON object": (None, "no response"),
    "no choice": ({"choices": []}, "no response"),
    "two choices": ({"choices": answer([2])["choices"] * 2}, "no response"),
    "no log-probabilities": (answer([5, 2], logprobs=None), "no response"),
    "no version": (answer([5, 2], weight_versions=None), "no response"),
    "an id beyond the vocabulary": (answer([320, 2]), "does not know, which has 320"),
    "a negative id": (answer([-1, 2]), "does not know"),
    "an id that is no integer": (answer([5.0, 2]), "does not know"),
    "no tokens": (answer([]), "gave 0 tokens"),
    "too many tokens": (answer([5] * 9), "gave 9 tokens; asked for were 1 to 8"),
    "tokens after the end": (answer([2, 5, 2]), "goes on after its end"),
    "an end before its time": (answer([5, 5], finish_reason="abort"), "ends before it, for the reason 'abort'"),
    "log-probabilities of other tokens": (answer([5, 2], logprobs=told((6, -1.0), (2, -1.0))), "not those of its tokens"),
    "too few log-probabilities": (answer([5, 2], logprobs=told((5, -1.0))), "not those of its tokens"),
    "a probability above 1": (answer([5, 2], logprobs=told((5, 0.1), (2, -1.0))), "not those of its tokens"),
    "a log-probability that is no number": (answer([5, 2], logprobs=told((5, None), (2, -1.0))), "not those of its tokens"),
    "minus infinity": (answer([5, 2], logprobs=told((5, -float("inf")), (2, -1.0))), "not those of its tokens"),
    "other weights": (answer([5, 2], weight_versions=[{"version": "default"}]), "weights 'default' in the place of 'v'"),
    "a change of weights": (answer([5, 2], weight_versions=[{"version": "u"}, {"version": "v"}]), "weights 'u', 'v' in the"),
}


@pytest.mark.parametrize("said, words", NONSENSE.values(), ids=NONSENSE)
def test_an_answer_that_is_no_response_is_not_believed(said, words):
    with pytest.raises(ValueError, match=words):
        read_response(said, HOW, "v")


def test_what_is_believed():
    assert read_response(answer([5, 2]), HOW, "v") == ([5, 2], True, [-0.5, -0.5])
    assert read_response(answer([5] * 8, finish_reason="length"), HOW, "v") == ([5] * 8, False, [-0.5] * 8)
    assert read_response(answer([5] * 7 + [2]), HOW, "v").ended


def broken(path: str, said: object, after: int = 0):
    """A fault at the requests of a path, once `after` of them have been answered."""
    seen = []

    def fault(asked: str, body: dict):
        seen.append(asked)
        if asked != path or seen.count(path) <= after:
            return None
        if isinstance(said, Exception):
            raise said
        return said

    return fault


@contextlib.contextmanager
def while_it_fails(server, fault):
    """A fault for a while; then the server is as it was, but for what it holds."""
    server.seen.clear()
    server.fault = fault
    yield
    server.fault = lambda path, body: None
    server.closing.set()
    server.closing = threading.Event()


@pytest.fixture(scope="module")
def server(folder):
    """One for all that befalls servers."""
    with serving(folder) as server:
        yield server


FAULTS = {
    "none of vLLM": (broken("/version", (404, {"detail": "Not Found"})), "answered 404"),
    "another thing": (broken("/version", (200, {"name": "x"})), "is no server of vLLM: it answered"),
    "no JSON": (broken("/version", (200, "<html>")), "answered no JSON"),
    "without updates": (broken("/server_info", (404, {"detail": "Not Found"})), "VLLM_SERVER_DEV_MODE=1"),
    "settings of nothing": (broken("/server_info", (200, [])), "was started without max-model-len 64"),
    "without generation": (broken("/inference/v1/generate", (403, {"error": "Scale-out endpoints"})), "answered 403"),
    "it dies": (broken("/inference/v1/generate", ConnectionError(), 2), "gave no answer"),
    "it hangs": (broken("/inference/v1/generate", Hang(), 2), "gave no answer"),
    "nonsense": (broken("/inference/v1/generate", (200, {"choices": []}), 2), "gave no response"),
    "it hangs before the group": (
        broken("/init_weight_transfer_engine", Hang()),
        "did not come to the group within 0.5 s|gave no answer",
    ),
    "it refuses the group": (broken("/init_weight_transfer_engine", (500, {"error": "no"})), "answered 500"),
    "it refuses the weights": (broken("/update_weights", (500, {"error": "no such layer"})), "no such layer"),
    "it dies in an update": (broken("/update_weights", ConnectionError()), "gave no answer"),
    "it hangs in an update": (broken("/update_weights", Hang()), "was not taken within 0.5 s|left the group|gave no answer"),
    "it keeps its cache": (broken("/reset_prefix_cache", (200, {"success": False})), "did not empty its cache"),
    "it cannot be paused": (broken("/pause", (500, {"error": "no"})), "answered 500"),
}


@pytest.mark.parametrize("fault, words", FAULTS.values(), ids=FAULTS)
def test_a_server_that_fails_is_a_clear_error_and_a_later_run_finds_it_well(server, folder, fault, words):
    weights = Weights(folder)
    with while_it_fails(server, fault), pytest.raises(UserError, match=words) as error:
        sampler(weights, server, seconds=0.5)(PROMPTS, STREAMS)
    assert server.url in error.value.found and error.value.fix
    if "/pause" in server.seen:
        weights.change()
        found = sampler(weights, server)(PROMPTS[:1], STREAMS[:1])
        assert found.logprobs[0] == pytest.approx(logprobs(weights.model, PROMPTS[0], found.responses[0]), abs=1e-5)


def test_a_server_that_is_not_there(folder):
    with pytest.raises(UserError, match="the engine at http://127.0.0.1:9 gave no answer"):
        sampler(Weights(folder), "http://127.0.0.1:9")(PROMPTS, STREAMS)


@pytest.mark.parametrize("way", ["broadcast", "files"])
def test_a_server_of_another_model(folder, way, tmp_path):
    other = tiny_models.save_language_model(tmp_path / "other", hidden=64)
    with serving(other) as server, pytest.raises(UserError) as error:
        sample = sampler(Weights(folder), server, files=None if way == "broadcast" else tmp_path / "weights")
        server.fault = broken("/collective_rpc", (500, {"error": "shapes differ"}))
        sample(PROMPTS, STREAMS)
    assert "answered 500" in error.value.found


def test_a_server_whose_model_has_more_weights_than_come(folder, untied):
    with serving(untied) as server, pytest.raises(UserError, match="no weights came for .*lm_head.*another model"):
        sampler(Weights(folder), server)(PROMPTS, STREAMS)


def test_versions_and_settings_are_checked(folder):
    with serving(folder) as server:
        servers = Servers([server.url], 5.0)
        server.tells = "0.33.1"
        with pytest.raises(UserError, match="is of vLLM 0.33.1; tried is 0.32.0.*\n.*rollout_any_version"):
            servers.check(NEEDS)
        servers.check(NEEDS._replace(any_version=True))
        server.tells = "0.32.0+cpu"
        servers.check(NEEDS)
        settings = server.settings
        settings["model_config"] |= {"logprobs_mode": "raw_logprobs", "enable_sleep_mode": False, "max_model_len": 63}
        settings["parallel_config"] = settings["weight_transfer_config"] = None
        missing = "max-model-len 64, logprobs-mode processed_logprobs, worker-extension-cls denserl_engine.Extension"
        with pytest.raises(UserError, match=f"started without {missing}\n"):
            servers.check(NEEDS._replace(broadcast=False))
        with pytest.raises(UserError, match="weight-transfer-config .*, enable-sleep-mode"):
            servers.check(NEEDS._replace(sleep=True))


def test_weights_with_adapters_are_those_of_the_merged_model(folder):
    model = prepare_model(load_policy(str(folder), "fp32"), AdapterConfig(lora_rank=2), "CAUSAL_LM")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    found = {name: weight().clone() for name, _, weight in merged_weights(model)}
    merged = dict(model.merge_and_unload().named_parameters())
    assert found.keys() == merged.keys()
    assert all(torch.equal(found[name], merged[name]) for name in merged)


def test_a_group_is_on_loopback_where_all_servers_are_here():
    assert address_for(["http://127.0.0.1:8000", "http://localhost:1"]) == "127.0.0.1"


def test_a_server_is_started_with_all_that_is_checked():
    words = arguments(Path("model"), Sizes(64, 8, "bf16", True, True))
    assert words[words.index("--dtype") + 1] == "bfloat16" and "--enforce-eager" not in words
    for option in ("--enable-sleep-mode", "--enable-scale-out", "--skip-tokenizer-init"):
        assert option in words
    own = {
        "PATH": "/bin",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_PORT": "1",
        "PYTHONPATH": "/x",
        "VLLM_CPU_KVCACHE_SPACE": "4",
    }
    made = environment(own)
    assert made["PATH"] == "/bin" and made["VLLM_CPU_KVCACHE_SPACE"] == "4" and made["VLLM_SERVER_DEV_MODE"] == "1"
    assert not {"RANK", "LOCAL_RANK", "MASTER_PORT"} & made.keys()
    assert sorted(path.name for path in Path(made["PYTHONPATH"]).glob("*.py")) == [
        "__init__.py",
        "denserl_engine.py",
        "denserl_group.py",
    ]


def program(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return str(path)


def test_a_server_that_does_not_start(tmp_path):
    sizes, log = Sizes(64, 8, "fp32", False, False), tmp_path / "log"
    with pytest.raises(UserError, match="`rollout_python` .*nothing is no program"):
        Started(str(tmp_path / "nothing"), tmp_path, sizes, log, None)
    ends = Started(program(tmp_path / "ends", "import sys; sys.exit('No module named vllm')"), tmp_path, sizes, log, None)
    with pytest.raises(UserError, match="ended with status 1; its last words: No module named vllm"):
        ends.wait(30.0)
    hangs = Started(program(tmp_path / "hangs", "import time; time.sleep(100)"), tmp_path, sizes, log, "--more 'a b'")
    with pytest.raises(UserError, match="does not answer after 0.5 s"):
        hangs.wait(0.5)
    assert hangs.keeper.poll() is not None


SERVER = """
import os, subprocess, sys, time
child = subprocess.Popen(["sh", "-c", "trap '' TERM; exec sleep 100"])
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {child.pid} ")
time.sleep(100)
"""
OWNER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # as jobs in the background do not have it
_, keeper, server, pids = sys.argv
words = [sys.executable, "-I", keeper, "0.2", sys.executable, "-c", server, pids]
kept = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
time.sleep(100)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_whoever_started_it(number, tmp_path):
    """However that one ends; with what the server itself has started, and which hears no request."""
    pids = tmp_path / "pids"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, keeper.__file__, SERVER, str(pids)])
    while not (pids.exists() and pids.read_text().endswith(" ")):
        time.sleep(0.02)
    found = [int(pid) for pid in pids.read_text().split()]
    assert all(map(is_alive, found))
    owner.send_signal(number)
    owner.wait()
    until = time.monotonic() + 20
    while any(map(is_alive, found)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(is_alive, found))
