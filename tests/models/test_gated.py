"""The gated head: its numbers by hand, and that the gate is of the prompt alone."""

import pytest
import tiny_models
import torch

from denserl.data.batching import pad_responses
from denserl.data.responses import of_ids
from denserl.models.gated import Gate, GatedHead, draw_gate, scale_of
from denserl.models.heads import Head, make_head
from denserl.models.packing import is_packed
from denserl.models.scoring import read_rewards, token_rewards
from denserl.rewards.sources.reward_model import PrefixDifferences, RewardModelSource

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
    head = GatedHead(3, gate, gate_offset=0).eval()
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
    head = GatedHead(3, gate, gate_offset=4)
    assert head.read_at(torch.tensor([9, 5, 3])).tolist() == [4, 0, 0]


PROMPTS = tiny_models.random_rows([7, 5, 9])
ANSWERS = tiny_models.random_rows([6, 3, 4, 8], seed=1)
# Two answers to the first prompt.
ROWS = [(PROMPTS[0], ANSWERS[0]), (PROMPTS[0], ANSWERS[1]), (PROMPTS[1], ANSWERS[2]), (PROMPTS[2], ANSWERS[3])]


def gated_model(prepare=lambda model: model, offset: int = 2):
    model = prepare(tiny_models.classifier("llama"))
    head = Head("gated", layers=2, width=6, dropout=0.2, names=("a", "b", "c"), temperature=2.0, gate_offset=offset)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model.score = make_head(32, head)
        model.score.transform.copy_(TRANSFORM)
        model.score.gate.scale.fill_(4.0)
    return model.eval()


def read(model, rows):
    batch = pad_responses(*zip(*rows), pad_id=0)
    with torch.no_grad():
        return read_rewards(model, *batch[:3], logprob_rows=0, shared=batch.shared)


@pytest.mark.parametrize("prepare", [lambda model: model, tiny_models.probed], ids=["padded", "packed"])
def test_every_token_is_scored_by_the_gate_of_its_prompt(prepare):
    """Against the stock model's hidden states of a row alone: c . r at every token, c read two before the prompt's end."""
    model = gated_model(prepare)
    assert is_packed(model) == (prepare is tiny_models.probed)
    found, plain = read(model, ROWS), gated_model()
    for row, (prompt, answer) in enumerate(ROWS):
        ids = [*prompt, *answer]
        with torch.no_grad():
            states = plain.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            gate = plain.score.gate(states[len(prompt) - 3])
            ratings = states @ plain.score.weight.T
        assert gate.sum().item() == pytest.approx(4.0, rel=1e-5)
        expected = (gate * (ratings @ TRANSFORM)).sum(-1)
        torch.testing.assert_close(found.scores[row, : len(ids)], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.outputs[row, : len(ids), 1:], ratings, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.coefficients[row], TRANSFORM @ gate, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.outputs[..., 0], found.scores)


@pytest.mark.parametrize("prepare", [lambda model: model, tiny_models.probed], ids=["padded", "packed"])
def test_another_response_leaves_the_gate_as_it_was(prepare):
    model = gated_model(prepare)
    before = read(model, ROWS)
    other = [(prompt, tiny_models.random_rows([len(answer)], seed=9)[0]) for prompt, answer in ROWS]
    after = read(model, other)
    assert not torch.equal(before.scores, after.scores)
    assert torch.equal(before.coefficients, after.coefficients)
    # Two answers to one prompt have one gate, whatever stands beside them.
    assert torch.equal(before.coefficients[0], before.coefficients[1])
    assert not torch.equal(before.coefficients[0], before.coefficients[2])


def test_the_gate_is_run_once_for_each_prompt():
    model, seen = gated_model(tiny_models.probed), []
    model.score.gate.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape)))
    read(model, ROWS)
    assert seen == [(3, 32)]


def test_without_the_ends_of_prompts_there_is_no_score():
    ids = torch.tensor([ROWS[0][0]])
    with pytest.raises(ValueError, match="where prompts end"):
        token_rewards(gated_model(), ids, torch.ones_like(ids))


def test_prefix_differences_read_the_gate_where_responses_begin():
    """Their sum is R(y) - R(prompt), both by the gate of the whole prompt."""
    model = gated_model(tiny_models.probed)
    responses = of_ids(*zip(*ROWS), ended=[True] * len(ROWS))
    batch = responses.padded(0, "cpu")
    with torch.no_grad():
        found = PrefixDifferences(RewardModelSource([model]))(responses, batch)
    scores = read(model, ROWS).scores
    for row, (prompt, answer) in enumerate(ROWS):
        expected = scores[row, len(prompt) + len(answer) - 1] - scores[row, len(prompt) - 1]
        total = torch.where(batch.response_mask[row], found.values[row], 0.0).sum()
        assert total.item() == pytest.approx(expected.item(), abs=1e-5)


def accuracy(margins) -> float:
    """Ties count half."""
    return ((margins > 1e-6).double() + 0.5 * (margins.abs() <= 1e-6)).mean().item()


def test_two_kinds_of_prompts_that_want_opposite_attributes():
    """Of each pair the prompt's kind says which of two attributes decides, and one is 1 less the other.

    Equal weights see no difference; a gate that is trained on such pairs tells them apart on others.
    """
    generator = torch.Generator().manual_seed(0)

    def pairs(count: int):
        kind = torch.randint(2, (count,), generator=generator)
        states = 0.5 * torch.randn(count, 8, generator=generator) + (2.0 * kind - 1.0)[:, None]
        chosen, rejected = (torch.rand(2, count, generator=generator)).sort(0, descending=True).values
        wanted = torch.stack([chosen - rejected, rejected - chosen], 1)
        return states, torch.where(kind[:, None] == 0, wanted, wanted.flip(1))

    gate = Gate(8, 2, layers=3, width=32, dropout=0.2, temperature=10.0)
    draw_gate(gate, seed=0)
    states, differences = pairs(2000)
    with torch.no_grad():
        gate.scale.fill_(scale_of((gate.eval()(states) * differences).sum(1)))
    optimizer = torch.optim.AdamW(gate.parameters(), lr=3e-3, weight_decay=0.0)
    gate.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(80):
            rows = slice(step * 25 % 2000, step * 25 % 2000 + 250)
            loss = -torch.nn.functional.logsigmoid((gate(states[rows]) * differences[rows]).sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    states, differences = pairs(1000)
    with torch.no_grad():
        assert accuracy((gate.eval()(states) * differences).sum(1)) > 0.9
    assert accuracy(differences.mean(1)) == 0.5
