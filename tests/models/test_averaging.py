"""Weights averaged from files to files, against a plain loop over the states of models that transformers has loaded."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from denserl.errors import UserError
from denserl.models.averaging import average_models, weighted, weighted_rows
from denserl.models.heads import STOCK, Head, stored_head
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.reward_settings import sft_settings, store_settings, stored_settings
from denserl.models.saving import save_model
from denserl.models.tiny import new_llama, train_tokenizer
from denserl.models.tokenizers import load_tokenizer


def reward_model(folder, seed: int, head: Head = STOCK, sft=None):
    """A reward model that knows where it was trained, in more files than one."""
    if sft is None:
        sft = folder.parent / f"{folder.name}-sft"
        tiny_models.save_language_model(sft, seed=seed)
    model = new_reward_model(str(sft), "fp32", seed=seed, head=head)
    store_settings(model.config, **sft_settings(str(sft), "fp32:abc", str(folder)), entropy_threshold=1.5)
    model.config.mean, model.config.std = 1.0, 2.0
    if head.kind == "label":
        save_model(model, folder)
    else:
        model.save_pretrained(folder, max_shard_size="20KB")
    load_tokenizer(str(sft)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("averaged")
    for seed in range(3):
        reward_model(root / f"rm{seed}", seed)
    return root


def states(paths, kind=AutoModelForSequenceClassification):
    return [kind.from_pretrained(path, dtype=torch.float32).state_dict() for path in paths]


def averaged(folder, model, others, weight=None, **kw):
    folder.mkdir()
    average_models(str(model), [str(other) for other in others], weight, folder, **kw)
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_an_average_by_hand():
    found = weighted([torch.tensor([1.0, -2.0]), torch.tensor([0.2, 0.4])], [0.35, 0.65])
    assert found.tolist() == pytest.approx([0.48, -0.44], abs=1e-6)


def test_rows_by_hand():
    """The second table has no row for the first one's last, the third one none for its first two."""
    tables = [torch.tensor([[1.0], [2], [3], [4]]), torch.tensor([[30.0], [20], [10]]), torch.tensor([[100.0]])]
    rows = [torch.arange(4), torch.tensor([2, 1, 0, -1]), torch.tensor([-1, -1, 0, -1])]
    found = weighted_rows(tables, [0.5, 0.25, 0.25], rows).squeeze(1)
    assert found.tolist() == pytest.approx([(0.5 + 2.5) / 0.75, (1 + 5) / 0.75, 1.5 + 7.5 + 25, 4])
    # What is of no weight leaves what another has alone as it is.
    assert weighted_rows(tables[:2], [0.0, 1.0], rows[:2]).squeeze(1).tolist() == [10, 20, 30, 4]


def test_a_reward_model_with_a_language_model(models, tmp_path):
    domain = models / "rm1-sft"
    found = averaged(tmp_path / "new", models / "rm0", [domain], 0.35)
    (own,), (other,) = states([models / "rm0"]), states([domain], AutoModelForCausalLM)
    assert found.keys() == own.keys()
    for name, tensor in found.items():
        expected = own[name] if name == "score.weight" else 0.35 * own[name] + 0.65 * other[name]
        torch.testing.assert_close(tensor, expected)
    assert (
        len(list((tmp_path / "new").glob("model-*.safetensors"))) == len(list((models / "rm0").glob("model-*.safetensors"))) > 1
    )
    config = load_reward_model(str(tmp_path / "new"), "fp32").config
    stored = stored_settings(config, str(tmp_path / "new"))
    # The mean and std are those of other weights.
    assert (stored.mean, stored.std, stored.entropy_threshold, stored.sft_model) == (None, None, 1.5, str(models / "rm0-sft"))
    assert (tmp_path / "new" / config.segment_reward["sft_from_here"]).resolve() == (models / "rm0-sft").resolve()


def test_reward_models_are_averaged_heads_included(models, tmp_path):
    paths = [models / f"rm{seed}" for seed in range(3)]
    for weight, shares in ((None, [1 / 3] * 3), (0.5, [0.5, 0.25, 0.25])):
        found = averaged(tmp_path / str(weight), paths[0], paths[1:], weight)
        for name, tensor in found.items():
            expected = sum(share * state[name] for share, state in zip(shares, states(paths), strict=True))
            torch.testing.assert_close(tensor, expected)


def test_a_weight_of_one_is_the_model_itself(models, tmp_path):
    found = averaged(tmp_path / "new", models / "rm0", [models / "rm1"], 1.0, dtype="bf16")
    own = states([models / "rm0"])[0]
    assert all(torch.equal(tensor, own[name].bfloat16().float()) for name, tensor in found.items())
    assert json.loads((tmp_path / "new/config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for path in (tmp_path / "new").glob("*.safetensors") for tensor in load_file(path).values()} == {
        torch.bfloat16
    }


def test_tokens_are_averaged_by_their_text(models, tmp_path, caplog):
    """Of a language model with another vocabulary, of fewer tokens, in another order."""
    texts = ["Numbers and proofs: two plus two is four, and rivers run under the bridge."] * 3
    tokenizer = train_tokenizer(texts, 300)
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 48}
    new_llama(tokenizer, **sizes, seed=5).save_pretrained(tmp_path / "domain")
    tokenizer.save_pretrained(tmp_path / "domain")
    found = averaged(tmp_path / "new", models / "rm0", [tmp_path / "domain"], 0.35)
    (own,), (other,) = states([models / "rm0"]), states([tmp_path / "domain"], AutoModelForCausalLM)
    name, theirs = "model.embed_tokens.weight", AutoTokenizer.from_pretrained(tmp_path / "domain").get_vocab()
    vocabulary = AutoTokenizer.from_pretrained(models / "rm0").get_vocab()
    shared = {text: row for text, row in vocabulary.items() if text in theirs}
    assert 0 < len(shared) < len(vocabulary) and any(theirs[text] != row for text, row in shared.items())
    for text, row in vocabulary.items():
        expected = own[name][row]
        if text in theirs:
            expected = 0.35 * expected + 0.65 * other[name][theirs[text]]
        torch.testing.assert_close(found[name][row], expected)
    trunk = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(found[trunk], 0.35 * own[trunk] + 0.65 * other[trunk])
    assert AutoTokenizer.from_pretrained(tmp_path / "new").get_vocab() == vocabulary
    lacking, beyond = len(vocabulary) - len(shared), len(theirs) - len(shared)
    assert f"lacks {lacking} tokens" in caplog.text and f"{beyond} of its own are left out" in caplog.text


def test_models_of_labels(models, tmp_path):
    """They are language models on disk, whose head is averaged with that of other judges, and kept beside other models."""
    head = Head("label", labels=("+", "-"), label_ids=(14, 16))
    judges = [reward_model(tmp_path / f"judge{seed}", seed, head, models / f"rm{seed}-sft") for seed in (0, 1)]
    own, other = states(judges, AutoModelForCausalLM)
    for name, others, share in (("with-judge", [judges[1]], 0.5), ("with-model", [models / "rm1-sft"], 1.0)):
        (tmp_path / name).mkdir()
        average_models(str(judges[0]), [str(path) for path in others], 0.5, tmp_path / name)
        (found,) = states([tmp_path / name], AutoModelForCausalLM)
        torch.testing.assert_close(
            found["lm_head.weight"], share * own["lm_head.weight"] + (1 - share) * other["lm_head.weight"]
        )
        trunk = "model.layers.0.mlp.up_proj.weight"
        torch.testing.assert_close(found[trunk], (own[trunk] + other[trunk]) / 2)
        assert stored_head(load_reward_model(str(tmp_path / name), "fp32").config, name).labels == ("+", "-")


@pytest.mark.parametrize("kind", ["attributes", "gated"])
def test_models_of_attributes(kind, models, tmp_path):
    """Beside a language model their head is kept, gate and transform included; beside one another it is averaged."""
    one, other, sft = tmp_path / "one", tmp_path / "other", models / "rm1-sft"
    if kind == "gated":
        tiny_models.save_gated_model(one, models / "rm0-sft")
        tiny_models.save_gated_model(other, sft)
    else:
        head = Head("attributes", names=("help", "style"), weights=(0.25, 0.75))
        for seed, folder in enumerate((one, other)):
            reward_model(folder, seed, head, models / f"rm{seed}-sft")
    mine, theirs = (load_reward_model(str(folder), "fp32").state_dict() for folder in (one, other))
    for name, beside in (("with-model", sft), ("with-like", other)):
        (tmp_path / name).mkdir()
        average_models(str(one), [str(beside)], 0.25, tmp_path / name)
        merged = load_reward_model(str(tmp_path / name), "fp32")
        assert stored_head(merged.config, name) == stored_head(load_reward_model(str(one), "fp32").config, "one")
        for key, tensor in merged.state_dict().items():
            is_kept = key.startswith("score.") and beside == sft
            torch.testing.assert_close(tensor, mine[key] if is_kept else 0.25 * mine[key] + 0.75 * theirs[key])


def test_what_does_not_go_together_is_refused(models, tmp_path):
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 40}
    new_llama(tiny_models.tiny_tokenizer(), **sizes, seed=0).save_pretrained(tmp_path / "narrow")
    tiny_models.tiny_tokenizer().save_pretrained(tmp_path / "narrow")
    mlp = reward_model(tmp_path / "mlp", 0, Head("mlp", width=4), models / "rm0-sft")
    wide = reward_model(tmp_path / "wide", 0, Head("mlp", width=8), models / "rm0-sft")
    heads = shutil.copytree(models / "rm0", tmp_path / "heads")
    config = json.loads((heads / "config.json").read_text())
    (heads / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}))
    own, sft = models / "rm0", models / "rm1-sft"
    for model, others, says in (
        (sft, [own], "holds no reward head"),
        (own, [tmp_path / "narrow"], r"not of one shape: model.layers.0.mlp.down_proj.weight: \[32, 48\] and \[32, 40\]"),
        (own, [mlp], "has another head than .*rm0: mlp, not linear"),
        (mlp, [wide], "has another head than .*mlp: width 8, not 4"),
        (own, [models / "rm1", sft], "has both reward models and language models"),
        (own, [heads], "has num_attention_heads 4, and .*rm0 2"),
        (own, [tmp_path / "nowhere"], "no model folder"),
    ):
        (tmp_path / "new").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=says):
            average_models(str(model), list(map(str, others)), 0.5, tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_damaged_and_missing_files_are_named(models, tmp_path):
    for number, (harm, said) in enumerate(
        [(lambda file: file.write_bytes(file.read_bytes()[:500]), "damaged or half written"), (Path.unlink, "No such file")]
    ):
        shutil.copytree(models / "rm1", tmp_path / f"rm{number}")
        harm(sorted((tmp_path / f"rm{number}").glob("*.safetensors"))[-1])
        with pytest.raises(UserError, match=f"rm{number}: .*{said}"):
            averaged(tmp_path / f"out{number}", models / "rm0", [tmp_path / f"rm{number}"])
