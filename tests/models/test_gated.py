"""The gated head: its numbers by hand, and that the gate is of the prompt alone."""

import pytest
import torch

from denserl.models.gated import Gate, GatedHead, draw_gate, scale_of

REWARDS = torch.tensor(
    [
        *((0.62, 0.30, 0.10), (0.55, 0.50, 0.35), (0.71, 0.45, 0.30), (0.80, 0.20, 0.60)),
        *((0.66, 0.75, 0.55), (0.90, 0.35, 0.80), (0.58, 0.60, 0.45), (0.77, 0.40, 0.70)),
    ]
)
TRANSFORM = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.4, 0.0, 0.0]])


def head_of_logits(logits, temperature: float = 10.0) -> GatedHead:
    """A head whose gate has these logits for every prompt, and whose attributes are the first hidden numbers."""
    gate = Gate(3, 3, layers=1, width=2, dropout=0.2, temperature=temperature)
    head = GatedHead(3, 3, gate, gate_offset=0).eval()
    with torch.no_grad():
        for parameter in (*gate.layers.parameters(),):
            parameter.zero_()
        gate.layers[-1].bias.copy_(torch.tensor(logits))
        head.weight.copy_(torch.eye(3))
        head.transform.copy_(TRANSFORM)
    return head


def test_the_published_way_by_numbers():
    """A softmax over attributes, at its temperature; c = T gate; score = c . r, and the loss of the first over the second."""
    head, prompts = head_of_logits([1.0, 2.0, 0.5]), torch.zeros(1, 3)
    assert head.gate(prompts)[0].tolist() == pytest.approx([0.32718227, 0.36159233, 0.31122540], abs=1e-7)
    sharp = head_of_logits([1.0, 2.0, 0.5], temperature=1.0)
    assert sharp.gate(prompts)[0].tolist() == pytest.approx([0.23122390, 0.62853172, 0.14024438], abs=1e-7)
    coefficients = head.coefficients(prompts)
    assert coefficients[0].tolist() == pytest.approx([0.32718227, 0.36159233, -0.13087291], abs=1e-7)
    scores = (head(REWARDS) * coefficients).sum(-1)
    assert scores[:2].tolist() == pytest.approx([0.29824341, 0.31494089], abs=1e-7)
    assert -torch.nn.functional.logsigmoid(scores[0] - scores[1]).item() == pytest.approx(0.70153077, abs=1e-7)
    # The same by the other side of T: gate . (r T).
    assert (head.gate(prompts) * (head(REWARDS) @ TRANSFORM)).sum(-1).tolist() == pytest.approx(scores.tolist(), abs=1e-7)
    margins = scores[0::2] - scores[1::2]
    assert scale_of(margins) == pytest.approx(20.799212, rel=1e-5)
    with torch.no_grad():
        head.gate.scale.fill_(scale_of(margins))
    assert head.gate(prompts).sum().item() == pytest.approx(20.799212, rel=1e-5)
    with pytest.raises(ValueError, match="the same"):
        scale_of(torch.ones(4))


def test_a_gate_is_an_mlp_with_dropout_after_each_hidden_layer():
    """By hand, a unit at a time; in training two passes differ."""
    gate = Gate(4, 3, layers=2, width=64, dropout=0.5, temperature=2.0)
    draw_gate(gate, seed=1)
    state = torch.linspace(-1, 1, 4)
    values, weights = state.tolist(), {name: tensor.tolist() for name, tensor in gate.state_dict().items()}
    for layer in range(3):
        rows = zip(weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"])
        values = [sum(w * x for w, x in zip(row, values)) + bias for row, bias in rows]
        if layer < 2:
            values = [max(value, 0.0) for value in values]
    powers = [2.718281828459045 ** (value / 2.0) for value in values]
    assert gate.eval()(state).tolist() == pytest.approx([power / sum(powers) for power in powers], rel=1e-5)
    gate.train()
    assert not torch.equal(gate(state), gate(state))
    again = Gate(4, 3, layers=2, width=64, dropout=0.5, temperature=2.0)
    draw_gate(again, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(gate.parameters(), again.parameters(), strict=True))


def test_the_gate_is_read_so_many_tokens_before_the_end_of_the_prompt():
    gate = Gate(3, 3, layers=1, width=2, dropout=0.2, temperature=10.0)
    head = GatedHead(3, 3, gate, gate_offset=4)
    assert head.read_at(torch.tensor([9, 5, 3])).tolist() == [4, 0, 0]
