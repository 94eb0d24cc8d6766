"""Reward heads: what they compute, how they are drawn, what a config says of them, and their names in GRM's layout."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from denserl.errors import UserError
from denserl.models.heads import (
    Fp32Linear,
    Head,
    grm_name,
    grm_settings,
    make_head,
    our_name,
    store_head,
    stored_grm_head,
    stored_head,
)

HIDDEN = 8
MLP = Head("mlp", layers=2, width=5, dropout=0.25)


def test_an_mlp_computes_what_grm_writes_down():
    """Spec grm, section 2: dropout, (Linear, ReLU) x layers, Linear; by hand, a unit at a time."""
    head = make_head(HIDDEN, MLP).eval()
    weights = {name: tensor.double().tolist() for name, tensor in head.state_dict().items()}
    assert {name: len(rows) for name, rows in weights.items()} == {
        **dict.fromkeys(["1.weight", "1.bias", "3.weight", "3.bias"], 5),
        **dict.fromkeys(["5.weight", "5.bias"], 1),
    }
    state = torch.linspace(-1, 1, HIDDEN)
    values = state.tolist()
    for layer in (1, 3, 5):
        rows = zip(weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        values = [sum(w * x for w, x in zip(row, values)) + bias for row, bias in rows]
        if layer < 5:
            values = [max(value, 0.0) for value in values]
    assert head(state).item() == pytest.approx(values[0], rel=1e-5)
    assert head(state.repeat(3, 2, 1)).shape == (3, 2, 1)


def test_the_default_is_the_head_of_stock_classifiers():
    head = make_head(HIDDEN, Head())
    assert isinstance(head, nn.Linear) and head.weight.shape == (1, HIDDEN) and head.bias is None
    assert make_head(HIDDEN, Head(bias=True)).bias.shape == (1,)


def test_dropout_is_on_in_training_alone():
    head, state = make_head(64, Head("mlp", width=64, dropout=0.5)), torch.ones(64)
    assert len({head.train()(state).item() for _ in range(8)}) > 1
    assert len({head.eval()(state).item() for _ in range(8)}) == 1


@pytest.mark.parametrize("kind", [Head(), Head(bias=True), Head("mlp", layers=2, width=256)], ids=["linear", "bias", "mlp"])
def test_a_head_of_bf16_weights_computes_in_fp32(kind):
    """Against fp64 with the same weights: the rounding of bf16, 0.003 of values of this size, is gone."""
    torch.manual_seed(0)
    hidden, states = 512, torch.randn(200, 512).bfloat16()
    head = make_head(hidden, kind, torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)
    assert {p.dtype for p in head.parameters()} == {torch.bfloat16}
    exact = copy.deepcopy(head).double()
    for layer in exact.modules():
        if isinstance(layer, Fp32Linear):
            layer.__class__ = nn.Linear
    expected, got = exact(states.double()), head(states)
    assert got.dtype == torch.float32 and expected.std() > 0.2
    error = ((got - expected).std() / expected.std()).item()
    rounded = ((expected.bfloat16() - expected).std() / expected.std()).item()
    assert error < 1e-6 and rounded > 1e-3
    # Gradients come in the weights' type.
    got.sum().backward()
    assert {p.grad.dtype for p in head.parameters()} == {torch.bfloat16}


def test_a_config_says_what_the_head_is():
    config = LlamaConfig(segment_reward={"entropy_threshold": 1.5})
    assert stored_head(config, "rm") == Head()
    store_head(config, MLP)
    assert config.segment_reward == {
        "entropy_threshold": 1.5,
        "head": {"kind": "mlp", "layers": 2, "width": 5, "dropout": 0.25, "bias": False},
    }
    assert stored_head(LlamaConfig.from_dict(config.to_dict()), "rm") == MLP
    store_head(config, Head())
    assert config.segment_reward == {"entropy_threshold": 1.5}
    plain = LlamaConfig()
    store_head(plain, Head())
    assert "segment_reward" not in plain.to_dict()


@pytest.mark.parametrize(
    "head, found",
    [
        ({"kind": "mpl"}, "'mpl' for the head's kind; expected linear or mlp"),
        ({"kind": ["mlp"]}, "for the head's kind"),
        ({"layers": 0}, "0 for the head's layers; expected a whole number from 1 to 64"),
        ({"layers": 10**9}, "for the head's layers"),
        ({"layers": True}, "for the head's layers"),
        ({"width": 10**12}, "for the head's width"),
        ({"width": 2.0}, "for the head's width"),
        ({"dropout": 1.0}, "1.0 for the head's dropout; expected a number from 0 to below 1"),
        ({"dropout": float("nan")}, "for the head's dropout"),
        ({"bias": 1}, "1 for the head's bias; expected true or false"),
        ({"kind": "mlp", "depth": 2}, "for head; expected an object with kind, layers"),
        (["mlp"], "for head; expected an object"),
        ({"kind": "attributes"}, "() for the head's names; expected different texts, at least one"),
        ({"kind": "attributes", "names": ["a", "a"], "weights": [1, 1]}, "for the head's names"),
        ({"kind": "attributes", "names": "ab", "weights": [1, 1]}, "for the head's names"),
        (
            {"kind": "attributes", "names": ["a", "b"], "weights": [1]},
            "(1,) for the head's weights; expected a finite number for",
        ),
        ({"kind": "attributes", "names": ["a"], "weights": [float("nan")]}, "for the head's weights"),
        ({"kind": "attributes", "names": ["a"], "weights": [1], "bias": True}, "expected an object with kind, names, weights"),
    ],
)
def test_a_config_with_another_type_of_value_is_refused(head, found):
    with pytest.raises(UserError) as error:
        stored_head(LlamaConfig(segment_reward={"head": head}), "some/rm")
    assert found in error.value.found and "some/rm/config.json" in error.value.found


NAMES = {
    "v_head.summary.0.weight": "score.1.weight",
    "v_head.summary.0.bias": "score.1.bias",
    "v_head.summary.2.weight": "score.3.weight",
    "v_head.summary.12.bias": "score.13.bias",
    "v_head.summary.weight": "score.weight",
    "v_head.summary.bias": "score.bias",
}


def test_names_in_the_published_layout():
    assert {theirs: our_name(theirs) for theirs in NAMES} == NAMES
    assert {grm_name(ours): ours for ours in NAMES.values()} == NAMES
    for other in ("model.norm.weight", "v_head.summary.0.weight.x", "v_head.other.weight", "my.score.weight", "score.0.gamma"):
        assert our_name(other) == grm_name(other) == other


def test_settings_of_the_published_layout():
    config = LlamaConfig(vhead_layer_type="mlp", vhead_num_neurons=7, vhead_num_layers=2)
    assert stored_grm_head(config, "grm") == Head("mlp", layers=2, width=7)
    assert grm_settings(Head("mlp", layers=2, width=7)) == {
        "vhead_layer_type": "mlp",
        "vhead_num_neurons": 7,
        "vhead_num_layers": 2,
    }
    assert stored_grm_head(LlamaConfig(vhead_layer_type="linear"), "grm") == Head("linear", bias=True)
    with pytest.raises(UserError, match="no vhead_layer_type"):
        stored_grm_head(LlamaConfig(), "grm")
    with pytest.raises(UserError, match="'cubic' for the head's kind"):
        stored_grm_head(LlamaConfig(vhead_layer_type="cubic"), "grm")


def test_an_mlp_is_drawn_as_torch_draws_linear_layers():
    """Uniform within 1 / sqrt(inputs): nothing beyond, and the spread of such a distribution, 1 / sqrt(3) of the bound."""
    torch.manual_seed(0)
    head = make_head(64, Head("mlp", width=256))
    for layer, inputs in ((head[1], 64), (head[3], 256)):
        bound = 1 / math.sqrt(inputs)
        assert layer.weight.abs().max().item() <= bound
        # 16384 and 256 draws: the spread of a uniform sample of 256 has a standard error of 3 %.
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.12)
