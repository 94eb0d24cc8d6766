"""What a training adds to its pairs: others that are made of them."""

from datasets import Dataset, concatenate_datasets

from denserl.data.augmentation import augment_pairs
from denserl.trainer.reward_config import RewardConfig


def augmented(config: RewardConfig, pairs: Dataset) -> Dataset:
    """The training pairs, and behind them those that are made of them, where the options ask for such."""
    if config.augment is None:
        return pairs
    made = augment_pairs(pairs, ratio=config.augment_ratio, neutrals=config.augment_neutrals, seed=config.seed)
    return concatenate_datasets([pairs, made])
