"""Reward models in other layouts: settings and names by hand, scores equal to the bit, and what is refused.

The comparison with transformers 4.57 itself is in tests/clients/.
"""

import json
import re

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from denserl.config import ModelSourceConfig
from denserl.errors import UserError
from denserl.models.export import export_classifier, export_grm, settings_for_version_4
from denserl.models.heads import STOCK, Head, stored_head
from denserl.models.importing import import_grm, import_model
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.saving import save_model
from denserl.models.scoring import token_rewards
from denserl.models.tiny import TEXT_END, TURN_START
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.sources.build import load_step_model
from denserl.rewards.sources.pair_model import PairModel

IDS = torch.tensor([[7, 20, 33, 64, 5], [9, 9, 250, 1, 12]])
CHAT = [{"role": "user", "content": "Tell me about the bridge."}, {"role": "assistant", "content": "A boat waits there."}]
SIZES = ["whole", "sharded"]
MLP = Head("mlp", layers=2, width=6)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return tiny_models.save_language_model(tmp_path_factory.mktemp("sft"))


@pytest.fixture
def reward_model(language_model, tmp_path):
    """A function that writes a reward model with a head into a folder."""

    def write(head: Head = STOCK, shards: str = "whole", **settings):
        model = new_reward_model(str(language_model), "fp32", head=head)
        model.config.update(settings)
        model.config.update({"mean": 0.25, "std": 2.0})
        model.config.segment_reward = {**(model.config.to_dict().get("segment_reward") or {}), "entropy_threshold": 1.5}
        with torch.no_grad():
            for parameter in model.score.parameters():
                parameter.add_(torch.randn_like(parameter))
        folder = tmp_path / "rm"
        model.save_pretrained(folder, **({"max_shard_size": "8KB"} if shards == "sharded" else {}))
        load_tokenizer(str(language_model)).save_pretrained(folder)
        return folder

    return write


def new_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


def in_own_memory(model):
    """The rounding of matrix products depends on where weights lie in memory, in a mapped file or not."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def scores(folder, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return token_rewards(in_own_memory(load_reward_model(str(folder), "fp32")), ids, torch.ones_like(ids))


def weights(folder) -> dict:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def settings(folder, name="config.json") -> dict:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("shards", SIZES)
def test_a_standard_classifier_has_the_same_weights_and_scores(reward_model, tmp_path, shards):
    source, target = reward_model(shards=shards), new_folder(tmp_path, "hf")
    export_classifier(str(source), target)
    before, after = weights(source), weights(target)
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(scores(target), scores(source))
    stock = in_own_memory(AutoModelForSequenceClassification.from_pretrained(target, dtype=torch.float32).eval())
    with torch.no_grad():
        assert torch.equal(stock(IDS[:1]).logits[0, 0], scores(target, IDS[:1])[0, -1])
    assert stock.num_labels == 1 and stock.config.architectures == ["LlamaForSequenceClassification"]


def test_what_version_4_needs_is_written(reward_model, tmp_path):
    """The four traps of spec evaluation, section 2.4, and special tokens under a name that version 4 understands."""
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    source, target = reward_model(rope_parameters=rope), new_folder(tmp_path, "hf")
    export_classifier(str(source), target)
    config, tokenizer = settings(target), settings(target, "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["rope_theta"] == 500000.0 and config["rope_parameters"] == rope
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["pad_token_id"] == AutoTokenizer.from_pretrained(source).pad_token_id is not None
    assert config["id2label"] == {"0": "LABEL_0"}
    assert tokenizer["additional_special_tokens"] == [TURN_START, TEXT_END] and "extra_special_tokens" not in tokenizer
    assert "chat_template" in tokenizer and not {"backend", "is_local"} & set(tokenizer)
    # What denserl reads itself is still there.
    assert (config["mean"], config["std"], config["segment_reward"]) == (0.25, 2.0, {"entropy_threshold": 1.5})
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(target)
    # ChatML writes a line break after the end of turn, which a stock class would be read at.
    assert after.apply_chat_template(CHAT)["input_ids"] == before.apply_chat_template(CHAT)["input_ids"][:-1]
    assert after.apply_chat_template(CHAT)["input_ids"][-1] == after.eos_token_id
    assert after.get_vocab() == before.get_vocab() and after.all_special_ids == before.all_special_ids


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, {}),
        ({"rope_theta": 7.0}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, {"rope_theta": 7.0}),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.5}},
            {"rope_theta": 7.0, "partial_rotary_factor": 0.5},
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "rope_theta": 7.0, **LLAMA3}},
            {"rope_theta": 7.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        ),
        (
            {
                "model_type": "phi3",
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 7.0,
                    "partial_rotary_factor": 1.0,
                    "short_factor": [1.0],
                    "long_factor": [2.0],
                    "original_max_position_embeddings": 32,
                },
            },
            {
                "rope_theta": 7.0,
                "partial_rotary_factor": 1.0,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            },
        ),
        (
            {
                "model_type": "gpt_neox",
                "rope_parameters": {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.25},
            },
            {"rotary_emb_base": 7.0, "rotary_pct": 0.25},
        ),
        (
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 3.0},
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 7.0},
                }
            },
            {"rope_theta": 7.0, "rope_local_base_freq": 3.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
    ],
    ids=["none", "older", "default", "partial", "llama3", "phi3", "gpt-neox", "gemma3"],
)
def test_position_encodings_in_the_words_of_version_4(config, expected):
    assert settings_for_version_4(config, "rm") == expected


def test_what_version_4_cannot_say_is_refused():
    by_layer = {"full_attention": {"rope_theta": 7.0}, "linear_attention": {"rope_theta": 3.0}}
    with pytest.raises(UserError, match="no words for its position encodings"):
        settings_for_version_4({"rope_parameters": by_layer}, "rm")
    with pytest.raises(UserError, match="inside a larger one"):
        settings_for_version_4({"text_config": {}}, "rm")


@pytest.mark.parametrize(
    "kind, rope",
    [
        ("llama", {"rope_type": "llama3", "rope_theta": 50000.0, **LLAMA3}),
        ("qwen2", {"rope_type": "yarn", "rope_theta": 50000.0, "factor": 4.0, "original_max_position_embeddings": 32}),
        ("gpt_neox", {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}),
    ],
)
def test_both_ways_of_saying_it_mean_the_same_to_version_5(tmp_path, kind, rope):
    config = AutoConfig.for_model(kind, rope_parameters=rope, hidden_size=32, num_attention_heads=2, max_position_embeddings=64)
    config.save_pretrained(tmp_path)
    meant, said = AutoConfig.from_pretrained(tmp_path).rope_parameters, settings(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(said | settings_for_version_4(said, "rm")))
    again = AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert {key: again[key] for key in meant} == meant


@pytest.mark.parametrize("head", [MLP, Head(bias=True)], ids=lambda head: head.kind)
def test_a_head_that_is_not_standard_is_no_standard_classifier(reward_model, tmp_path, head):
    with pytest.raises(UserError, match="a head that no standard classifier has") as error:
        export_classifier(str(reward_model(head)), new_folder(tmp_path, "hf"))
    assert re.search(r"[-`]+head_type`? linear", error.value.fix)
    assert not list((tmp_path / "hf").iterdir())


@pytest.mark.parametrize("shards", SIZES)
@pytest.mark.parametrize("head", [MLP, Head(bias=True), Head()], ids=["mlp", "bias", "stock"])
def test_grms_layout_and_back(reward_model, tmp_path, head, shards):
    source, published, back = reward_model(head, shards), new_folder(tmp_path, "grm"), new_folder(tmp_path, "back")
    export_grm(str(source), published)
    config, names = settings(published), set(weights(published))
    kind = "mlp" if head.kind == "mlp" else "linear"
    assert (config["vhead_layer_type"], config["vhead_num_layers"], config["vhead_num_neurons"]) == (
        kind,
        head.layers,
        head.width,
    )
    heads = {name for name in names if not name.startswith("model.")}
    assert heads == {
        f"v_head.summary.{n}{part}" for n in (("0.", "2.", "4.") if kind == "mlp" else ("",)) for part in ("weight", "bias")
    }
    torch.testing.assert_close(scores_by_hand(published, head), scores(source), rtol=1e-5, atol=1e-6)
    import_grm(str(published), back)
    assert stored_head(AutoConfig.from_pretrained(back), "back") == (Head(bias=True) if head == Head() else head)
    # A stock head comes back with a bias of 0.
    assert torch.equal(scores(back), scores(source))
    assert not {name for name in settings(back) if name.startswith("vhead")}
    assert settings(back)["segment_reward"]["entropy_threshold"] == 1.5 and settings(back)["std"] == 2.0
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(back)
    # ChatML writes a line break after the end of turn, which a stock class would be read at.
    assert after.apply_chat_template(CHAT)["input_ids"] == before.apply_chat_template(CHAT)["input_ids"][:-1]
    assert after.apply_chat_template(CHAT)["input_ids"][-1] == after.eos_token_id


def scores_by_hand(folder, head: Head) -> torch.Tensor:
    """A reader of the published layout: the bare trunk, and the layers of the head in the order of their numbers."""
    trunk = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    layers = {name.removeprefix("v_head.summary."): t for name, t in weights(folder).items() if name.startswith("v_head")}
    numbers = sorted({int(name.split(".")[0]) for name in layers}) if head.kind == "mlp" else [None]
    with torch.no_grad():
        state = trunk(IDS).last_hidden_state
        for number in numbers:
            own = "" if number is None else f"{number}."
            state = state @ layers[f"{own}weight"].T + layers[f"{own}bias"]
            state = state if number == numbers[-1] else state.clamp(min=0)
    return state[..., 0]


@pytest.fixture
def published(reward_model, tmp_path):
    """A model in GRM's layout as it is published: with a language-model head, code of its own, and 16-bit trunk."""
    folder = new_folder(tmp_path, "published")
    export_grm(str(reward_model(MLP)), folder)
    tensors = weights(folder)
    tensors = {name: t if name.startswith("v_head") else t.bfloat16() for name, t in tensors.items()}
    tensors["lm_head.weight"] = torch.zeros(320, 32, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = settings(folder) | {"auto_map": {"AutoModelForSequenceClassification": "modeling_grm.GRewardModel"}}
    del config["segment_reward"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_grm.py").write_text("raise SystemExit('ran')")
    return folder


def test_a_published_grm_is_read_without_its_language_model_head_and_its_code(published, tmp_path):
    target = new_folder(tmp_path, "ours")
    import_grm(str(published), target)
    before, after = weights(published), weights(target)
    assert {name.replace("score.1", "v_head.summary.0").replace("score.3", "v_head.summary.2").replace(
        "score.5", "v_head.summary.4"): tensor.dtype for name, tensor in after.items()} == {
        name: tensor.dtype for name, tensor in before.items() if name != "lm_head.weight"
    }  # fmt: skip
    assert "auto_map" not in settings(target) and not (target / "modeling_grm.py").exists()
    torch.testing.assert_close(scores(target), scores_by_hand(published, MLP), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda w: w.pop("v_head.summary.2.bias"), "1 missing (e.g. score.3.bias)"),
        (lambda w: w.update({"v_head.other": torch.zeros(1)}), "1 unexpected (e.g. v_head.other)"),
        (lambda w: w.update({"v_head.summary.0.weight": torch.zeros(6, 31)}), "score.1.weight: (6, 31), expected (6, 32)"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("v_head")], "holds no reward head"),
        (lambda w: w.pop("model.norm.weight"), "1 missing (e.g. model.norm.weight)"),
        (lambda w: w.update({"extra.weight": torch.zeros(1)}), "1 unexpected (e.g. extra.weight)"),
        (lambda w: w.update({"score.weight": torch.zeros(1, 32)}), "holds a second head (score.weight)"),
    ],
)
def test_a_published_grm_is_read_strictly(published, tmp_path, change, found):
    tensors = weights(published)
    change(tensors)
    save_file(tensors, published / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as error:
        import_grm(str(published), new_folder(tmp_path, "ours"))
    assert found in error.value.found and not list((tmp_path / "ours").iterdir())


def test_layouts_that_are_mistaken_for_each_other(published, reward_model, tmp_path):
    with pytest.raises(UserError, match="head in GRM's layout") as error:
        load_reward_model(str(published), "fp32")
    assert f"denserl export --reward_model {published} --layout denserl" in error.value.fix
    with pytest.raises(UserError, match="is not in GRM's layout"):
        import_grm(str(reward_model(MLP)), new_folder(tmp_path, "ours"))


def test_a_pad_token_without_an_embedding_is_refused(reward_model, tmp_path):
    source, target = reward_model(), new_folder(tmp_path, "hf")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(source)
    tiny_models.without_free_tokens(source)
    with pytest.raises(UserError, match="no pad token beside its end-of-turn token, and its 320 embeddings"):
        export_classifier(str(source), target)


PLUS_MINUS = ("+", "-")
QUESTION = [{"role": "user", "content": "What is 3 + 4 - 2 ?"}]
STEPS = ["3 + 4 = 7", "7 - 2 = 6", "The answer is 6"]


def chat_model(folder, tied=True):
    """A language model and its tokenizer, tied or not, and the ids of + and -."""
    tiny_models.save_language_model(folder)
    if not tied:
        model = AutoModelForCausalLM.from_pretrained(folder)
        config = model.config
        config.tie_word_embeddings = False
        untied = AutoModelForCausalLM.from_config(config)
        untied.load_state_dict(model.state_dict() | {"lm_head.weight": torch.randn(320, 32)})
        (folder / "model.safetensors").unlink()
        untied.save_pretrained(folder, max_shard_size="8KB")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.convert_tokens_to_ids(label) for label in PLUS_MINUS]


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_that_judges_by_labels_is_read_as_its_makers_do(tmp_path, tied):
    """RLHFlow's way of one forward a step: the chat so far with + after each earlier step, and the next token's logits."""
    source, target = tmp_path / "published", new_folder(tmp_path, "ours")
    ids = chat_model(source, tied)
    import_model(str(source), target, PLUS_MINUS)
    assert all(torch.equal(tensor, weights(source)[name]) for name, tensor in weights(target).items())
    assert settings(target)["architectures"] == ["LlamaForCausalLM"]
    assert settings(target)["segment_reward"] == {
        "head": {"kind": "label", "bias": False, "labels": ["+", "-"], "label_ids": ids, "scale": 1.0, "cap": None},
        "scores": "logit",
        "segmenter": "step",
        "step_separator": ["\n\n"],
        "context_signs": "plus",
        "agg_func": "min",
    }
    assert (target / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    talk, expected = [], []
    for number, step in enumerate(STEPS):
        talk.append({"role": "user", "content": step if number else f"{QUESTION[0]['content']} {step}"})
        shown = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            logits = stock(shown["input_ids"]).logits[0, -1]
        expected.append((logits[ids[0]] - logits[ids[1]]).item())
        talk.append({"role": "assistant", "content": "+"})
    assert judged(target, "\n\n") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("labels", [("A", "B"), ("A", "B", "C")])
def test_a_language_model_that_compares_is_read_as_its_makers_do(tmp_path, labels):
    """RLHFlow's way of one forward an order: the turn of a user with both responses, and the logits of the next token."""
    source, target = tmp_path / "published", new_folder(tmp_path, "ours")
    chat_model(source, tied=True)
    import_model(str(source), target, labels, pair_layout="rlhflow")
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    ids = [tokenizer.convert_tokens_to_ids(label) for label in labels]
    stored = settings(target)["segment_reward"]
    assert stored["head"]["label_ids"] == ids and stored["head"]["labels"] == [*labels]
    assert {name: value for name, value in stored.items() if name != "head"} == {"input": "pair", "pair_layout": "rlhflow"}
    assert all(torch.equal(tensor, weights(source)[name]) for name, tensor in weights(target).items())
    both = ["The bridge is old.", "Rain falls [RESPONSE B] on it."]
    expected = []
    for first, second in (both, both[::-1]):
        text = f"[CONTEXT] \n\n<turn> user\n {QUESTION[0]['content']}\n [RESPONSE A] {first} [RESPONSE B] {second} \n"
        talk = [{"role": "user", "content": text}]
        shown = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            logits = stock(shown["input_ids"]).logits[0, -1]
        expected.append((logits[ids[0]] - logits[ids[1]]).item())
    found = PairModel.load(str(target)).log_odds([QUESTION], both[:1], both[1:])
    assert found[0] == pytest.approx(expected, abs=1e-4) and abs(expected[0]) > 1e-3
    with pytest.raises(UserError, match="compares two responses in one text"):
        export_classifier(str(target), new_folder(tmp_path, "hf"))


def judged(folder, separator: str) -> list[float]:
    """The logits of STEPS by a step model."""
    model = load_step_model([str(folder)], "fp32", ModelSourceConfig(), "cpu")
    return model([QUESTION], [[*(step + separator for step in STEPS[:2]), STEPS[2]]])[0]


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_token_classifier_of_steps_is_read_as_its_trainer_reads_it(tmp_path, has_bias):
    """TRL's way: the question, and each step with its separator, encoded by themselves; logits at the last token of each."""
    source, target = tmp_path / "published", new_folder(tmp_path, "ours")
    config = tiny_models.FAMILIES["llama"](num_labels=2, token_classification_bias=has_bias)
    config.vocab_size = 320
    stock = AutoModelForTokenClassification.from_config(config, dtype=torch.float32).eval()
    stock.save_pretrained(source)
    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(source)
    import_model(str(source), target)
    row = tokenizer.encode(QUESTION[0]["content"], add_special_tokens=False)
    ends = []
    for step in STEPS:
        row += tokenizer.encode(step, add_special_tokens=False) + tokenizer.encode("\n", add_special_tokens=False)
        ends.append(len(row) - 1)
    with torch.no_grad():
        logits = stock(torch.tensor([row])).logits[0, ends].double()
    assert judged(target, "\n") == pytest.approx((logits[:, 1] - logits[:, 0]).tolist(), abs=1e-5)
    assert settings(target)["segment_reward"] | {"head": None} == {
        "head": None,
        "scores": "logit",
        "segmenter": "step",
        "step_separator": ["\n"],
        "context_signs": "none",
        "agg_func": "min",
    }
    assert stored_head(AutoConfig.from_pretrained(target), "ours") == Head(bias=has_bias)


def test_labels_without_a_cap_are_a_linear_layer_of_a_classifier(tmp_path):
    source = tmp_path / "lm"
    ids = chat_model(source)
    model = new_reward_model(str(source), "fp32", head=Head("label", labels=PLUS_MINUS, label_ids=tuple(ids)))
    save_model(model, tmp_path / "rm")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "rm")
    expected = scores(tmp_path / "rm")
    for layout, name in ((export_classifier, "hf"), (export_grm, "grm")):
        layout(str(tmp_path / "rm"), new_folder(tmp_path, name))
    torch.testing.assert_close(scores(tmp_path / "hf"), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores_by_hand(tmp_path / "grm", Head(bias=True)), expected, rtol=0, atol=1e-5)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(stock(IDS[:1]).logits[0, 0], expected[0, -1], rtol=0, atol=1e-5)
    config = settings(tmp_path / "rm")
    config["segment_reward"]["head"]["cap"] = 30.0
    (tmp_path / "rm" / "config.json").write_text(json.dumps(config))
    for layout in (export_classifier, export_grm):
        with pytest.raises(UserError, match="caps its logits at 30.0"):
            layout(str(tmp_path / "rm"), new_folder(tmp_path, layout.__name__))


def test_what_is_in_no_layout_is_not_taken_for_one(reward_model, tmp_path):
    source, target = reward_model(), new_folder(tmp_path, "ours")
    with pytest.raises(UserError, match="holds score.weight"):
        import_model(str(source), target, PLUS_MINUS)
    with pytest.raises(UserError, match="is not in GRM's layout"):
        import_model(str(source), target)
    config = tiny_models.FAMILIES["llama"](num_labels=3)
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match=r"has the shape \(3, 32\); expected two labels"):
        import_model(str(tmp_path / "three"), target)
    assert not list(target.iterdir())
