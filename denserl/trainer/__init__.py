"""The PPO trainer: rollouts, DeepSpeed engines, checkpoints and trackers."""
