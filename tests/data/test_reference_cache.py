"""What the reference model says: equal to a direct computation, asked once for each response of each model."""

import errno
import json
import os
import time

import numpy as np
import pytest
import tiny_models
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from denserl.data import reference_store
from denserl.data.fingerprints import file_fingerprint
from denserl.data.preferences import load_preferences
from denserl.data.reference_cache import add_entropies, missing_batches
from denserl.data.schemas import SIDES
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


class Told:
    """A model that says what follows from ids in plain sight, and notes what it is asked; `fails` after so many batches."""

    def __init__(self, fails: int | None = None):
        self.batches, self.fails = [], fails

    @property
    def asked(self) -> list[tuple]:
        return [row for batch in self.batches for row in batch]

    def __call__(self):
        return self.answer

    def answer(self, batch):
        if self.fails is not None and len(self.batches) == self.fails:
            raise RuntimeError("the model is gone")
        rows = zip(batch.input_ids.tolist(), batch.response_start.tolist(), batch.response_mask.sum(1).tolist(), strict=True)
        self.batches.append([(tuple(ids[:start]), tuple(ids[start : start + length])) for ids, start, length in rows])
        return torch.stack([-batch.response_ids - 1.0, batch.response_ids / 8 + batch.response_start[:, None]], -1)


def said(prompt, response) -> tuple[list[float], float]:
    """What `Told` says: entropies and the log-probability."""
    return [id / 8 + len(prompt) for id in response], -sum(response) - len(response)


def ask(told: Told, rows: Dataset, cache, max_tokens=16, sides=SIDES) -> Dataset:
    """Adds what a model says, which is checked, and that nothing else has changed."""
    options = {"pad_id": 0, "cache_dir": cache, "max_tokens": max_tokens, "device": "cpu", "sides": sides}
    found = add_entropies(rows, told, "model", **options)
    assert found.select_columns(rows.column_names).to_list() == rows.to_list()
    for row in found:
        for side in sides:
            entropy, logprob = said(row["prompt_ids"], row[f"{side}_ids"])
            assert row[f"{side}_entropy"] == entropy and row[f"{side}_logprob"] == logprob
    return found


def many_pairs(rows=12, seed=0) -> Dataset:
    """Pairs of which each two following ones share their prompt, and a response."""
    lengths = [5 + 7 * i % 11 for i in range(rows + 1)]
    responses = tiny_models.random_rows(lengths, seed)
    prompts = [row for row in tiny_models.random_rows(lengths[: rows // 2], seed + 1) for _ in range(2)]
    return Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": responses[1:], "rejected_ids": responses[:-1]})


def of_store(cache, begins) -> list:
    return sorted(cache.glob(f"reference/*/{begins}-*.arrow"))


def test_a_response_in_several_pairs_of_a_prompt_is_asked_once(tmp_path):
    prompts, (a, b, c) = [PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[0]], CHOSEN
    rows = Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": [a, a, a, b], "rejected_ids": [b, c, c, a]})
    told = Told()
    ask(told, rows, tmp_path)
    expected = [(p, r) for p, ids in ((PROMPTS[0], (a, b, c)), (PROMPTS[2], (a, c))) for r in ids]
    assert sorted(told.asked) == sorted((tuple(p), tuple(r)) for p, r in expected)


def test_a_table_is_found_whatever_the_batches(tmp_path):
    first = ask(Told(), many_pairs(), tmp_path)
    told = Told(fails=0)
    assert ask(told, many_pairs(), tmp_path, max_tokens=1000).to_list() == first.to_list()
    # The columns are read where they lie.
    assert str(of_store(tmp_path, "joined")[0]) in [file["filename"] for file in first.cache_files]


def test_what_has_been_asked_serves_all_that_share_responses(tmp_path):
    """A limit, dropped rows, another order and split, other roles: only what is new is asked."""
    rows = many_pairs(12)
    ask(Told(), rows.select(range(8)), tmp_path)
    told = Told()
    ask(told, rows, tmp_path)
    pairs = [(row["prompt_ids"], row[f"{side}_ids"]) for row in rows for side in SIDES]
    key = [(tuple(prompt), tuple(response)) for prompt, response in pairs]
    assert sorted(told.asked) == sorted(set(key[16:]) - set(key[:16]))
    silent = Told(fails=0)
    ask(silent, rows.select([7, 2, 11, 3, 2]), tmp_path)
    ask(silent, rows.select([0]), tmp_path)
    ask(silent, rows.rename_columns({"chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids"}), tmp_path)
    ask(silent, rows.rename_column("chosen_ids", "response_ids").remove_columns("rejected_ids"), tmp_path, sides=["response"])
    ask(silent, rows.select([]), tmp_path)
    assert not silent.asked


def test_ids_cut_elsewhere_are_other_responses(tmp_path):
    ask(Told(), pairs(), tmp_path)
    told = Told()
    ask(told, pairs([CHOSEN[0][:-1], CHOSEN[0][-1:] + CHOSEN[1], CHOSEN[2]]), tmp_path)
    assert len(told.asked) == 2
    moved = Dataset.from_dict(
        {"prompt_ids": [PROMPTS[0][:-1]], "chosen_ids": [[PROMPTS[0][-1], *CHOSEN[0]]], "rejected_ids": [[]]}
    )
    told = Told()
    ask(told, moved, tmp_path)
    assert len(told.asked) == 2


@pytest.mark.parametrize("damage", ["cut", "bent", "emptied", "gone"])
def test_a_damaged_shard_is_asked_again_with_a_word(damage, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reference_store, "SHARD_TOKENS", 30)
    first = Told()
    ask(first, many_pairs(), tmp_path)
    shards = of_store(tmp_path, "responses")
    held = {shard: Dataset.from_file(str(shard))["key"][:] for shard in shards}
    assert len(shards) > 3 and sum(map(len, held.values())) == len(first.asked)
    of_store(tmp_path, "joined")[0].unlink()
    content = bytearray(shards[1].read_bytes())
    content[-40] ^= 1
    spoil(shards[1], damage, content)
    told = Told()
    ask(told, many_pairs(), tmp_path)
    assert len(told.asked) == len(held[shards[1]])
    if damage != "gone":
        assert f"{shards[1]} is damaged, and was removed" in caplog.text
    assert {key for shard in of_store(tmp_path, "responses") for key in Dataset.from_file(str(shard))["key"]} == {
        key for keys in held.values() for key in keys
    }


def spoil(path, damage, bent):
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": bent[: len(bent) // 2], "bent": bent, "emptied": b""}[damage])


@pytest.mark.parametrize("damage", ["cut", "bent", "emptied"])
def test_a_damaged_table_is_made_again_of_the_shards(damage, tmp_path, caplog):
    ask(Told(), many_pairs(), tmp_path)
    (table,) = of_store(tmp_path, "joined")
    whole = table.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 64
    spoil(table, damage, content)
    ask(Told(fails=0), many_pairs(), tmp_path)
    assert table.read_bytes() == whole and f"{table} is damaged" in caplog.text


def test_what_was_said_before_a_failure_is_kept(tmp_path):
    told = Told(fails=4)
    with pytest.raises(RuntimeError, match="the model is gone"):
        ask(told, many_pairs(), tmp_path)
    again = Told()
    ask(again, many_pairs(), tmp_path)
    whole = Told()
    ask(whole, many_pairs(), tmp_path / "other")
    assert len(told.batches) == 4 and sorted(told.asked + again.asked) == sorted(whole.asked)
    # In the batches of a run that nothing ended, so that its numbers are the same to the bit.
    assert sorted(told.batches + again.batches) == sorted(whole.batches)


def test_runs_at_the_same_time_keep_what_each_is_told(tmp_path):
    """One begins and ends within the other."""
    inner = Told()

    class Outer(Told):
        def answer(self, batch):
            if not self.batches:
                ask(inner, many_pairs(6), tmp_path)
            return super().answer(batch)

    outer = Outer()
    ask(outer, many_pairs(), tmp_path)
    assert set(inner.asked) <= set(outer.asked) and len(of_store(tmp_path, "responses")) == 2
    silent = Told(fails=0)
    ask(silent, many_pairs(), tmp_path)
    ask(silent, many_pairs(6), tmp_path)


def test_a_shard_is_written_in_time(tmp_path, monkeypatch):
    """Whatever it holds: a batch may take long."""
    monkeypatch.setattr(reference_store, "SHARD_SECONDS", 0)
    told = Told()
    ask(told, many_pairs(), tmp_path)
    assert len(of_store(tmp_path, "responses")) == len(told.asked)


def test_what_a_kill_left_half_written_is_not_read_and_goes_after_a_day(tmp_path):
    ask(Told(), pairs(), tmp_path)
    (shard,) = of_store(tmp_path, "responses")
    half = [shard.with_name(f".{name}.partial") for name in ("new", "old")]
    for path in half:
        path.write_bytes(shard.read_bytes()[:100])
    os.utime(half[1], (time.time() - 90000,) * 2)
    ask(Told(), pairs([CHOSEN[0][:-1], *CHOSEN[1:]]), tmp_path)
    assert [path.exists() for path in half] == [True, False]


def test_what_is_renamed_into_place_has_been_flushed(tmp_path, monkeypatch):
    flushed, renamed, fsync, replace = set(), [], os.fsync, os.replace

    def noted(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(source, target):
        renamed.append(target.name.partition("-")[0])
        assert source.stat().st_ino in flushed
        replace(source, target)
        flushed.discard(target.parent.stat().st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", checked)
    ask(Told(), pairs(), tmp_path)
    assert renamed == ["responses", "joined"] and of_store(tmp_path, "joined")[0].parent.stat().st_ino in flushed


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reference_store, "flush", full)
    with pytest.raises(OSError, match="No space"):
        ask(Told(), pairs(), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4), st.booleans()), max_size=30), st.integers(1, 90))
def test_missing_rows_are_each_in_one_batch_those_of_whole_batches_as_they_were(rows, max_tokens):
    lengths, prompts, missing = (
        np.array(column, dtype=kind) for column, kind in zip(list(zip(*rows)) or [[]] * 3, (int, int, bool))
    )
    batches = missing_batches(lengths, prompts, missing, max_tokens)
    assert sorted(row for batch in batches for row in batch) == np.flatnonzero(missing).tolist()
    assert all(len(batch) == 1 or lengths[batch].max() * len(batch) <= max_tokens for batch in batches)
    every = missing_batches(lengths, prompts, np.ones(len(rows), bool), max_tokens)
    assert all(batch in batches for batch in every if missing[batch].all())
    if batches:
        assert lengths[batches[0]].sum() == min(lengths[batch].sum() for batch in batches)
    if every:
        # One row alone, so that a bar moves soon.
        assert min(map(len, every)) == 1


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
