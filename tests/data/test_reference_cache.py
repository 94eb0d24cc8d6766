"""What the reference model says: equal to a direct computation, stored once, computed again when model or data change."""

import builtins
import importlib.metadata
import json
import os
import re

import pytest
import tiny_models
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from denserl import distributed
from denserl.data.fingerprints import file_fingerprint, reading_fingerprint
from denserl.data.preferences import load_preferences
from denserl.data.reference_cache import add_entropies
from denserl.errors import UserError
from denserl.models.loading import load_policy
from denserl.models.scoring import response_logprobs_entropies
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards import pairs as reward_pairs
from denserl.trainer.reward_config import RewardConfig

PROMPTS = tiny_models.random_rows([4, 2, 6], seed=1, vocabulary=300)
CHOSEN = tiny_models.random_rows([5, 1, 3], seed=2, vocabulary=300)
REJECTED = tiny_models.random_rows([2, 7, 4], seed=3, vocabulary=300)


class Entropies:
    """Adds entropies of one model to pairs, counting how often the model was asked for."""

    def __init__(self, folder, cache):
        self.folder, self.cache, self.loads = folder, cache, 0

    def function(self):
        self.loads += 1
        model = load_policy(str(self.folder), "fp32").eval()
        return lambda batch: response_logprobs_entropies(model, batch)

    def __call__(self, pairs, dtype="fp32", max_tokens=16):
        fingerprint = file_fingerprint(self.folder, dtype)
        return add_entropies(
            pairs, self.function, fingerprint, pad_id=0, cache_dir=self.cache, max_tokens=max_tokens, device="cpu"
        )


@pytest.fixture
def entropies(tmp_path):
    return Entropies(tiny_models.save_language_model(tmp_path / "sft"), tmp_path / "cache")


def pairs(chosen=CHOSEN) -> Dataset:
    return Dataset.from_dict({"prompt_ids": PROMPTS, "chosen_ids": chosen, "rejected_ids": REJECTED, "margin": [0.0, 1.0, 2.0]})


def distributions(folder, prompt, response) -> torch.distributions.Categorical:
    """Of what predicts each response token: one unpadded row through the stock model."""
    model = load_policy(str(folder), "fp32").eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    return torch.distributions.Categorical(logits=logits)


def direct(folder, prompt, response) -> list[float]:
    return distributions(folder, prompt, response).entropy().tolist()


def direct_logprob(folder, prompt, response) -> float:
    return distributions(folder, prompt, response).log_prob(torch.tensor(response)).sum().item()


def test_equal_to_a_direct_computation_and_in_the_order_of_rows(entropies):
    rows = entropies(pairs())
    assert rows["margin"] == [0.0, 1.0, 2.0]
    for i, row in enumerate(rows):
        assert row["chosen_ids"] == CHOSEN[i]
        assert row["chosen_entropy"] == pytest.approx(direct(entropies.folder, PROMPTS[i], CHOSEN[i]), rel=1e-5)
        assert row["rejected_entropy"] == pytest.approx(direct(entropies.folder, PROMPTS[i], REJECTED[i]), rel=1e-5)
        assert row["chosen_logprob"] == pytest.approx(direct_logprob(entropies.folder, PROMPTS[i], CHOSEN[i]), rel=1e-5)
        assert row["rejected_logprob"] == pytest.approx(direct_logprob(entropies.folder, PROMPTS[i], REJECTED[i]), rel=1e-5)


def test_a_response_in_several_pairs_of_a_prompt_is_computed_once(entropies, monkeypatch):
    prompts, (a, b, c) = [PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[0]], CHOSEN
    rows = Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": [a, a, a, b], "rejected_ids": [b, c, c, a]})
    seen, model = [], load_policy(str(entropies.folder), "fp32").eval()

    def function():
        def of_batch(batch):
            seen.append(len(batch.input_ids))
            return response_logprobs_entropies(model, batch)

        return of_batch

    monkeypatch.setattr(entropies, "function", function)
    found = entropies(rows)
    assert sum(seen) == 5  # of the first prompt three, of the other two
    for row in found:
        for side in ("chosen", "rejected"):
            expected = direct(entropies.folder, row["prompt_ids"], row[f"{side}_ids"])
            assert row[f"{side}_entropy"] == pytest.approx(expected, abs=1e-5)


def test_stored_once(entropies):
    first = entropies(pairs())
    # The batches may be cut otherwise: the stored ones serve.
    again = entropies(pairs(), max_tokens=1000)
    assert entropies.loads == 1
    assert again.to_list() == first.to_list()
    assert [path.suffix for path in entropies.cache.iterdir()] == [""]


def test_what_was_stored_before_there_were_log_probabilities_is_not_read(entropies):
    entropies(pairs())
    (whole,) = entropies.cache.iterdir()
    whole.rename(whole.with_name(whole.name.replace("reference-", "entropies-")))
    assert "chosen_logprob" in entropies(pairs()).column_names and entropies.loads == 2


def test_computed_again_for_other_data(entropies):
    entropies(pairs())
    entropies(pairs([CHOSEN[0][:-1], *CHOSEN[1:]]))
    assert entropies.loads == 2
    # The same tokens in the same order, but cut elsewhere into rows, are other data too.
    entropies(pairs([CHOSEN[0][:-1], CHOSEN[0][-1:] + CHOSEN[1], CHOSEN[2]]))
    assert entropies.loads == 3


def test_computed_again_for_other_weights_or_precision(entropies):
    entropies(pairs())
    entropies(pairs(), dtype="bf16")
    assert entropies.loads == 2
    path = entropies.folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] *= 2
    save_file(weights, path, metadata={"format": "pt"})
    rows = entropies(pairs())
    assert entropies.loads == 3
    assert rows[0]["chosen_entropy"] == pytest.approx(direct(entropies.folder, PROMPTS[0], CHOSEN[0]), rel=1e-5)


def test_a_half_written_store_is_not_taken_for_a_whole_one(entropies):
    entropies(pairs())
    (whole,) = entropies.cache.iterdir()
    half = whole.rename(whole.with_name(f".{whole.name}-killed"))
    entropies(pairs())
    assert entropies.loads == 2
    assert set(entropies.cache.iterdir()) == {half, whole}


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_host_with_a_cache_folder_of_its_own_is_told_so(is_stored, entropies, tmp_path, monkeypatch):
    """As rank 1 of two meets it: what rank 0 names is in a folder that is not here."""
    elsewhere = tmp_path / "elsewhere"

    def of_rank_0(mine):
        return [(elsewhere / "reference-0", is_stored) if isinstance(mine, tuple) else str(elsewhere / ".reference-0-x")] * 2

    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather_objects", of_rank_0)
    with pytest.raises(UserError, match="elsewhere is not the same folder on all hosts: rank 1") as error:
        entropies(pairs())
    assert re.fullmatch(r"give a [-`]+cache_dir`? that all hosts share", error.value.fix)


def test_what_is_renamed_into_place_has_been_flushed(entropies, monkeypatch):
    flushed, renamed, fsync, replace = set(), [], os.fsync, os.replace

    def noted(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(source, target):
        renamed.append(source)
        files = list(source.iterdir())
        assert len(files) > 2 and {path.stat().st_ino for path in (*files, source)} <= flushed
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", checked)
    entropies(pairs())
    assert "joined" in [path.name for path in renamed]


def test_weights_are_read_once_for_their_fingerprint(entropies, monkeypatch):
    opened, plain = [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda path, *args, **kw: opened.append(path) or plain(path, *args, **kw))
    weights = entropies.folder / "model.safetensors"
    first = file_fingerprint(entropies.folder, "fp32")
    assert file_fingerprint(str(entropies.folder), "fp32") == first and opened.count(weights) == 1
    assert file_fingerprint(entropies.folder, "bf16") != first
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(0, 0))
    assert file_fingerprint(entropies.folder, "fp32") != first


def test_what_changes_what_a_model_says_changes_its_fingerprint(entropies, monkeypatch):
    def now(dtype="fp32", attention="sdpa", trust_remote_code=False) -> str:
        return reading_fingerprint(entropies.folder, dtype, attention, trust_remote_code)

    first = now()
    assert now() == first and len({first, now(dtype="bf16"), now(attention="eager")}) == 3
    # Code beside the weights counts where it is run.
    code = entropies.folder / "own" / "modeling.py"
    code.parent.mkdir()
    code.write_text("scale = 1\n")
    trusted = now(trust_remote_code=True)
    assert now() == first != trusted
    code.write_text("scale = 2\n")
    os.utime(code, ns=(0, 0))
    assert now(trust_remote_code=True) != trusted
    version = importlib.metadata.version
    for library in ("torch", "transformers"):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, of=library: "0" if name == of else version(name))
        assert now() != first
        monkeypatch.undo()


@pytest.mark.parametrize("changed", [{"attention": "eager"}, {"trust_remote_code": True}], ids=str)
def test_entropies_are_computed_again_where_the_model_is_read_otherwise(entropies, changed, tmp_path, monkeypatch):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "Question?", "chosen": "Answer.", "rejected": "No."}) + "\n")
    (entropies.folder / "own.py").write_text("")
    loads, folder = [], str(entropies.folder)
    monkeypatch.setattr(
        reward_pairs, "load_policy", lambda path, dtype, **kw: loads.append(kw) or load_policy(path, dtype, **kw)
    )
    for more in ({}, changed, {}, changed):
        given = {"data": [str(tmp_path / "pairs.jsonl")], "output_dir": str(tmp_path), "cache_dir": str(entropies.cache)}
        options = RewardConfig(model=folder, **given, **more)
        made_with = (folder, load_tokenizer(folder), "cpu", "fp32", options.on_bad_row)
        reward_pairs.prepare_pairs(load_preferences(**options.source()), options, options, *made_with)
    assert len(loads) == 2


def test_another_threshold_uses_what_is_stored(entropies, tmp_path, monkeypatch):
    """Through the command's own preparation: text to ids to entropies, at two thresholds."""
    rows = [{"prompt": f"Question {i}?", "chosen": f"Answer {i}.", "rejected": "No " * (i + 1)} for i in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loads, prepared, folder = [], [], str(entropies.folder)

    def counted(path, dtype, **kw):
        loads.append(path)
        return load_policy(path, dtype, **kw)

    monkeypatch.setattr(reward_pairs, "load_policy", counted)
    for threshold in (0.5, 1000.0):
        options = RewardConfig(
            model=folder,
            data=[str(tmp_path / "pairs.jsonl")],
            output_dir=str(tmp_path),
            cache_dir=str(entropies.cache),
            entropy_threshold=threshold,
        )
        loaded = load_preferences(**options.source())
        made_with = (folder, load_tokenizer(folder), "cpu", "fp32", options.on_bad_row)
        prepared.append(reward_pairs.prepare_pairs(loaded, options, options, *made_with))
    assert loads == [folder]
    assert prepared[0].to_list() == prepared[1].to_list()
    for row in prepared[0]:
        assert row["chosen_entropy"] == pytest.approx(direct(folder, row["prompt_ids"], row["chosen_ids"]), rel=1e-5)
