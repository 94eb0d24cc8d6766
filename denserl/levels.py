"""The levels at which rewards are given, as entropy thresholds; without tensors, so that naming a level loads nothing."""

BANDIT_THRESHOLD = 1000.0
# The entropy threshold of each level, in nats; that of segments is the published one for Phi-3-mini.
LEVELS = {"segment": 1.75, "token": 0.0, "bandit": BANDIT_THRESHOLD}


def level_of(threshold: float) -> str:
    """The level of an entropy threshold: token, bandit, or between them segment."""
    return "token" if threshold == 0 else "bandit" if threshold >= BANDIT_THRESHOLD else "segment"
