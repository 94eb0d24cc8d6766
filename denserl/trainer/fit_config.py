"""Options of the fit of the location-aware normaliser."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from denserl.config import FIRST, RunConfig
from denserl.data.config import DataConfig, ScoredPairsConfig
from denserl.rewards.config import Aggregation, ReadConfig, RewardModelConfig


@dataclass(kw_only=True)
class FitConfig(RewardModelConfig, ReadConfig, ScoredPairsConfig, DataConfig, RunConfig):
    """Score chosen and rejected responses, fit Mean(p) and Std(p) as lines in ln(p), and write the entry into param.json.

    Prints the mean and std of the responses' scores as well, for --normalizer scalar of a reward model whose config has none.
    """

    group: ClassVar[str] = "fit"

    output_dir: Annotated[str, FIRST] = "runs/fit"
    """Folder for the plot."""
    dataset_tag: Annotated[str, FIRST]
    """Name of the data in param.json, e.g. preference700k_60000."""
    model_type: Annotated[str | None, FIRST] = None
    """Name of the model family in param.json; default: the one in the reward model's config."""
    sft_model: str | None = None
    """Model whose entropies cut the responses; default: the one in the reward model's config."""
    segment_method: Literal["peak"] = "peak"
    """How responses are cut."""
    agg_func: Aggregation | None = None
    """How segment scores make the score of a response, a key of param.json; default: the one in the reward model's config."""
    params: Annotated[str | None, FIRST] = None
    """The param.json to write; default: the one in the package."""
    pairs: Annotated[int, FIRST, Ge(1)] = 60000
    """Pairs to score, drawn by seed; all when there are fewer."""
    smallest_group: Annotated[int, Ge(2)] = 2
    """Places with fewer segment rewards are left out."""
