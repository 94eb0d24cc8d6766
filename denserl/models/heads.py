"""The reward head, which turns a hidden state into a score: the stock classifier's linear layer, an MLP, labels, or ratings.

It is the module `score`, (..., H) -> (..., C): the score first, then whatever else a head tells of the hidden state.

Putting one on a model, reading and saving it is in reward_models.py.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from denserl.errors import UserError
from denserl.models.folders import wrong_setting
from denserl.models.fp32 import Fp32Linear
from denserl.models.gated import Gate, GatedHead
from denserl.models.measured import LogitMap

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MOST_LAYERS, MOST_WIDTH = 64, 2**20


class Head(NamedTuple):
    """The parts of a head; the default is the stock classifier's (docs/reward_models.md).

    kind: `linear`, or `mlp`: Dropout, (Linear, ReLU) x layers, Linear(width, 1), or `label`: the logit of a language model for
    one label less those for others (`LabelHead`), or `attributes`: ratings, and their weighted sum (`AttributeHead`), or
    `gated`: ratings whose weights are read off the prompt (gated.py), or, while it trains, `disentangled`: quality, and
    what goes with a covariate (`DisentangledHead`).
    layers, width, dropout: of an `mlp`, or of the gate. bias: whether a `linear` or `label` one has one; an `mlp` always has.
    labels, label_ids: of a `label` one, the text and the token of each, the better one first (data.labels.label_ids).
    scale, cap: what the language model does to its logits (measured.LogitMap).
    names: of `attributes` and `gated`, those of the ratings. weights: of `attributes`, what each weighs in the score.
    temperature, gate_offset: of `gated`, see `Gate` and `GatedHead`.
    """

    kind: str = "linear"
    layers: int = 1
    width: int = 1024
    dropout: float = 0.1
    bias: bool = False
    labels: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()
    scale: float = 1.0
    cap: float | None = None
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    temperature: float = 10.0
    gate_offset: int = 0


STOCK = Head()
# The fields of each kind that stand in a config.
FIELDS = {
    "linear": ("kind", "layers", "width", "dropout", "bias"),
    "mlp": ("kind", "layers", "width", "dropout", "bias"),
    "label": ("kind", "bias", "labels", "label_ids", "scale", "cap"),
    "attributes": ("kind", "names", "weights"),
    "disentangled": ("kind",),
    "gated": ("kind", "layers", "width", "dropout", "names", "temperature", "gate_offset"),
}
KINDS = tuple(FIELDS)


class LabelHead(Fp32Linear):
    """The language model's logit for the first of n labels less that for each other one: (..., hidden) -> (..., n - 1).

    They are logs of odds, log p(first) - log p(other); the score is that of the second label. The weight holds the rows that
    the language model's head has for the labels, and those alone. After `read_in` it is the weight of the whole head,
    (V, hidden), of which `rows` are read.
    """

    def __init__(self, hidden: int, head: Head):
        super().__init__(hidden, len(head.label_ids), bias=head.bias)
        self.rows, self.logits = list(range(len(head.label_ids))), LogitMap(head.scale, head.cap)

    def read_in(self, whole: nn.Linear, rows: tuple[int, ...]) -> None:
        """Read the rows in a language model's whole head from now on, so that both learn as one."""
        self.weight, self.bias, self.rows = whole.weight, whole.bias, list(rows)

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias[self.rows].float()
        logits = self.logits(linear(input.float(), self.weight[self.rows].float(), bias))
        return logits[..., :1] - logits[..., 1:]


class AttributeHead(Fp32Linear):
    """The ratings of K attributes behind their weighted sum: (..., hidden) -> (..., 1 + K).

    Its weight is that of a stock classifier of K labels, whose logits are the ratings.
    """

    def __init__(self, hidden: int, head: Head):
        super().__init__(hidden, len(head.names), bias=False)
        self.weights = head.weights

    def forward(self, input: Tensor) -> Tensor:
        ratings = super().forward(input)
        return torch.cat([ratings @ ratings.new_tensor(self.weights)[:, None], ratings], -1)


class DisentangledHead(Fp32Linear):
    """Quality, and what goes with a covariate such as length: (..., hidden) -> (..., 2), the quality first (arXiv 2402.07319).

    Of the weights of both only the directions count (`unit_rows`). `overlap` is their product, 0-d, as the last forward had it.
    """

    def __init__(self, hidden: int):
        super().__init__(hidden, 2, bias=False)
        self.overlap: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        quality, other = unit_rows(self.weight.float())
        # Here, where ZeRO-3 has made the weights whole, and takes their gradients.
        self.overlap = quality @ other
        return linear(input.float(), torch.stack([quality, other]))

    def __getstate__(self) -> dict[str, Any]:
        """Copies have not run: a tensor with a graph cannot be copied."""
        return {**self.__dict__, "overlap": None}


def unit_rows(weight: Tensor) -> Tensor:
    """Each row of (C, H) weights centred, and divided by its norm or by 1e-8, whichever is larger."""
    centred = weight - weight.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-8)


def is_stock(head: Head) -> bool:
    """Whether every library reads it as a score: one linear layer without bias."""
    return head.kind == "linear" and not head.bias


def is_of_labels(model: nn.Module) -> bool:
    """Whether a model's head, `score`, is of labels."""
    return isinstance(getattr(model, "score", None), LabelHead)


def is_disentangled(model: nn.Module) -> bool:
    """Whether a model's head, `score`, tells quality from what goes with a covariate, which it does while it trains."""
    return isinstance(getattr(model, "score", None), DisentangledHead)


def quality_alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model with a disentangled head -> those with the linear one that gives its quality."""
    quality = unit_rows(tensors["score.weight"].float())[:1].to(tensors["score.weight"])
    return {**tensors, "score.weight": quality}


def read_in_fp32(model: "PreTrainedModel") -> "PreTrainedModel":
    """A stock classifier whose head computes in fp32; its weights, and what is saved, stay as they are."""
    if type(getattr(model, "score", None)) is nn.Linear:
        model.score = Fp32Linear.like(model.score)
    return model


def make_head(hidden: int, head: Head, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module that maps (..., hidden) to (..., C) in fp32, initialised as torch does, from the global random state.

    C is 1 but for heads of attributes, those of three labels, and disentangled ones.

    dtype: of its weights.
    """
    if head.kind == "label":
        return LabelHead(hidden, head).to(dtype)
    if head.kind == "attributes":
        return AttributeHead(hidden, head).to(dtype)
    if head.kind == "disentangled":
        return DisentangledHead(hidden).to(dtype)
    if head.kind == "gated":
        gate = Gate(hidden, len(head.names), head.layers, head.width, head.dropout, head.temperature)
        return GatedHead(hidden, gate, head.gate_offset).to(dtype)
    if head.kind == "linear":
        return Fp32Linear(hidden, 1, bias=head.bias).to(dtype)
    widths = [hidden, *[head.width] * head.layers]
    steps = [step for sizes in zip(widths, widths[1:]) for step in (Fp32Linear(*sizes), nn.ReLU())]
    return nn.Sequential(nn.Dropout(head.dropout), *steps, Fp32Linear(head.width, 1)).to(dtype)


def stored_head(config: "PreTrainedConfig", path: str) -> Head:
    """The head that the config of the reward model at `path` describes, a stock one where it describes none.

    Raises:
        UserError: a value of another type or out of range.
    """
    return described_head(config.to_dict(), path)


def described_head(settings: dict, path: str) -> Head:
    """`stored_head` of what config.json holds."""
    ours = settings.get("segment_reward") or {}
    if not isinstance(ours, dict):
        raise wrong_setting(path, "segment_reward", ours, "an object")
    return checked_head(ours.get("head") or {}, path)


def store_head(config: "PreTrainedConfig", head: Head) -> None:
    """Write the head into a config, beside the other settings in `segment_reward`; nothing is written for a stock head.

    Attributes are also the labels that stock classes know.
    """
    settings = config.to_dict().get("segment_reward") or {}
    if head.names:
        config.id2label, config.label2id = dict(enumerate(head.names)), {name: i for i, name in enumerate(head.names)}
        config.problem_type = "regression"
    if not is_stock(head):
        config.segment_reward = {**settings, "head": head_settings(head)}
    elif "head" in settings:
        config.segment_reward = {name: value for name, value in settings.items() if name != "head"}


def head_settings(head: Head) -> dict:
    """What a config says of a head, as JSON has it."""
    values = {name: getattr(head, name) for name in FIELDS[head.kind]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def checked_head(values: object, path: str) -> Head:
    """A Head from a JSON object with some of its fields, as a config has it. UserError for anything else."""
    kind = values.get("kind") if isinstance(values, dict) else None
    names = FIELDS[kind] if isinstance(kind, str) and kind in FIELDS else FIELDS["linear"]
    if not isinstance(values, dict) or not set(values) <= set(names):
        raise wrong_setting(path, "head", values, f"an object with {', '.join(names)}")
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    head = Head(**given)
    are_labels, are_attributes = head.kind == "label", head.kind in ("attributes", "gated")
    checks = {
        "kind": (head.kind in KINDS, " or ".join(KINDS)),
        "layers": (_is_between(head.layers, MOST_LAYERS), f"a whole number from 1 to {MOST_LAYERS}"),
        "width": (_is_between(head.width, MOST_WIDTH), f"a whole number from 1 to {MOST_WIDTH}"),
        "dropout": (type(head.dropout) in (int, float) and 0 <= head.dropout < 1, "a number from 0 to below 1"),
        "bias": (type(head.bias) is bool, "true or false"),
        "labels": (not are_labels or _are_labels(head.labels, _is_text), "two different texts, or three"),
        "label_ids": (
            not are_labels or (_are_labels(head.label_ids, _is_token) and len(head.label_ids) == len(head.labels)),
            "different token ids, one for each label",
        ),
        "names": (not are_attributes or _are_unlike(head.names, _is_text), "different texts, at least one"),
        "weights": (head.kind != "attributes" or _are_weights(head.weights, head.names), "a finite number for each name"),
        "temperature": (_is_finite(head.temperature) and head.temperature > 0, "a finite number above 0"),
        "gate_offset": (_is_token(head.gate_offset), "a whole number from 0"),
        "scale": (_is_finite(head.scale) and head.scale != 0, "a finite number other than 0"),
        "cap": (head.cap is None or (_is_finite(head.cap) and head.cap > 0), "a finite number above 0, or null"),
    }
    for name, (is_right, expected) in checks.items():
        if not is_right:
            raise wrong_setting(path, f"the head's {name}", getattr(head, name), expected)
    return head


def _are_labels(values: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(values, tuple) and len(values) in (2, 3) and _are_unlike(values, fits)


def _are_unlike(values: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(values, tuple) and values != () and all(map(fits, values)) and len(set(values)) == len(values)


def _are_weights(values: object, names: tuple) -> bool:
    return isinstance(values, tuple) and len(values) == len(names) and all(map(_is_finite, values))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_token(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_between(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def second_less_first(tensors: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """The weights of a linear head, in fp32, whose output is that of the second of two rows less that of the first, x scale.

    tensors: of a head with two rows, by name.
    """
    return {
        name: (scale * (tensor[1:].float() - tensor[:1].float())) if name.startswith("score.") else tensor
        for name, tensor in tensors.items()
    }


def weighted_row(tensors: Mapping[str, Tensor], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weights of a linear head, in fp32, whose output is the weighted sum of those of a head of several rows.

    tensors: of a head with a row for each weight, by name.
    """
    return {
        name: tensor.new_tensor(weights, dtype=torch.float32) @ tensor.float()[None] if name == "score.weight" else tensor
        for name, tensor in tensors.items()
    }


# GRM's published layout (docs/layouts.md): settings in its config.json -> fields of Head.
GRM_SETTINGS = {"vhead_layer_type": "kind", "vhead_num_layers": "layers", "vhead_num_neurons": "width"}


def stored_grm_head(config: "PreTrainedConfig", path: str) -> Head:
    """The head that the config of a published GRM model describes. UserError where it describes none."""
    values = config.to_dict()
    if "vhead_layer_type" not in values:
        raise UserError(
            f"{path} is not in GRM's layout: its config.json has no vhead_layer_type",
            "give the folder of a published GRM model, or the `labels` with which a language model judges; our own models "
            "need no `layout` denserl",
        )
    stored = {field: values[name] for name, field in GRM_SETTINGS.items() if name in values}
    # Its linear head has a bias as well.
    return checked_head(stored | {"bias": stored["kind"] == "linear"}, path)


def grm_settings(head: Head) -> dict:
    """What GRM's config.json says of a head."""
    return {name: getattr(head, field) for name, field in GRM_SETTINGS.items()}


def our_name(name: str) -> str:
    """The name of a weight of GRM's head -> its name here, where an MLP begins with its dropout. Others stay."""
    match = re.fullmatch(r"v_head\.summary\.(?:(\d+)\.)?(weight|bias)", name)
    return match.expand(f"score.{int(match[1]) + 1}.\\2" if match[1] else r"score.\2") if match else name


def grm_name(name: str) -> str:
    """The name of a weight of a head here -> its name in GRM's layout. Others stay."""
    match = re.fullmatch(r"score\.(?:(\d+)\.)?(weight|bias)", name)
    return match.expand(f"v_head.summary.{int(match[1]) - 1}.\\2" if match[1] else r"v_head.summary.\2") if match else name
