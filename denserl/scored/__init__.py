"""Texts, scored as PPO would be paid for them, to be looked at: at the terminal, in a notebook, in a file, on a page."""
