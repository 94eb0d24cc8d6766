"""Linear layers that compute in fp32."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Fp32Linear(nn.Linear):
    """A linear layer that computes in fp32, whatever the type of its weights and of what it reads.

    In bf16 the result would be rounded to 8 bits: a score of 2 by 0.004, far more than a token's KL penalty.
    """

    def forward(self, input: Tensor) -> Tensor:
        return linear(input.float(), self.weight.float(), None if self.bias is None else self.bias.float())

    @classmethod
    def like(cls, layer: nn.Linear) -> "Fp32Linear":
        """A layer with the very parameters of another."""
        with torch.device("meta"):
            own = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        own.weight, own.bias = layer.weight, layer.bias
        return own
