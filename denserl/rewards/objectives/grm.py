"""The text-generation term of generalisable reward models (arXiv 2406.10216): the trunk remains a language model."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import logsigmoid

from denserl.rewards.objectives.base import Groups, Objective
from denserl.rewards.objectives.losses import full, wins

Regularizer = Literal["sft", "sft_plain", "dpo_noref", "dpo"]
# Log-probabilities of a pair, and how many of them each regulariser reads.
LOGPS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
REGULARIZERS = {"sft": 1, "sft_plain": 1, "dpo_noref": 2, "dpo": 4}


def grm_regularizer(
    kind: Regularizer,
    chosen_logps: Tensor,
    rejected_logps: Tensor | None = None,
    ref_chosen_logps: Tensor | None = None,
    ref_rejected_logps: Tensor | None = None,
    beta: float = 0.1,
) -> Tensor:
    """The text-generation term of a generalisable reward model, averaged over pairs (arXiv 2406.10216, section 3).

    Args as those of `grm_terms`. Returns: 0-d fp32.
    """
    return grm_terms(kind, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta).mean()


def grm_terms(
    kind: Regularizer,
    chosen_logps: Tensor,
    rejected_logps: Tensor | None = None,
    ref_chosen_logps: Tensor | None = None,
    ref_rejected_logps: Tensor | None = None,
    beta: float = 0.1,
) -> Tensor:
    """The text-generation term of each pair (arXiv 2406.10216, section 3).

    With l the log-probability of a response: sft -log sigmoid(beta l_c); sft_plain -l_c; dpo_noref
    -log sigmoid(beta (l_c - l_r)); dpo the same of l - l_ref in place of l.

    Args:
        kind: one of REGULARIZERS.
        chosen_logps, rejected_logps: (B,) log-probabilities of the responses, summed over their tokens.
        ref_chosen_logps, ref_rejected_logps: (B,) the same under the frozen reference model.
        beta: > 0, scale inside the log-sigmoid.

    Returns: (B,) fp32 (fp64 of fp64 log-probabilities).

    Raises:
        ValueError: unknown `kind`, or log-probabilities that it needs are missing.
    """
    if kind not in REGULARIZERS:
        raise ValueError(f"unknown regulariser {kind!r}; known: {', '.join(REGULARIZERS)}")
    given = dict(zip(LOGPS, (chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)))
    needed = LOGPS[: REGULARIZERS[kind]]
    missing = [name for name in needed if given[name] is None]
    if missing:
        raise ValueError(f"the regulariser {kind!r} needs {', '.join(missing)}")
    chosen, rejected, ref_chosen, ref_rejected = (full(given[name]) if name in needed else 0.0 for name in LOGPS)
    if kind == "sft_plain":
        return -chosen
    return -logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


@dataclass(frozen=True)
class TextRegularizer(Objective):
    """The trunk remains a language model: `grm_terms`. logp: each log-probability as a sum, or as the mean over tokens."""

    weight: Annotated[float, Ge(0)] = 0.01
    kind: Regularizer = "sft"
    beta: Annotated[float, Gt(0)] = 0.1
    logp: Literal["sum", "mean"] = "sum"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]  # it depends on the kind, and nobody writes it
        return {1: ("first_logps",), 2: ("logps",), 4: ("logps", "ref_logps")}[REGULARIZERS[self.kind]]

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        sums, means = groups.logps.unbind(1), groups.per_token(groups.logps).unbind(1)
        logps, reference = (means if self.logp == "mean" else sums), []
        if "ref_logps" in self.reads:
            own = groups.per_token(groups.ref_logps) if self.logp == "mean" else groups.ref_logps
            reference = own.unbind(1)
        # Of one side alone there is none of the rejected.
        given: dict[str, Any] = dict(zip(LOGPS, (*logps, *[None] * (2 - len(logps)), *reference)))
        terms = grm_terms(self.kind, **given, beta=self.beta)
        metrics = {"reg_loss": terms, "chosen_logprob": sums[0], "chosen_token_logprob": means[0]}
        if len(logps) == 2:
            chosen, rejected = (x - y for x, y in zip(logps, reference)) if reference else logps
            accuracy = {"logprob_accuracy": wins(chosen, rejected)}
            metrics |= {"rejected_logprob": sums[1], "rejected_token_logprob": means[1], **accuracy}
        return terms, metrics
