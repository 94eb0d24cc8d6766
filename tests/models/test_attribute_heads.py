"""Heads of rated attributes: stock classifiers of several labels, whose weighted sum is the score."""

import json

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from denserl.errors import UserError
from denserl.models.export import export_classifier
from denserl.models.heads import Head
from denserl.models.loading import match_embeddings
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.saving import save_model
from denserl.models.scoring import read_rewards, token_rewards
from denserl.models.tokenizers import load_tokenizer

NAMES, WEIGHTS = ("true", "polite", "long"), (0.5, 0.75, -0.25)
HEAD = Head("attributes", names=NAMES, weights=WEIGHTS)
ROWS = tiny_models.random_rows([9, 5, 7])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A language model's trunk with a random head of attributes, saved; the folder and the model."""
    sft, folder = tiny_models.save_language_model(tmp_path_factory.mktemp("sft")), tmp_path_factory.mktemp("rm")
    tokenizer = load_tokenizer(str(sft))
    model = new_reward_model(str(sft), "fp32", head=HEAD)
    match_embeddings(model, tokenizer)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    save_model(model, folder)
    tokenizer.save_pretrained(folder)
    return folder, model


def read(model):
    ids, mask = tiny_models.padded(ROWS)
    with torch.no_grad():
        return read_rewards(model, ids, mask, 1, logprob_rows=0)


def test_the_stock_class_gives_the_ratings(saved):
    """Its labels are the attributes, and its logits, at each row's last token, what is read here behind the score."""
    folder, model = saved
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert stock.config.id2label == dict(enumerate(NAMES)) and stock.num_labels == 3
    assert load_file(folder / "model.safetensors")["score.weight"].shape == (3, stock.config.hidden_size)
    found, last = read(model), torch.tensor([len(row) - 1 for row in ROWS])
    logits = torch.cat([stock(input_ids=torch.tensor([row])).logits for row in ROWS])
    torch.testing.assert_close(found.outputs[range(3), last, 1:], logits, atol=1e-5, rtol=1e-5)
    expected = logits @ torch.tensor(WEIGHTS)
    assert expected.std() > 0.1
    torch.testing.assert_close(found.scores[range(3), last], expected, atol=1e-5, rtol=1e-5)


def test_saved_and_read_back_it_scores_the_same_and_is_saved_the_same_again(saved, tmp_path):
    folder, model = saved
    again = load_reward_model(str(folder), "fp32")
    ids, mask = tiny_models.padded(ROWS)
    with torch.no_grad():
        before, after = (token_rewards(each, ids, mask) for each in (model, again))
    assert torch.equal(before[mask.bool()], after[mask.bool()])
    save_model(again, tmp_path)
    first, second = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    assert first == second
    assert first["segment_reward"]["head"] == {"kind": "attributes", "names": [*NAMES], "weights": [*WEIGHTS]}


def test_exported_its_score_is_that_of_a_standard_classifier(saved, tmp_path):
    folder, model = saved
    export_classifier(str(folder), tmp_path)
    plain = load_reward_model(str(tmp_path), "fp32")
    assert plain.config.num_labels == 1 and read(plain).outputs is None
    mask = tiny_models.padded(ROWS)[1].bool()
    torch.testing.assert_close(read(plain).scores[mask], read(model).scores[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [2, 0], ids=["another number", "none"])
def test_files_that_hold_another_head_are_refused(saved, tmp_path, rows):
    folder, _ = saved
    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop("score.weight")
    save_file(
        tensors | ({"score.weight": head[:rows].clone()} if rows else {}), tmp_path / "model.safetensors", {"format": "pt"}
    )
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError) as error:
        load_reward_model(str(tmp_path), "fp32")
    assert ("score.weight: (2, 32), expected (3, 32)" if rows else "no reward head") in error.value.found


def test_a_reward_models_trunk_may_carry_them(saved, tmp_path):
    """Its head and what is stored of its scores are of no other head; its trunk stays."""
    folder, _ = saved
    trunk = new_reward_model(str(folder), "fp32", head=Head("attributes", names=("a",), weights=(1.0,)))
    before, after = load_file(folder / "model.safetensors"), trunk.state_dict()
    assert after.pop("score.weight").shape == (1, 32)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert trunk.config.segment_reward == {"head": {"kind": "attributes", "names": ["a"], "weights": [1.0]}}
    plain = new_reward_model(str(folder), "fp32")
    assert plain.config.num_labels == 1 and "segment_reward" not in plain.config.to_dict()
