"""Learning a reward: aggregation, objectives, the reward-model trainer and the fit of the normaliser."""
