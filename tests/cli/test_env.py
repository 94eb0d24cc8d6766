"""What `denserl env` shows, also where something is broken, and what it never shows."""

import importlib
import importlib.util
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

import denserl
from denserl.cli import env
from denserl.cli.main import COMMANDS, main
from denserl.cli.versions import PACKAGES, version

# Package -> module, for the second way of asking: whether and as what it can be imported.
SAME = "torch transformers accelerate datasets deepspeed tokenizers safetensors peft numpy tyro vllm wandb tensorboard".split()
MODULES = {**{name: name for name in SAME}, "flash-attn": "flash_attn"}


@pytest.fixture
def shown(capsys):
    """A function that runs the command and returns its lines as name -> value. Versions are looked up for the test alone."""

    def run() -> dict[str, str]:
        version.cache_clear()
        main(["env"])
        out = capsys.readouterr().out
        return {line[:22].strip(): line[22:] for line in out.splitlines()}

    yield run
    version.cache_clear()


def test_every_package_is_named_with_its_version(shown):
    lines = shown()
    assert set(MODULES) == set(PACKAGES)
    assert lines["denserl"] == denserl.__version__
    assert lines["python"] == sys.version.split()[0]
    for package, module in MODULES.items():
        if importlib.util.find_spec(module) is None:
            assert lines[package] == "not installed"
        elif package in ("torch", "transformers", "numpy", "safetensors"):  # light here, or loaded anyway
            assert lines[package] == importlib.import_module(module).__version__
        else:
            assert lines[package][0].isdigit()
    assert lines["torch threads"] == str(torch.get_num_threads())


def test_no_variable_but_the_launchers_is_shown(monkeypatch, capsys):
    for name in env.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOO_TOKEN", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter3")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("MASTER_ADDR", "host\x1b[2J\nRANK 7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    main(["env"])
    out = "".join(capsys.readouterr())
    assert "hunter" not in out and "TOKEN" not in out
    assert out.endswith(
        "RANK                  3\n"
        "MASTER_ADDR           host‹U+001B›[2J‹U+000A›RANK 7\n"  # of one line, which acts on no terminal
        "CUDA_VISIBLE_DEVICES  (empty)\n"
    )


def test_gpus_are_shown_with_their_memory(monkeypatch, shown):
    gpus = [SimpleNamespace(name="Card A", total_memory=80 * 2**30), SimpleNamespace(name="Card B", total_memory=3 * 2**29)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpus[i])
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    lines = shown()
    assert (lines["torch built for"], lines["gpu 0"], lines["gpu 1"]) == ("CUDA 12.8", "Card A, 80.0 GiB", "Card B, 1.5 GiB")


def test_a_driver_that_fails_is_reported(monkeypatch, shown):
    def fail(i):
        raise RuntimeError("CUDA driver is too old")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    assert shown()["gpus"] == "CUDA driver is too old"


def test_a_torch_that_does_not_load_is_reported(monkeypatch, shown):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    lines = shown()
    assert "torch" in lines["torch does not load"] and lines["torch"] == metadata.version("torch")


def test_an_installation_that_was_cut_short_is_reported(monkeypatch, shown):
    """Its folder is there and names no version."""
    monkeypatch.setattr(metadata, "version", lambda name: None)
    assert shown()["peft"] == "no version"


def test_nothing_heavy_but_torch_is_imported():
    unwanted = ["transformers", "accelerate", "datasets", "deepspeed", "peft", "vllm", "wandb", "tensorboard", "flash_attn"]
    code = f"import sys; from denserl.cli.env import main; main([]); print('loaded:', *sys.modules.keys() & set({unwanted!r}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.splitlines()[-1] == "loaded:"


def test_it_is_listed_and_takes_no_options(capsys):
    assert "what a bug report needs" in COMMANDS["env"]
    with pytest.raises(SystemExit) as ended:
        main(["env", "--everything"])
    assert ended.value.code == 2 and "no option --everything" in capsys.readouterr().err
