"""Options of sampling."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, RESUMABLE, Config


@dataclass(kw_only=True)
class DecodingConfig(Config):
    """How responses are sampled, but for how long they may be and how far from the most likely ones."""

    group: ClassVar[str] = "sampling"

    max_prompt_length: Annotated[int, Ge(1)] = 1024
    """A longer prompt loses tokens on its left."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Nucleus sampling."""
    sample_batch_size: Annotated[int, Ge(1), RESUMABLE] = 64
    """Responses under way at a time on one rank."""


@dataclass(kw_only=True)
class SamplingConfig(DecodingConfig):
    """How responses are sampled."""

    group: ClassVar[str] = "sampling"

    max_new_tokens: Annotated[int, FIRST, Ge(1)] = 1024
    """Longest response."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Sampling temperature; log-probabilities are of the same distribution."""
