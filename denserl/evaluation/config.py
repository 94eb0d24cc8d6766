"""Options of best-of-n."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, MODEL
from denserl.data.config import DataConfig
from denserl.rewards.config import ReadConfig, RewardModelConfig, ScoringConfig
from denserl.rollouts.config import SamplingConfig


@dataclass(kw_only=True)
class BestOfNConfig(SamplingConfig, RewardModelConfig, ReadConfig, ScoringConfig, DataConfig):
    """Sample responses to prompts, choose the best of n by a proxy reward, and see what they are worth, for every n at once."""

    group: ClassVar[str] = "sampling"

    model: Annotated[str, MODEL, FIRST]
    """Policy to sample from: folder or hub name."""
    gold_reward_model: Annotated[str | None, MODEL, FIRST] = None
    """Reward model that says what responses are worth: folder or hub name, of any tokenizer."""
    true_reward: Annotated[str | None, FIRST] = None
    """module:function of (prompts, responses) -> rewards that say it instead."""
    sft_model: Annotated[str | None, MODEL] = None
    """Model whose entropies cut the responses for `reward_model`; default: the one in its config."""
    samples: Annotated[int, FIRST, Ge(1)] = 16
    """Responses to each prompt; n goes up to this."""
    samples_file: str | None = None
    """Where samples are kept, and taken from if they are there; default: samples.jsonl in the output folder."""
    resume: bool = False
    """Add the samples that are missing to a file that holds some."""
    temperature: Annotated[float, Gt(0)] = 0.7
    """Sampling temperature."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 0.95
    """Nucleus sampling."""
