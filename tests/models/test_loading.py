"""Loading: pad tokens, strict errors and their words, the head's initialisation, and folders of the published shape."""

import json
import logging

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from denserl.errors import UserError
from denserl.models.heads import Head, stored_head
from denserl.models.loading import disable_dropout, load_policy, local_folder, match_embeddings
from denserl.models.reward_models import attach_lm_head, freeze_trunk, init_head, load_reward_model, new_reward_model
from denserl.models.scoring import token_rewards
from denserl.models.tiny import CHAT_TEMPLATE as CHATML
from denserl.models.tiny import TEXT_END, TURN_END, new_llama, train_tokenizer
from denserl.models.tokenizers import check_same_tokenizer, load_tokenizer

IDS = torch.tensor([[7, 20, 33, 64, 5]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_language_model(tmp_path_factory.mktemp("sft"))


@pytest.fixture
def reward_folder(folder, tmp_path):
    model = new_reward_model(str(folder), "fp32", seed=3)
    model.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def tokenizer_with(folder, tmp_path, pad_token, reserved=()):
    """The tiny tokenizer with another pad token and further special tokens, saved in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(reserved)}, replace_extra_special_tokens=False)
    tokenizer.pad_token = pad_token
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def edit_weights(folder, change) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_a_pad_token_of_its_own_is_kept(folder, caplog):
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token == "<|pad|>" and tokenizer.padding_side == "right"
    assert len(tokenizer) == len(tiny_models.tiny_tokenizer())
    assert not caplog.records


@pytest.mark.parametrize("pad", [None, TURN_END])
def test_a_reserved_token_becomes_the_pad_token(folder, tmp_path, caplog, pad):
    reserved = "<|reserved_special_token_7|>"
    path = tokenizer_with(folder, tmp_path, pad, ["<|tool_call|>", reserved])
    # The tiny vocabulary has a token whose name says pad, which would come first: a name that says nothing hides it.
    tiny_models.without_free_tokens(path)
    before = len(AutoTokenizer.from_pretrained(path))
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(str(path))
    assert tokenizer.pad_token == reserved and len(tokenizer) == before
    said = caplog.text
    assert reserved in said and str(tokenizer.pad_token_id) in said and "saved with the model" in said
    assert ("none" if pad is None else "also the end-of-turn token") in said


def test_a_token_named_for_padding_comes_before_other_reserved_ones(folder, tmp_path):
    path = tokenizer_with(folder, tmp_path, TURN_END, ["<|reserved_special_token_7|>", "<|finetune_right_pad_id|>"])
    tiny_models.without_free_tokens(path)
    assert load_tokenizer(str(path)).pad_token == "<|finetune_right_pad_id|>"


# The 17 special tokens of SmolLM2-135M-Instruct (tokenizer_config.json), whose pad token is its end of turn.
SMOLLM2 = (
    "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <reponame> <file_sep> <filename> <gh_stars> <issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <jupyter_script> "
    "<empty_output>"
).split()


def smollm2_like(folder, template=CHATML, **settings):
    """A tokenizer of that shape with a model that has a row for each token, saved in a folder."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SMOLLM2, show_progress=False, initial_alphabet=alphabet)
    backend.train_from_iterator(["user assistant system Hello there"] * 5, trainer)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **{**names, **settings})
    new_llama(tokenizer, hidden_size=32, num_layers=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settled_pad(folder):
    """The pad token that is taken, with embeddings that have not grown for it."""
    tokenizer, model = load_tokenizer(str(folder)), load_policy(str(folder), "fp32")
    rows = model.get_input_embeddings().num_embeddings
    match_embeddings(model, tokenizer)
    assert model.get_input_embeddings().num_embeddings == rows == len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    return tokenizer.pad_token


def test_a_special_token_that_nothing_uses_becomes_the_pad_token(tmp_path):
    assert settled_pad(smollm2_like(tmp_path / "as published")) == "<repo_name>"
    assert settled_pad(smollm2_like(tmp_path / "none", pad_token=None)) == "<repo_name>"
    # not one that a branch of the template writes, in one piece or in several, nor one that the model's settings name
    branch = "{% if files %}<repo_name>{% endif %}{% if tools %}{{ '<repo' + 'name>' }}{% endif %}" + CHATML
    folder = smollm2_like(tmp_path / "written", branch)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [2, SMOLLM2.index("<file_sep>")]}))
    assert settled_pad(folder) == "<filename>"
    again = AutoTokenizer.from_pretrained(folder)
    again.add_tokens([AddedToken("<my_pad>", special=True)])
    again.save_pretrained(folder)
    assert load_tokenizer(str(folder)).pad_token == "<my_pad>"


@pytest.mark.parametrize("pad", [None, TURN_END])
def test_without_a_reserved_token_there_is_a_new_one_and_embeddings_grow(folder, tmp_path, pad):
    path = tokenizer_with(folder, tmp_path, pad)
    tiny_models.without_free_tokens(path)
    model = load_policy(str(folder), "fp32")
    old, rows = model.get_input_embeddings().weight.detach().clone(), model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        before = model(IDS).logits
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.pad_token_id == rows and len(tokenizer) == rows + 1
    match_embeddings(model, tokenizer)
    assert model.get_input_embeddings().num_embeddings == model.get_output_embeddings().weight.shape[0] == rows + 64
    assert torch.equal(model.get_input_embeddings().weight[:rows], old)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits[..., :rows], before)
    model.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    again, model = load_tokenizer(str(tmp_path / "grown")), load_policy(str(tmp_path / "grown"), "fp32")
    assert again.pad_token_id == model.config.pad_token_id == rows
    assert again.convert_tokens_to_ids(TURN_END) == again.eos_token_id


def test_embeddings_with_rows_to_spare_stay(folder):
    model, tokenizer = load_policy(str(folder), "fp32"), load_tokenizer(str(folder))
    model.resize_token_embeddings(len(tokenizer) + 13)
    match_embeddings(model, tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) + 13


def test_end_of_text_as_pad_is_kept_when_turns_end_otherwise(folder, tmp_path):
    assert load_tokenizer(str(tokenizer_with(folder, tmp_path, TEXT_END))).pad_token == TEXT_END


def test_a_tokenizer_without_template_is_refused(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("load", [load_policy, load_reward_model, new_reward_model])
def test_a_missing_folder_is_named(tmp_path, load):
    with pytest.raises(UserError) as error:
        load(str(tmp_path / "nowhere"), "fp32")
    assert "nowhere" in error.value.found and "model folder" in error.value.fix


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_a_file_in_place_of_a_folder(folder):
    with pytest.raises(UserError, match="is a file; expected a model folder"):
        load_policy(str(folder / "config.json"), "fp32")


def test_a_language_model_is_no_reward_model(folder):
    with pytest.raises(UserError, match="no reward head") as error:
        load_reward_model(str(folder), "fp32")
    assert f"denserl train-rm --model {folder}" in error.value.fix


def test_a_head_of_two_labels_is_refused(folder, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(UserError) as error:
        load_reward_model(str(tmp_path), "fp32")
    assert "score" in str(error.value) and "shape" in str(error.value)


def test_missing_weights_are_refused(folder, reward_folder, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(reward_folder, lambda weights: weights.pop(name))
    with pytest.raises(UserError, match=f"1 missing .e.g. {name}"):
        load_reward_model(str(reward_folder), "fp32")
    model = load_policy(str(folder), "fp32")
    model.save_pretrained(tmp_path / "lm")
    edit_weights(tmp_path / "lm", lambda weights: weights.pop(name))
    for load in (load_policy, new_reward_model):
        with pytest.raises(UserError, match=f"1 missing .e.g. {name}"):
            load(str(tmp_path / "lm"), "fp32")


def test_unknown_weights_are_refused(reward_folder):
    edit_weights(reward_folder, lambda weights: weights.update({"extra.weight": torch.zeros(2)}))
    with pytest.raises(UserError, match="1 unexpected .e.g. extra.weight"):
        load_reward_model(str(reward_folder), "fp32")


def test_weights_of_another_shape_are_refused(reward_folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(reward_folder, lambda weights: weights.update({name: weights[name][:, :7].contiguous()}))
    with pytest.raises(UserError):
        load_reward_model(str(reward_folder), "fp32")


@pytest.mark.parametrize("load", [load_policy, load_reward_model, new_reward_model])
def test_pickled_weights_are_refused(folder, tmp_path, load):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load(str(tmp_path), "fp32")


@pytest.mark.parametrize("kw", [{}, {"trust_remote_code": False}])
@pytest.mark.parametrize("load", [load_policy, load_reward_model, new_reward_model])
def test_code_in_a_model_folder_is_not_run(folder, tmp_path, monkeypatch, load, kw):
    """Nor is anybody asked whether it may run, which would hold up a run without a terminal."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked a question"))
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "homemade",
        "architectures": ["Homemade"],
        "auto_map": {
            "AutoConfig": "homemade.Config",
            "AutoModelForCausalLM": "homemade.Homemade",
            "AutoModelForSequenceClassification": "homemade.Homemade",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "homemade.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError):
        load(str(tmp_path), "fp32", **kw)
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_the_published_shape(reward_folder, tmp_path):
    """Backbone weights and score.weight (1, hidden), with the config of the language model it came from."""
    model = LlamaForSequenceClassification.from_pretrained(reward_folder, dtype=torch.float32).eval()
    config = json.loads((reward_folder / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    for key in ("id2label", "label2id", "num_labels"):
        config.pop(key, None)
    target = tmp_path / "published"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert weights["score.weight"].shape == (1, 32) and not any(name.startswith("lm_head") for name in weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    loaded = load_reward_model(str(target), "fp32").eval()
    with torch.no_grad():
        stock = [model(IDS[:, : n + 1]).logits.item() for n in range(IDS.shape[1])]
        rewards = token_rewards(loaded, IDS, torch.ones_like(IDS))[0]
    torch.testing.assert_close(rewards, torch.tensor(stock), rtol=1e-5, atol=1e-7)


def test_a_saved_reward_model_loads_in_the_stock_class_with_the_same_bits(reward_folder):
    stock = AutoModelForSequenceClassification.from_pretrained(reward_folder, dtype=torch.float32).eval()
    ours = load_reward_model(str(reward_folder), "fp32").eval()
    assert stock.num_labels == 1
    with torch.no_grad():
        assert stock(IDS).logits.item() == token_rewards(ours, IDS, torch.ones_like(IDS))[0, -1].item() != 0


def test_a_new_head_depends_on_the_seed_alone(folder):
    torch.manual_seed(1)
    first = new_reward_model(str(folder), "fp32", seed=5).score.weight
    torch.manual_seed(2)
    assert torch.equal(first, new_reward_model(str(folder), "fp32", seed=5).score.weight)
    assert not torch.equal(first, new_reward_model(str(folder), "fp32", seed=6).score.weight)
    assert first.shape == (1, 32)


def test_a_new_head_has_the_spread_of_the_spec(folder):
    model, drawn = new_reward_model(str(folder), "fp32"), []
    for seed in range(100):
        init_head(model, seed)
        drawn.append(model.score.weight.detach().clone())
    # 3200 draws: the standard error of their spread is 1.25 %, that of their mean 1.8 % of it.
    values = torch.cat(drawn)
    assert values.std().item() == pytest.approx(1 / 33, rel=0.06)
    assert abs(values.mean().item()) < 0.09 / 33


def test_a_new_reward_model_has_the_backbone_of_the_language_model(folder):
    backbone = load_policy(str(folder), "fp32").model.state_dict()
    for name, tensor in new_reward_model(str(folder), "fp32").model.state_dict().items():
        assert torch.equal(tensor, backbone[name])


@pytest.mark.parametrize("dtype, expected", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision(folder, reward_folder, dtype, expected):
    for model in (load_policy(str(folder), dtype), load_reward_model(str(reward_folder), dtype)):
        assert {p.dtype for p in model.parameters()} == {expected}


def test_generation_settings_come_with_the_policy(tmp_path):
    tiny_models.save_language_model(tmp_path, stops=4)
    tokenizer = load_tokenizer(str(tmp_path))
    config = load_policy(str(tmp_path), "fp32").generation_config
    assert isinstance(config, GenerationConfig)
    assert config.eos_token_id == [tokenizer.eos_token_id, *range(len(tokenizer) - 4, len(tokenizer))]


def test_one_tokenizer_for_policy_and_reward_model(folder):
    tokenizer = load_tokenizer(str(folder))
    check_same_tokenizer(tokenizer, load_tokenizer(str(folder)), "rm")
    other = train_tokenizer(["Something else entirely was read here, twice over."] * 3, 290)
    with pytest.raises(UserError, match="rm has another tokenizer than the policy .* tokens differ") as error:
        check_same_tokenizer(tokenizer, other, "rm")
    assert "denserl train-rm" in error.value.fix


def test_another_pad_token_alone_is_the_same_tokenizer(folder, tmp_path):
    path = tokenizer_with(folder, tmp_path, None)
    tiny_models.without_free_tokens(path)
    grown, again = load_tokenizer(str(path)), AutoTokenizer.from_pretrained(path)
    assert len(grown) == len(again) + 1
    check_same_tokenizer(grown, again, "rm")


def test_dropout_is_switched_off():
    model = tiny_models.language_model("gpt2").train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    disable_dropout(model)
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_attention_dropout_is_switched_off(folder):
    tokenizer = load_tokenizer(str(folder))
    model = new_llama(tokenizer, hidden_size=32, num_layers=1, num_heads=2).train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    disable_dropout(model)
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_a_folder_is_its_own_snapshot(folder):
    assert local_folder(str(folder)) == folder


def test_models_that_grow_for_a_new_pad_token_stay_equal(tmp_path):
    tokenizer = train_tokenizer(["some words to learn"], 300)
    new_llama(tokenizer, hidden_size=32, num_layers=1).save_pretrained(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "<|new_pad|>"})
    policy, reference = load_policy(str(tmp_path), "fp32"), load_policy(str(tmp_path), "fp32")
    match_embeddings(policy, tokenizer)
    torch.rand(7)
    match_embeddings(reference, tokenizer)
    assert policy.get_input_embeddings().num_embeddings == 320  # 301 tokens, to a multiple of 64
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(policy(ids).logits, reference(ids).logits)


def test_precision_by_name_or_as_torch_has_it(tmp_path):
    tokenizer = train_tokenizer(["some words to learn"], 300)
    new_llama(tokenizer, hidden_size=32, num_layers=1).save_pretrained(tmp_path)
    for dtype in ("bf16", torch.bfloat16):
        assert load_policy(str(tmp_path), dtype).dtype == torch.bfloat16
    assert load_policy(str(tmp_path), torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="unknown dtype 'half'"):
        load_policy(str(tmp_path), "half")


# Heads that are not the stock one.

MLP = Head("mlp", layers=2, width=6, dropout=0.5)
HEADS = [MLP, Head("mlp", width=3), Head("linear", bias=True)]


def scores(model, ids=IDS):
    with torch.no_grad():
        # The rounding of matrix products depends on where weights lie in memory, in a mapped file or not.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return token_rewards(model, ids, torch.ones_like(ids))


def saved(model, folder, **kw):
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.save_pretrained(folder, **kw)
    return folder


@pytest.fixture
def mlp_folder(folder, tmp_path):
    return saved(new_reward_model(str(folder), "fp32", head=MLP), tmp_path / "mlp")


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "8KB"}], ids=["whole", "sharded"])
def test_a_head_is_saved_and_read_back_with_the_same_bits(folder, tmp_path, head, shards):
    model = new_reward_model(str(folder), "fp32", head=head)
    saved(model, tmp_path / "rm", **shards)
    assert (tmp_path / "rm" / "model.safetensors.index.json").is_file() == bool(shards)
    again = load_reward_model(str(tmp_path / "rm"), "fp32")
    assert stored_head(again.config, "rm") == head
    assert torch.equal(scores(again), scores(model)) and scores(again).abs().sum() > 0
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_an_mlp_reads_the_hidden_state_that_the_stock_head_reads(folder):
    """The last layer's state after the final norm (spec grm, section 2), from the language model."""
    model = new_reward_model(str(folder), "fp32", head=MLP)
    with torch.no_grad():
        hidden = load_policy(str(folder), "fp32").model(IDS).last_hidden_state
        torch.testing.assert_close(scores(model), model.score(hidden)[..., 0], rtol=1e-5, atol=1e-6)


def test_models_come_in_evaluation_mode(folder, mlp_folder):
    for model in (new_reward_model(str(folder), "fp32", head=MLP), load_reward_model(str(mlp_folder), "fp32")):
        assert not any(module.training for module in model.modules())
        assert torch.equal(scores(model), scores(model))
        model.train()
        assert not torch.equal(scores(model), scores(model))


def test_a_new_mlp_depends_on_the_seed_alone(folder):
    def drawn(seed):
        return new_reward_model(str(folder), "fp32", seed, MLP).score.state_dict()

    torch.manual_seed(1)
    first = drawn(5)
    torch.manual_seed(2)
    again, other = drawn(5), drawn(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_new_linear_head_with_bias_starts_like_one_without(folder):
    with_bias, stock = (new_reward_model(str(folder), "fp32", 5, head).score for head in (Head(bias=True), Head()))
    assert torch.equal(with_bias.weight, stock.weight) and with_bias.bias.item() == 0.0


def test_a_reward_model_starts_anew_under_another_head(folder, mlp_folder):
    model = new_reward_model(str(mlp_folder), "fp32", 5)
    assert stored_head(model.config, "new") == Head()
    assert torch.equal(model.score.weight, new_reward_model(str(folder), "fp32", 5).score.weight)


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda w: w.pop("score.5.bias"), "1 missing (e.g. score.5.bias)"),
        (lambda w: w.update({"score.7.weight": torch.zeros(1, 6)}), "1 unexpected (e.g. score.7.weight)"),
        (lambda w: w.update({"v_head.summary.0.bias": torch.zeros(6)}), "1 unexpected (e.g. v_head.summary.0.bias)"),
        (lambda w: w.update({"score.3.weight": torch.zeros(6, 5)}), "score.3.weight: (6, 5), expected (6, 6)"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("score.")], "holds no reward head"),
        (lambda w: w.pop("model.norm.weight"), "1 missing (e.g. model.norm.weight)"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(320, 32)}), "1 unexpected (e.g. lm_head.weight)"),
    ],
)
def test_another_head_than_the_config_describes_is_refused(mlp_folder, change, found):
    edit_weights(mlp_folder, change)
    with pytest.raises(UserError) as error:
        load_reward_model(str(mlp_folder), "fp32")
    assert found in error.value.found


def test_a_head_that_the_config_does_not_describe_is_refused(mlp_folder):
    config = json.loads((mlp_folder / "config.json").read_text())
    del config["segment_reward"]
    (mlp_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"holds a head \(score.1.bias.*that its config.json does not describe"):
        load_reward_model(str(mlp_folder), "fp32")


def test_a_reward_model_with_an_mlp_is_no_language_model(mlp_folder):
    with pytest.raises(UserError, match="is a reward model .it holds score.1.bias"):
        load_policy(str(mlp_folder), "fp32")


def test_the_trunk_can_be_frozen(folder):
    model = new_reward_model(str(folder), "fp32", head=MLP)
    freeze_trunk(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"score.{n}.{part}" for n in (1, 3, 5) for part in ("weight", "bias")
    }


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "gpt2"])
def test_the_language_models_head_beside_the_reward_head(tmp_path, family):
    """It gives the language model's own logits, is the embeddings where they are tied, and is never saved."""
    policy = tiny_models.language_model(family)
    policy.save_pretrained(tmp_path / "sft")
    model = new_reward_model(str(tmp_path / "sft"), "fp32")
    before = scores(model)
    attach_lm_head(model, str(tmp_path / "sft"), "fp32")
    with torch.no_grad():
        hidden = policy.base_model(IDS).last_hidden_state
        assert torch.equal(model.lm_head(hidden), policy.lm_head(hidden))
    tied = policy.get_input_embeddings().weight is policy.lm_head.weight
    assert tied == (family != "llama")
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert torch.equal(scores(model), before)
    model.save_pretrained(tmp_path / "rm")
    # As DeepSpeed gives them: copies, of what is tied too.
    copies = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "copies", state_dict=copies)
    for name in ("rm", "copies"):
        again = load_reward_model(str(tmp_path / name), "fp32")
        assert set(load_file(tmp_path / name / "model.safetensors")) == set(again.state_dict())
        assert all(torch.equal(weight, model.state_dict()[key]) for key, weight in again.state_dict().items())
        assert torch.equal(scores(again), before)


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_the_language_models_head_grows_with_the_embeddings(tmp_path, family):
    """As the frozen reference model does, whose log-probabilities are compared with it."""
    reference = tiny_models.language_model(family)
    reference.save_pretrained(tmp_path)
    tokenizer = tiny_models.tiny_tokenizer()
    model = new_reward_model(str(tmp_path), "fp32")
    match_embeddings(model, tokenizer)
    attach_lm_head(model, str(tmp_path), "fp32")
    match_embeddings(reference, tokenizer)
    assert model.lm_head.weight.shape[0] == len(tokenizer) > tiny_models.VOCABULARY
    assert torch.equal(model.lm_head.weight, reference.lm_head.weight)
