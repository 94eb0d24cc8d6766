"""ArmoRM's published layout: written, read by code made of its public description alone, and read back; and what is refused."""

import json

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaModel

from denserl.data.chat import end_of_turn_id
from denserl.errors import UserError
from denserl.models.armorm import ATTRIBUTES, armorm_name, our_name, stored_armorm_head
from denserl.models.export import export_armorm, export_classifier, export_grm
from denserl.models.heads import Head, make_head, stored_head
from denserl.models.importing import import_model
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.scorer import RewardScorer

NAMES = ("help", "verbosity", "style")
HEAD = Head("gated", layers=3, width=12, dropout=0.2, names=NAMES, temperature=5.0, gate_offset=4)
CHATS = [("Tell me about the bridge.", "A boat waits there."), ("Why is the bridge old?", "It is."), ("Rain.", "Yes, rain.")]


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """A gated model of random weights, in a folder."""
    sft = tiny_models.save_language_model(tmp_path_factory.mktemp("sft"))
    return tiny_models.save_gated_model(tmp_path_factory.mktemp("gated"), sft)


def scores(folder) -> list[float]:
    prompts, answers = zip(*(([{"role": "user", "content": prompt}], answer) for prompt, answer in CHATS))
    return RewardScorer([str(folder)])(prompts, answers).tolist()


def published_scores(folder) -> list[float]:
    """Scores as the public description says: ratings at the last token, the gate where the last assistant header begins.

    gate = logit_scale * softmax over the objectives of MLP(h) / temperature; score = sum over objectives of
    gate * (ratings @ reward_transform_matrix).
    """
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    trunk = LlamaModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    header = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    found = []
    for prompt, answer in CHATS:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        at = next(i for i in range(len(ids) - len(header), -1, -1) if ids[i : i + len(header)] == header)
        with torch.no_grad():
            states = trunk(torch.tensor([ids])).last_hidden_state[0]
        ratings, state = weights["regression_layer.weight"] @ states[-1], states[at]
        for layer in range(config["gating_n_hidden"] + 1):
            state = weights[f"gating.layers.{layer}.weight"] @ state + weights[f"gating.layers.{layer}.bias"]
            state = state.relu() if layer < config["gating_n_hidden"] else state
        gate = torch.softmax(state / config["gating_temperature"], -1) * weights["gating.logit_scale"][0]
        found.append((gate * (ratings @ weights["reward_transform_matrix"])).sum().item())
    return found


def test_written_it_is_scored_alike_by_its_public_description(gated, tmp_path):
    export_armorm(str(gated), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items() if not name.startswith("model.")}
    assert shapes == {
        "regression_layer.weight": (3, 32),
        "reward_transform_matrix": (3, 3),
        "gating.logit_scale": (1,),
        **{f"gating.layers.{i}.weight": shape for i, shape in enumerate([(12, 32), (12, 12), (12, 12), (3, 12)])},
        **{f"gating.layers.{i}.bias": (size,) for i, size in enumerate([12, 12, 12, 3])},
    }
    config = json.loads((tmp_path / "config.json").read_text())
    names = ("num_objectives", "gating_temperature", "gating_hidden_dim", "gating_n_hidden")
    assert [config[name] for name in names] == [3, 5.0, 12, 3]
    assert config["architectures"] == ["LlamaForRewardModelWithGating"] and "head" not in config["segment_reward"]
    assert published_scores(tmp_path) == pytest.approx(scores(gated), rel=1e-4, abs=1e-4)
    # It is none of ours as it stands, and says how it becomes one.
    with pytest.raises(UserError, match="ArmoRM's layout") as error:
        load_reward_model(str(tmp_path), "fp32")
    assert "--layout denserl" in error.value.fix


def test_read_back_it_is_the_same_to_the_bit(gated, tmp_path):
    for name in ("out", "back"):
        (tmp_path / name).mkdir()
    export_armorm(str(gated), tmp_path / "out")
    import_model(str(tmp_path / "out"), tmp_path / "back")
    assert stored_head(load_reward_model(str(tmp_path / "back"), "fp32").config, "back") == HEAD
    first, second = (load_file(folder / "model.safetensors") for folder in (gated, tmp_path / "back"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert scores(tmp_path / "back") == pytest.approx(scores(gated), abs=1e-5)


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda weights: weights.pop("gating.layers.1.bias"), "missing"),
        (lambda weights: weights.pop("reward_transform_matrix"), "missing"),
        (lambda weights: weights.update({"gating.layers.9.bias": torch.zeros(3)}), "unexpected"),
        (lambda weights: weights.update({"score.weight": torch.zeros(1, 32)}), "a second head"),
        (lambda weights: weights.update({"gating.logit_scale": torch.zeros(2)}), "of another shape"),
    ],
    ids=["missing", "no transform", "one too many", "another head", "another shape"],
)
def test_it_is_read_strictly(change, found, gated, tmp_path):
    for name in ("out", "back"):
        (tmp_path / name).mkdir()
    export_armorm(str(gated), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=found):
        import_model(str(tmp_path / "out"), tmp_path / "back")


def test_other_layouts_have_no_gate(gated, tmp_path):
    for export in (export_classifier, export_grm):
        with pytest.raises(UserError, match="by the prompt") as error:
            export(str(gated), tmp_path)
        assert "armorm" in error.value.fix


def test_other_heads_have_no_such_layout(tmp_path):
    sft = tiny_models.save_language_model(tmp_path / "sft")
    model = new_reward_model(str(sft), "fp32")
    model.save_pretrained(tmp_path / "rm")
    load_tokenizer(str(sft)).save_pretrained(tmp_path / "rm")
    with pytest.raises(UserError, match="no gate over attributes"):
        export_armorm(str(tmp_path / "rm"), tmp_path)


def test_attributes_are_named_by_the_config_or_as_the_published_model_orders_them():
    settings = {"num_objectives": 3, "gating_temperature": 10, "gating_hidden_dim": 8, "gating_n_hidden": 2}
    # Keys as other programs sort them: as texts.
    labels = {"num_objectives": 11, "id2label": {str(i): f"a{i}" for i in (0, 1, 10, *range(2, 10))}}
    assert stored_armorm_head(settings | labels, "rm", 4).names == tuple(f"a{i}" for i in range(11))
    with pytest.raises(UserError, match="no names"):
        stored_armorm_head(settings, "rm", 4)
    found = stored_armorm_head(settings | {"num_objectives": 19, "id2label": {"0": "LABEL_0"}}, "rm", 4)
    assert found == Head("gated", 2, 8, 0.2, names=ATTRIBUTES, temperature=10, gate_offset=4)
    assert len(set(ATTRIBUTES)) == 19 and ATTRIBUTES[4] == "helpsteer-verbosity"
    with pytest.raises(UserError, match="no num_objectives"):
        stored_armorm_head({}, "rm", 4)


def test_names_go_both_ways():
    ours = make_head(8, HEAD).state_dict()
    names = {f"score.{name}" for name in ours}
    assert {our_name(armorm_name(name)) for name in names} == names
    assert not any(armorm_name(name).startswith("score") for name in names)
    assert our_name("model.norm.weight") == armorm_name("model.norm.weight") == "model.norm.weight"


def test_a_template_under_which_its_readers_would_look_elsewhere_is_refused(gated, tmp_path):
    tokenizer = load_tokenizer(str(gated))
    assert tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)) == "<|im_end|>"
    for file in gated.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").write_text(template.replace("<|im_end|>' + '", "<|im_end|>' + ' so ' + '"))
    assert load_tokenizer(str(tmp_path)).get_chat_template() != tokenizer.get_chat_template()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="reads its gate 4 tokens before"):
        export_armorm(str(tmp_path), tmp_path / "out")
