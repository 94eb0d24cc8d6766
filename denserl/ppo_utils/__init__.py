"""Using a reward: normalise it by place, spread it over tokens, and the formulas of PPO. Pure tensor code."""
