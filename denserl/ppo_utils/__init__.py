"""Using a reward: normalise it, pay segments and tokens, and the formulas of PPO. Pure tensor code."""
