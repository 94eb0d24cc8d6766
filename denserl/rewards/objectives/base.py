"""The interface of training objectives: losses of groups of candidate responses, with their labels.

Scores, log-probabilities and hidden states come from the trainer.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from denserl.config import check_values
from denserl.data.batching import is_out_of_memory
from denserl.data.schemas import PAIR_LABELS
from denserl.errors import UserError
from denserl.plugins import load_named
from denserl.segmentation import Segments

# What an objective may ask for beside the scores:
READS = (
    "first_logps",  # log-probability of each group's first candidate (of a pair: the chosen)
    "logps",  # of all candidates; either needs a language-model head beside the reward head
    "ref_logps",  # the same under the frozen reference model
    "hidden",  # the hidden state at which a response's last score is read
    "second_pass",  # the same batch a second time, with dropout drawn anew
    "steps",  # the scores and labels of steps, which `input` steps and response have
    "orders",  # the log-odds of labels in the orders in which two responses are read, which `input` pair has
    "label_logp",  # the log-probability of the first label at each step, or in each order, among all tokens
    "parts",  # quality, and what goes with a covariate, of a head of both; the scores of all objectives are then their sums
    "step_sums",  # what its own `step_sums` add up to over the whole optimiser step
    "step_rows",  # what its own `step_rows` hold of all groups of the whole optimiser step
)

# What losses may be averaged over: groups, or in them the steps that have labels, or the entries (ratings) that are there.
UNITS = ("groups", "steps", "entries")


# Names of the metrics that the trainer itself logs of groups (rewards/pair_metrics.py, step_metrics.py).
GROUP_METRICS = (
    "accuracy",
    "chosen_reward",
    "rejected_reward",
    "reward_difference",
    "segments_per_response",
    "segment_length",
    "response_length",
    "length_accuracy",
    "length_correlation",
    "score_mean",
    "score_std",
    "separation",
    "step_accuracy",
    "always_plus_accuracy",
    "good_probability",
    "bad_probability",
    "steps_per_solution",
    "wrong_solutions",
    "first_error_accuracy",
    "correct_accuracy",
    "first_error_f1",
    "mse",
    "mean_mse",
    "position_consistency",
    "position_bias",
)


def counted_weights(counted: Tensor, weight: Tensor | None) -> Tensor:
    """(G,) fp32: the weight (G,) of each group, default 1, and 0 where it is not counted (G,)."""
    return counted.float() if weight is None else torch.where(counted, weight, 0.0)


class Steps(NamedTuple):
    """The labelled steps of G solutions; K is the largest number of them."""

    logits: Tensor  # (G, K) fp32, logit(+) - logit(-); past a row's own of no meaning
    labels: Tensor  # (G, K) fp32, in [0, 1]; NaN: none, as past a row's own
    logp: Tensor | None = None  # (G, K) fp32, log-probability of + among all tokens; that of - is less by the logit


class Orders(NamedTuple):
    """Two responses in one text, for G pairs, in each of M orders: one of them, or both."""

    margins: Tensor  # (G, M, n - 1) fp32, the logit of the first response's label less those of the n - 1 others
    p_first: Tensor  # (G, M) fp32, probability that the response that stands first is the better one
    logp: Tensor | None = None  # (G, M) fp32, log-probability of the first response's label among all tokens


class Groups(NamedTuple):
    """A batch of G groups of M candidate responses, one prompt a group; a field is None where no objective reads it.

    A pair is a group of two, the chosen response first. Where responses stand under one another, all groups' first candidates
    come before all second ones.
    """

    scores: Tensor  # (G, M) fp32, of whole responses
    counted: Tensor  # (G,) bool: the groups that are added up
    # Each (G, ...): margin, the rating difference of a pair, and p_chosen, the probability that its first one is the better;
    # and what objectives ask for.
    labels: Mapping[str, Tensor]
    lengths: Tensor  # (G, M) response tokens
    token_scores: Tensor  # (M G, T) fp32; no meaning off the segments
    segments: Segments  # of the same M G responses
    logps: Tensor | None = None  # (G, m) log-probabilities of the first m candidates, summed over their tokens
    ref_logps: Tensor | None = None  # (G, M)
    hidden: Tensor | None = None  # (G, M, H)
    second: "Groups | None" = None  # of a second pass
    steps: Steps | None = None  # of groups of one solution each
    orders: Orders | None = None  # of groups of the orders of one pair each, whose scores are log-odds
    outputs: Tensor | None = (
        None  # (G, M, C) of a head of several outputs, each made of segments as scores are, which come first
    )
    overlap: Tensor | None = None  # 0-d, the product of the weights of both `parts`, centred and normalised
    step: Mapping[str, Tensor] | None = None  # the `step_sums` of all objectives, over all batches and ranks; no graph
    weight: Tensor | None = None  # (G,) what each group's losses and metrics are multiplied by; None: 1 each
    prototypes: Callable[[Tensor], Tensor] | None = None  # (..., H) features -> (..., K) fp32, their cosines with prototypes
    rows: Mapping[str, Tensor] | None = None  # the `step_rows` of the whole step, (N, ...) each; None: the batch is all of it
    places: Tensor | None = None  # (G,) long, where among those N the batch's own groups stand

    def weights(self) -> Tensor:
        """(G,) what each group counts in sums: `counted_weights`."""
        return counted_weights(self.counted, self.weight)

    def in_step(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`step_rows` of this batch among those of all N groups of the step, (N, ...), where they keep their graph."""
        if self.rows is None:
            return dict(own)
        return {name: self.rows[name].index_copy(0, self.places, rows.to(self.rows[name])) for name, rows in own.items()}

    def own_of_step(self, rows: Tensor) -> Tensor:
        """This batch's groups, (G, ...), of what is known of all of the step, (N, ...)."""
        return rows if self.places is None else rows[self.places]

    def per_token(self, logps: Tensor) -> Tensor:
        """(G, m) log-probabilities divided by the tokens of their responses."""
        return logps / self.lengths[:, : logps.shape[1]].clamp(min=1)


class Objective(ABC):
    """A training objective; its options are the fields of a dataclass. Example::

    @dataclass(frozen=True)
    class Centre(Objective):
        weight: float = 0.01

        def __call__(self, groups):
            losses = groups.scores.square().mean(1)
            return losses, {"centre_loss": losses}
    """

    weight: float = 1.0  # of its losses in the sum of all objectives
    prototypes: int = 0  # how many it learns, which the trainer has beside the head while it trains
    reads: ClassVar[tuple[str, ...]] = ()  # what it needs beside scores, of READS
    labels: ClassVar[tuple[str, ...]] = ()  # columns of numbers of the rows that it needs beside `margin` and `p_chosen`
    units: ClassVar[str] = "groups"  # what its losses are averaged over, of UNITS: of steps and entries each group has the sum
    in_evaluation: ClassVar[bool] = True  # whether it means something there, where no dropout is

    @abstractmethod
    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (G,) losses, one of each group, and metrics by name, (G,) values to be averaged over groups.

        Of a loss that is a function of `step_sums`, they have its gradient and add up to 0 over the optimiser step.
        """

    def step_sums(self, groups: Groups) -> dict[str, Tensor]:
        """What a loss that is no sum over groups needs of the whole optimiser step: 0-d sums over a batch's counted groups.

        Without graph, and under names that no other objective has. They add up over batches and ranks.
        """
        return {}

    def step_rows(self, groups: Groups) -> dict[str, Tensor]:
        """What of its groups a batch tells all others of the optimiser step: (G, ...) each, under names of its own.

        A loss that is given the others' (`Groups.in_step`) must be such that all batches have the gradient of the whole step.
        """
        return {}

    def step_loss(self, sums: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that is a function of such sums, 0-d, and metrics by name, of all that was added up."""
        return torch.zeros(()), {}


def total_losses(objectives: Sequence[Objective], groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the objectives' losses, (G,), and the metrics of them all.

    Raises:
        UserError: an objective raises, returns losses or metrics of another shape, or a metric under a name that is taken; it
            names the objective.
    """
    total = torch.zeros((), device=groups.scores.device)
    metrics: dict[str, Tensor] = {}
    for objective in objectives:
        name_of = f"the objective {type(objective).__name__}"
        try:
            losses, found = objective(groups)
        except Exception as error:  # a user's objective may raise anything
            if is_out_of_memory(error):
                raise
            raise UserError(f"{name_of} raised {type(error).__name__}: {error}", "mend it", one_rank=True) from error
        if taken := sorted(found.keys() & {*metrics, "loss", *GROUP_METRICS}):
            raise UserError(f"{name_of} returned the metric {taken[0]}, a name that is taken", "give it another name", True)
        for name, values in {"losses": losses, **found}.items():
            if not isinstance(values, Tensor) or values.shape != groups.counted.shape:
                shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise UserError(
                    f"{name_of} returned {name} of the shape {shape} for {len(groups.counted)} groups",
                    "let it return one value for each group",
                    one_rank=True,
                )
        total, metrics = total + objective.weight * losses, metrics | found
    return total, metrics


def all_step_sums(objectives: Sequence[Objective], groups: Groups) -> dict[str, Tensor]:
    """The `step_sums` of those that read them, fp64."""
    of_steps = [objective for objective in objectives if "step_sums" in objective.reads]
    return {name: value.detach().double() for each in of_steps for name, value in each.step_sums(groups).items()}


def all_step_rows(objectives: Sequence[Objective], groups: Groups) -> dict[str, Tensor]:
    """The `step_rows` of those that read them, without graph."""
    of_steps = [objective for objective in objectives if "step_rows" in objective.reads]
    return {name: rows.detach() for each in of_steps for name, rows in each.step_rows(groups).items()}


def total_step_losses(objectives: Sequence[Objective], sums: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The weighted sum of the losses that are functions of such sums, and their metrics."""
    total = 0.0
    metrics: dict[str, float] = {}
    for objective in objectives:
        if "step_sums" in objective.reads:
            loss, found = objective.step_loss({name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()})
            total, metrics = total + objective.weight * float(loss), metrics | {key: float(x) for key, x in found.items()}
    return total, metrics


def all_labels(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """The labels that the objectives need together, `margin` and `p_chosen` among them."""
    return tuple(dict.fromkeys([*PAIR_LABELS, *(name for objective in objectives for name in objective.labels)]))


def all_reads(objectives: Sequence[Objective]) -> set[str]:
    """All that the objectives read. UserError for a name that is not in READS."""
    found = {name for objective in objectives for name in objective.reads}
    if unknown := sorted(found - {*READS}):
        raise UserError(f"an objective reads {unknown[0]}; there are {', '.join(READS)}", "correct its `reads`")
    return found


def all_prototypes(objectives: Sequence[Objective]) -> int:
    """How many prototypes the objectives learn together. UserError where they ask for several numbers."""
    found = {objective.prototypes for objective in objectives if objective.prototypes}
    if len(found) > 1:
        raise UserError(f"objectives ask for {' and '.join(map(str, sorted(found)))} prototypes", "let them share as many")
    return next(iter(found), 0)


def all_units(objectives: Sequence[Objective]) -> str:
    """What the objectives' losses are averaged over, one of UNITS. UserError where they differ, or for another name."""
    found = {objective.units: type(objective).__name__ for objective in objectives}
    if unknown := sorted(set(found) - {*UNITS}):
        raise UserError(f"an objective is averaged over {unknown[0]}; there are {', '.join(UNITS)}", "correct its `units`")
    if len(found) > 1:
        shown = " and ".join(f"{name} over {units}" for units, name in found.items())
        fix = "let `step_average` be solutions" if "steps" in found else "leave one of them out"
        raise UserError(f"the losses of {shown} cannot be averaged together", fix)
    return next(iter(found), UNITS[0])


def named_objective(words: str) -> Objective:
    """The objective that `module:Class` or `module:Class,option=value,...` names, with its options.

    Raises:
        UserError: it cannot be imported, is no objective, or an option is unknown or out of bounds.
    """
    name, *settings = words.split(",")
    made = load_named(name, "objective")
    options = {key: _as_value(value) for key, _, value in (setting.partition("=") for setting in settings)}
    known = [field.name for field in dataclasses.fields(made)] if dataclasses.is_dataclass(made) else []
    if unknown := [key for key in options if key not in known]:
        raise UserError(f"`objective` {name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}", "correct it")
    try:
        objective = made(**options)
        if known:
            check_values(objective)
            TypeAdapter(type(objective)).validate_python(options)
    except ValidationError as error:
        wrong = error.errors()[0]
        found = f"`objective` {name}: `{'.'.join(map(str, wrong['loc']))}` is {wrong['input']!r}: {wrong['msg']}"
        raise UserError(found, "correct it") from error
    except UserError:
        raise
    except Exception as error:  # a user's class may raise anything when it is made
        raise UserError(f"`objective` {name}: {type(error).__name__}: {error}", "mend the class") from error
    if not isinstance(objective, Objective):
        raise UserError(f"`objective` {name} is no Objective", "derive it from denserl.Objective (docs/extending.md)")
    return objective


def _as_value(words: str) -> Any:
    """A number, true, false or null, as JSON writes them; anything else is text."""
    try:
        return json.loads(words)
    except ValueError:
        return words
