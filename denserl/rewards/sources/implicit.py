"""The implicit reward of a language model that was trained on preferences or outcomes: its log-ratio to where it started."""

from collections.abc import Callable

from torch import Tensor

from denserl.data.batching import ResponseBatch
from denserl.data.responses import Responses
from denserl.rewards.sources.base import Scores, increments

# Log-probability of each response token of a batch at temperature 1: (B, T) fp32.
LogProbs = Callable[[ResponseBatch], Tensor]


class ImplicitSource:
    """beta (log phi(y_t | y_<t) - log ref(y_t | y_<t)) at every token (Rafailov et al., arXiv 2305.18290 and 2404.12358).

    The sum over a response is DPO's reward of it, and that over its first tokens the value of having said them, so that a
    segment earns the sum over its tokens; one token's ratio says nothing of its segment.

    Args:
        model: phi. reference: the model that its training started from, by whose log-probabilities it was trained.
        beta: that of its training.
    """

    def __init__(self, model: LogProbs, reference: LogProbs, beta: float):
        self.model, self.reference, self.beta = model, reference, beta

    def __call__(self, responses: Responses, batch: ResponseBatch) -> Scores:
        ratios = self.model(batch) - self.reference(batch)
        return increments(self.beta * ratios, batch.response_mask, responses.ended)
