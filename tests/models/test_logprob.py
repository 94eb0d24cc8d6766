"""Log-probabilities and entropies of a head in parts against log_softmax over all its logits in fp64."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from denserl import distributed
from denserl.models import logprob
from denserl.models.logprob import chunked_logprob_entropy

POSITIONS, WIDTH, VOCABULARY = 23, 12, 97
# Values and gradients of size 1 to 10, from sums of at most 97 fp32 products.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ADJUSTMENTS = {
    "none": lambda logits: logits,
    "scale": lambda logits: logits * 0.4,
    "soft cap": lambda logits: torch.tanh(logits / 3.0) * 3.0,
}


class Adapted(nn.Linear):
    """A head of another class, as adapters make: its forward is more than a product with its weight."""

    def forward(self, x):
        return super().forward(x) + 0.5 * x @ self.weight.T


def make_head(kind: str) -> nn.Linear:
    torch.manual_seed(1)
    head = (Adapted if kind == "adapted" else nn.Linear)(WIDTH, VOCABULARY, bias=kind == "biased")
    with torch.no_grad():
        head.weight.mul_(6)  # entropies well below that of a uniform choice
    if kind == "hooked":
        head.register_forward_hook(lambda module, args, output: None)
    return head


def make_inputs(positions: int = POSITIONS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(VOCABULARY, (positions,), generator=generator)
    tokens[:2] = torch.tensor([0, VOCABULARY - 1])[:positions]
    return torch.randn(positions, WIDTH, generator=generator), tokens


def plain(hidden, tokens, head, adjust, temperature):
    """The definition over all logits at once."""
    logits = adjust(head(hidden))
    own = torch.log_softmax(logits, -1)
    chosen = torch.log_softmax(logits / temperature, -1)[torch.arange(len(tokens)), tokens]
    return chosen, -(own.exp() * own).sum(-1)


@pytest.fixture(params=[1, 5, 48, VOCABULARY], ids="{} columns".format)
def parts(request, monkeypatch):
    """Blocks of so many columns of the vocabulary, or chunks of so many rows."""
    monkeypatch.setattr(logprob, "LOGITS_PER_BLOCK", POSITIONS * request.param)
    monkeypatch.setattr(logprob, "LOGITS_PER_CHUNK", VOCABULARY * request.param)


@pytest.mark.parametrize("kind", ["bare", "biased", "hooked", "adapted"])
@pytest.mark.parametrize("adjust", ADJUSTMENTS.values(), ids=ADJUSTMENTS)
@pytest.mark.parametrize(("temperature", "weights"), [(1.0, (1, 1)), (0.7, (1, 0)), (0.7, (0, 1))])
def test_values_and_gradients_are_those_of_the_definition(parts, kind, adjust, temperature, weights):
    """weights: whether log-probabilities and entropies take part in the loss."""
    head, (hidden, tokens) = make_head(kind), make_inputs()
    whole, wide = copy.deepcopy(head).double(), hidden.double().requires_grad_()
    hidden.requires_grad_()
    upstream = torch.randn(2, POSITIONS, generator=torch.Generator().manual_seed(3)) * torch.tensor(weights)[:, None]
    got, entropy = chunked_logprob_entropy(hidden, tokens, head, adjust, temperature, True)
    want, wanted_entropy = plain(wide, tokens, whole, adjust, temperature)
    assert got.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, **CLOSE)
    torch.testing.assert_close(entropy.double(), wanted_entropy, **CLOSE)
    assert wanted_entropy.std() > 0.05

    sum((x * u).sum() for x, u, weight in zip((got, entropy), upstream, weights) if weight).backward()
    sum((x * u).sum() for x, u, weight in zip((want, wanted_entropy), upstream, weights) if weight).backward()
    for own, expected in zip((hidden, *head.parameters()), (wide, *whole.parameters()), strict=True):
        assert expected.grad.abs().max() > 0.01
        # Terms of entropies are multiplied by logarithms of up to 20.
        torch.testing.assert_close(own.grad.double(), expected.grad, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("kind", ["bare", "hooked"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_without_entropies_and_without_gradient(parts, kind, temperature):
    head, (hidden, tokens) = make_head(kind), make_inputs()
    adjust = ADJUSTMENTS["soft cap"]
    both = chunked_logprob_entropy(hidden, tokens, head, adjust, temperature, True)
    with torch.no_grad():
        alone = chunked_logprob_entropy(hidden, tokens, head, adjust, temperature, False)
    assert alone[1] is None and not alone[0].requires_grad
    torch.testing.assert_close(alone[0], both[0].detach(), **CLOSE)


@pytest.mark.parametrize("kind", ["bare", "hooked"])
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_of_the_two_is_frozen(parts, kind, frozen):
    head, (hidden, tokens) = make_head(kind), make_inputs()
    head.weight.requires_grad_(frozen != "weight")
    hidden.requires_grad_(frozen != "hidden")
    whole, wide = copy.deepcopy(head).double(), hidden.detach().double().requires_grad_(frozen != "hidden")
    chunked_logprob_entropy(hidden, tokens, head, ADJUSTMENTS["none"], 1.0, False)[0].sum().backward()
    plain(wide, tokens, whole, ADJUSTMENTS["none"], 1.0)[0].sum().backward()
    for own, expected in ((hidden, wide), (head.weight, whole.weight)):
        assert (own.grad is None) == (expected.grad is None)
        if expected.grad is not None:
            torch.testing.assert_close(own.grad.double(), expected.grad, **CLOSE)


@pytest.mark.parametrize("kind, temperature", [("biased", 0.7), ("hooked", 1.0)])
@pytest.mark.parametrize("ruled_out", [slice(0, 60), slice(40, VOCABULARY), slice(1, VOCABULARY - 1)])
def test_tokens_that_are_ruled_out_have_no_part_in_entropy_and_gradient(parts, kind, ruled_out, temperature):
    """Against a loop over the tokens that are left, whose logits alone a smaller head gives."""
    head, (hidden, _) = make_head("biased"), make_inputs()
    if kind == "hooked":
        head.register_forward_hook(lambda module, args, output: None)
    with torch.no_grad():
        head.bias[ruled_out] = -torch.inf
    left = [token for token in range(VOCABULARY) if token not in range(*ruled_out.indices(VOCABULARY))]
    tokens = torch.tensor(left).repeat(POSITIONS)[:POSITIONS]
    few, wide = nn.Linear(WIDTH, len(left)).double(), hidden.double().requires_grad_()
    with torch.no_grad():
        few.weight.copy_(head.weight[left])
        few.bias.copy_(head.bias[left])
    hidden.requires_grad_()
    got, entropy = chunked_logprob_entropy(hidden, tokens, head, ADJUSTMENTS["none"], temperature, True)
    want, entropies = [], []
    for row, token in enumerate(tokens.tolist()):
        logits = few(wide[row])
        probabilities = [(logit - logits.logsumexp(0)).exp() for logit in logits]
        entropies.append(-sum(p * p.log() for p in probabilities))
        torch.testing.assert_close(entropy[row].item(), entropies[-1].item(), **CLOSE)
        scaled = logits / temperature
        want.append(scaled[left.index(token)] - scaled.logsumexp(0))
    torch.testing.assert_close(got.double(), torch.stack(want), **CLOSE)
    (got + entropy).sum().backward()
    (torch.stack(want) + torch.stack(entropies)).sum().backward()
    torch.testing.assert_close(hidden.grad.double(), wide.grad, **CLOSE)
    for own, expected in zip(head.parameters(), few.parameters(), strict=True):
        torch.testing.assert_close(own.grad[left].double(), expected.grad, **CLOSE)
        assert not own.grad[ruled_out].any()


def test_a_weight_that_is_the_embedding_too_gets_both_gradients():
    head, (_, tokens) = make_head("bare"), make_inputs()
    whole = copy.deepcopy(head).double()

    def loss(head, of):
        return of(nn.functional.embedding(tokens.roll(1), head.weight), tokens, head, ADJUSTMENTS["none"], 1.0)[0].sum()

    loss(head, lambda *args: chunked_logprob_entropy(*args, with_entropy=False)).backward()
    loss(whole, plain).backward()
    torch.testing.assert_close(head.weight.grad.double(), whole.weight.grad, **CLOSE)


def test_the_gradient_of_half_precision_states_is_added_up_in_fp32(monkeypatch):
    """Over blocks of one token each: what is left is one rounding of each token's share; sums in bf16 are off by far more."""
    monkeypatch.setattr(logprob, "LOGITS_PER_BLOCK", POSITIONS)
    head, (hidden, tokens) = make_head("bare").bfloat16(), make_inputs()
    hidden = hidden.bfloat16().requires_grad_()
    chunked_logprob_entropy(hidden, tokens, head, ADJUSTMENTS["none"], 1.0, False)[0].sum().backward()
    # Logits rounded as the head gives them, so that what is compared is the sum alone.
    logits = (hidden.detach() @ head.weight.T).double()
    by_logits = nn.functional.one_hot(tokens, VOCABULARY).double() - logits.softmax(-1)
    exact = by_logits @ head.weight.double()
    in_halves = torch.zeros_like(hidden)
    for token in range(VOCABULARY):
        in_halves += by_logits[:, token, None].bfloat16() @ head.weight[token, None]

    def off(found: torch.Tensor) -> float:
        return ((found.double() - exact).norm() / exact.norm()).item()

    assert off(hidden.grad) < 2.5e-3 < off(in_halves.detach())


@pytest.mark.parametrize("kind", ["bare", "biased", "hooked"])
def test_a_half_precision_head_is_read_in_fp32(parts, kind):
    head, (hidden, tokens) = make_head(kind).bfloat16(), make_inputs()
    hidden = hidden.bfloat16().requires_grad_()
    whole, wide = copy.deepcopy(head).double(), hidden.detach().double().requires_grad_()
    got, entropy = chunked_logprob_entropy(hidden, tokens, head, ADJUSTMENTS["none"], 1.0, True)
    want, wanted_entropy = plain(wide, tokens, whole, ADJUSTMENTS["none"], 1.0)
    assert got.dtype == entropy.dtype == torch.float32
    # Logits up to 16 carry one rounding to 8 bits, at most 1/32.
    torch.testing.assert_close(got.double(), want, rtol=0, atol=0.07)
    torch.testing.assert_close(entropy.double(), wanted_entropy, rtol=0, atol=0.07)
    got.sum().backward()
    want.sum().backward()
    for own, expected in zip((hidden, *head.parameters()), (wide, *whole.parameters()), strict=True):
        assert own.grad.dtype == torch.bfloat16
        torch.testing.assert_close(own.grad.double(), expected.grad, rtol=0.05, atol=0.05 * expected.grad.abs().max().item())


@pytest.mark.parametrize("kind", ["bare", "hooked"])
def test_twice_the_same(parts, kind):
    def once():
        head, (hidden, tokens) = make_head(kind), make_inputs()
        hidden.requires_grad_()
        values = chunked_logprob_entropy(hidden, tokens, head, ADJUSTMENTS["soft cap"], 0.7, True)
        sum(values).sum().backward()
        return *values, hidden.grad, head.weight.grad

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize("kind", ["bare", "hooked"])
def test_no_positions(kind):
    head, (hidden, tokens) = make_head(kind), make_inputs(0)
    hidden.requires_grad_()
    got, entropy = chunked_logprob_entropy(hidden, tokens, head, ADJUSTMENTS["none"], 1.0, True)
    assert got.shape == entropy.shape == (0,)
    got.sum().backward()
    assert hidden.grad.shape == (0, WIDTH) and (head.weight.grad == 0).all()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("kind", ["bare", "hooked"])
@pytest.mark.parametrize("positions", [50, 400])
def test_never_the_logits_of_all_positions(kind, positions, monkeypatch):
    limit = 4000
    monkeypatch.setattr(logprob, "LOGITS_PER_BLOCK", limit)
    monkeypatch.setattr(logprob, "LOGITS_PER_CHUNK", limit)
    head, (hidden, tokens) = make_head(kind), make_inputs(positions)
    hidden.requires_grad_()
    with Largest() as largest:
        chunked_logprob_entropy(hidden, tokens, head, ADJUSTMENTS["soft cap"], 0.7, True)[0].sum().backward()
    with Largest() as of_both:
        sum(chunked_logprob_entropy(hidden, tokens, head, ADJUSTMENTS["soft cap"], 0.7, True)).sum().backward()
    assert of_both.elements == largest.elements
    assert limit / 2 < largest.elements <= max(limit, positions * WIDTH) < positions * VOCABULARY


def test_a_gathered_head_is_called_as_often_as_on_the_rank_with_most_positions(monkeypatch):
    calls, asked = [], []
    head, (hidden, tokens) = make_head("bare"), make_inputs(2)
    head.weight.ds_id = 0  # as DeepSpeed marks the weights that ZeRO-3 keeps in parts
    head.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    monkeypatch.setattr(distributed, "all_max", lambda count: asked.append(count) or 5)
    got, entropy = chunked_logprob_entropy(hidden, tokens, head, ADJUSTMENTS["none"], 1.0, True)
    assert asked == [1] and sorted(calls) == [0, 0, 0, 1, 1]
    want, wanted_entropy = plain(hidden.double(), tokens, copy.deepcopy(head).double(), ADJUSTMENTS["none"], 1.0)
    torch.testing.assert_close(got.double(), want, **CLOSE)
    torch.testing.assert_close(entropy.double(), wanted_entropy, **CLOSE)
