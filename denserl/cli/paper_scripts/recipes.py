"""The scripts, one recipe each: the command that it runs, its positional arguments, and what makes its flags of them."""

from collections.abc import Callable
from typing import NamedTuple

from denserl.cli.paper_scripts.flags import Call, Flags, fit_flags, ppo_flags, rm_flags


class Recipe(NamedTuple):
    """One script."""

    script: str
    module: str  # of the command that it runs
    arguments: tuple[str, ...]
    example: str
    flags: Callable[[Call], Flags]


RECIPES = {
    "train-rm": Recipe(
        "train_seg_rm.sh",
        "denserl.cli.train_rm",
        ("EXP", "MODEL_TYPE", "DATASET", "EPOCHS", "SEGMENT_METHOD", "C", "AGG_FUNC"),
        "train_seg_rm phi3-instruct preference_700K 1 peak 1.75 avg --gpus 8",
        rm_flags,
    ),
    "fit-normalizer": Recipe(
        "run_fit_function.sh",
        "denserl.cli.fit_normalizer",
        ("RM_PATH", "SEGMENT_METHOD", "C", "AGG_FUNC"),
        "yyqoni/Phi-3-mini-4k-instruct-segment-rm-700k peak 1.75 avg --gpus 8",
        fit_flags,
    ),
    "train-ppo": Recipe(
        "train_ppo_segment.sh",
        "denserl.cli.train_ppo",
        tuple("EXP MODEL_TYPE DATASET EPISODES SEGMENT_METHOD C AGG_FUNC REWARD_TYPE VALUE_CLIP FIT_TAG".split()),
        "ppo_segment phi3-instruct Ultrafeedback 2 peak 1.75 avg segment_normalization 0.25 preference700k_60000 --gpus 8",
        ppo_flags,
    ),
}
