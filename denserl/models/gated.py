"""The gated head: attributes of a response, whose weights in the score are read off the prompt (ArmoRM, arXiv 2406.12845).

The score is put together in scoring.py, which knows where each row's prompt ends.
"""

import torch
from torch import Tensor, nn

from denserl.models.fp32 import Fp32Linear


class Gate(nn.Module):
    """Weights of K attributes in prompts, (..., hidden) -> (..., K) fp32: scale x softmax over the K of MLP(h) / temperature.

    The MLP is (Linear, ReLU, Dropout) x layers, Linear; the scale is learned.
    """

    def __init__(self, hidden: int, attributes: int, layers: int, width: int, dropout: float, temperature: float):
        super().__init__()
        widths = [hidden, *[width] * layers, attributes]
        self.layers = nn.ModuleList(Fp32Linear(*sizes) for sizes in zip(widths, widths[1:]))
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.ones(1))
        self.temperature = temperature

    def forward(self, states: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            states = self.dropout(layer(states).relu())
        return (last(states) / self.temperature).softmax(-1) * self.scale.float()


class GatedHead(Fp32Linear):
    """The ratings r of K attributes, (..., hidden) -> (..., K) fp32, as a stock classifier of K labels gives them.

    The score of a token is gate . (r T) = c . r, where T (K, K) is the `transform` of the attributes and c = T gate, the
    coefficients that `gate` says of a prompt (see `coefficients`). T is no parameter.
    """

    def __init__(self, hidden: int, gate: Gate, gate_offset: int):
        attributes = gate.layers[-1].out_features
        super().__init__(hidden, attributes, bias=False)
        self.register_buffer("transform", torch.eye(attributes))
        self.gate, self.gate_offset = gate, gate_offset

    def read_at(self, prompt_lengths: Tensor) -> Tensor:
        """The place of the prompt's token at which the gate is read, of prompts of so many tokens: (B,) long.

        `gate_offset` tokens before the last one; the first one of a prompt that is shorter.
        """
        return (prompt_lengths - 1 - self.gate_offset).clamp(min=0)

    def coefficients(self, states: Tensor) -> Tensor:
        """c of prompts, (B, K) fp32, by the hidden states at which their gates are read, (B, hidden)."""
        return self.gate(states) @ self.transform.float().T


def draw_gate(gate: Gate, seed: int) -> None:
    """Draw its layers anew, as torch draws them, the same for the same seed, on the host; the scale is 1."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for layer in gate.layers:
            layer.reset_parameters()
        gate.scale.fill_(1.0)


def scale_of(margins: Tensor) -> float:
    """The scale at which margins of unit scale, one a pair, spread by 1: 1 / std (biased).

    Scores of attributes in [0, 1] differ by hundredths: a scale of 1 would begin where the Bradley-Terry loss is flat.

    Raises:
        ValueError: margins that are all the same.
    """
    spread = margins.double().std(correction=0).item()
    if not spread > 0:
        raise ValueError("all margins are the same")
    return 1 / spread
