"""Options of the fit of the location-aware normaliser."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from denserl.config import FIRST, MODEL, RunConfig
from denserl.data.config import DataConfig, ScoredPairsConfig
from denserl.rewards.config import Aggregation, ReadConfig, RewardModelConfig


@dataclass(kw_only=True)
class FitConfig(RewardModelConfig, ReadConfig, ScoredPairsConfig, DataConfig, RunConfig):
    """Score chosen and rejected responses, fit Mean(p) and Std(p) as lines in ln(p), and store them beside the reward model.

    Prints the mean and std of the responses' scores as well, for --normalizer scalar of a reward model whose config has none.
    """

    group: ClassVar[str] = "fit"

    output_dir: Annotated[str, FIRST] = "runs/fit"
    """Folder for the plot."""
    fit: Annotated[str | None, FIRST] = None
    """File to write; default: fits.json in the reward model's folder, where train-ppo looks for it; of an ensemble, or a model
    from the hub, fits.json in output_dir."""
    sft_model: Annotated[str | None, MODEL] = None
    """Model whose entropies cut the responses; default: the one in the reward model's config."""
    agg_func: Aggregation | None = None
    """How segment scores make the score of a response; default: the one in the reward model's config."""
    max_length: Annotated[int | None, Ge(1)] = None
    """Longest sequence, prompt and response together, in tokens; default: as the reward model was trained, else 2048."""
    max_prompt_length: Annotated[int | None, Ge(1)] = None
    """A sequence over max_length loses prompt tokens on the left down to this many, then response tokens on the right;
    default: as the reward model was trained, else 1728."""
    pairs: Annotated[int, FIRST, Ge(1)] = 60000
    """Pairs to score, drawn by seed; all when there are fewer."""
    smallest_group: Annotated[int, Ge(2)] = 2
    """Places with fewer segment rewards are left out."""
