"""What tells models and responses apart: everything that changes what a model says, and nothing else."""

import builtins
import os

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from denserl.data import fingerprints
from denserl.data.fingerprints import file_fingerprint, prompt_key, reading_fingerprint, response_key, version

IDS = st.lists(st.integers(0, 3), max_size=3)


@pytest.fixture
def model(tmp_path):
    return tiny_models.save_language_model(tmp_path / "sft")


def test_weights_are_read_once_for_their_fingerprint(model, monkeypatch):
    opened, plain = [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda path, *args, **kw: opened.append(path) or plain(path, *args, **kw))
    weights = model / "model.safetensors"
    first = file_fingerprint(model, "fp32")
    assert file_fingerprint(str(model), "fp32") == first and opened.count(weights) == 1
    assert file_fingerprint(model, "bf16") != first
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(0, 0))
    assert file_fingerprint(model, "fp32") != first


def test_what_changes_what_a_model_says_changes_its_fingerprint(model, monkeypatch):
    def now(dtype="fp32", attention="sdpa", trust_remote_code=False) -> str:
        return reading_fingerprint(model, dtype, attention, trust_remote_code)

    first = now()
    assert now() == first and len({first, now(dtype="bf16"), now(attention="eager")}) == 3
    # Code beside the weights counts where it is run.
    code = model / "own" / "modeling.py"
    code.parent.mkdir()
    code.write_text("scale = 1\n")
    trusted = now(trust_remote_code=True)
    assert now() == first != trusted
    code.write_text("scale = 2\n")
    os.utime(code, ns=(0, 0))
    assert now(trust_remote_code=True) != trusted
    for library in ("torch", "transformers"):
        monkeypatch.setattr(fingerprints, "version", lambda name, of=library: "0" if name == of else version(name))
        assert now() != first
        monkeypatch.undo()


@given(IDS, IDS, IDS, IDS)
def test_responses_have_one_key_where_prompts_and_ids_are_the_same(prompt, response, other_prompt, other):
    keys = [response_key(prompt_key(p), r) for p, r in ((prompt, response), (other_prompt, other))]
    assert (keys[0] == keys[1]) == ((prompt, response) == (other_prompt, other)) and [len(key) for key in keys] == [16, 16]
