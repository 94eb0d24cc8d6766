"""Options of the meta step: what keeps a reward model telling the present policy's responses apart."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from denserl.config import INPUT, RESUMABLE, Config, Only

_OF_RESPONSES = Only(
    "without `input` pairs or ratings, which score single responses", lambda c: c.input in ("pairs", "ratings")
)
_WITHOUT_META = Only("without `meta_data`", lambda c: c.meta_data)


@dataclass(kw_only=True)
class MetaConfig(Config):
    """What is learned of responses of the present policy, which have no labels (MetaRM)."""

    group: ClassVar[str] = "meta step"

    meta_data: Annotated[list[str] | None, INPUT, RESUMABLE, _OF_RESPONSES] = None
    """Responses of the present policy: samples.jsonl of `denserl bon`, or rows of `prompt` and a list of `responses`. Each
    optimiser step learns where weights would be if these were scored further apart (docs/noisy_labels.md)."""
    meta_lr: Annotated[float | None, Ge(0), _WITHOUT_META] = None
    """How far weights are moved along that gradient, by plain SGD; default: 10 x lr. 0: they are not, and how far apart the
    scores are is only logged."""
    meta_samples: Annotated[int, Ge(2), Only("without `meta_data` or `meta_eval`", lambda c: c.meta_data or c.meta_eval)] = 4
    """Responses to a prompt that are compared, drawn anew each time; a prompt that has fewer is a bad row."""
    meta_prompts: Annotated[int, Ge(1), _WITHOUT_META] = 16
    """Prompts of an optimiser step whose responses are scored, all ranks together."""
    meta_eval: Annotated[list[str] | None, INPUT, RESUMABLE, _OF_RESPONSES] = None
    """Further such responses, of which evaluations tell how far apart they are scored (eval_separation)."""
