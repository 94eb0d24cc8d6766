"""Every run of the evidence: the one table of settings, by part and name. evidence.py makes the runs.

Each arm says in what world it runs, what is paid, and how; all else is the model type `tiny`. A name is "PANEL: ARM" or the
arm alone; arms are compared with the first one of their panel. Arms of the same settings are one run.
"""

from typing import Literal, NamedTuple

from denserl.world.make import THRESHOLD as PEAKS

Part = Literal["length", "sums", "penalties", "groups", "models", "long", "cures", "thresholds", "aggregates", "paid", "cuts"]
Flags = dict[str, object]

LENGTHS = (4, 8, 16, 32)
# Of the two later questions.
LENGTH = 8
ITERATIONS, LONGER = 40, 80
PAIRS = (1000, 4000, 12000)
THRESHOLDS = {"segment": PEAKS, "token": 0.0, "bandit": 1000.0}
# The weight of the KL for each sentence of a demonstration, where true values are paid.
PENALTY, PENALTIES = 0.1, (0.4, 0.1, 0.025)
# The weight where what is paid is in standard deviations of scores.
OF_MODELS, WEAK = 0.05, 0.0125
# The standard deviation of the true reward of the language model's responses, in worlds of LENGTH.
TRUE_STD = 0.33


class Model(NamedTuple):
    """A reward model: where it cuts, of how many pairs it is trained, and further flags of train-rm."""

    level: str = "segment"
    pairs: int = 4000
    threshold: float | None = None  # nats; None: the level's
    agg_func: str = "avg"
    flags: Flags = {}
    members: int = 1  # of an ensemble
    repeats: bool = False  # whether in a third of the pairs the other response is the chosen one with a sentence said again
    fitted: bool = False  # whether what it pays is normalised by place


class Arm(NamedTuple):
    """A way of paying in a world: flags of train-ppo, and the reward model; none: the sentences' true values."""

    paid: Flags
    kl: float
    length: int = LENGTH
    truth: Literal["mean", "sum"] = "mean"
    model: Model | None = None
    iterations: int = ITERATIONS


def most_tokens(length: int) -> int:
    """Tokens that a response may have: those of a third more sentences than the longest demonstration."""
    return 25 * length // 3


# One reward at the end reaches the first of many tokens by the critic alone, where lambda is below 1.
AT_END: Flags = {"assignment": "score_last", "lam": 1.0}
DIFFERENCE: Flags = {"assignment": "difference_end"}
EVEN: Flags = {"assignment": "even"}
BANDIT: Flags = {"assignment": "mean_last", "lam": 1.0}
GROUPS: Flags = {"advantage": "rloo", "samples_per_prompt": 4, "critic_lr": None, "lam": None}
MIN, PREFIX_MIN = ({"assignment": "end", "credit": credit} for credit in ("min", "prefix_min"))

CREDITS = {
    "at the end": AT_END,
    "at the end, lambda 0.95": {**AT_END, "lam": 0.95},
    "even": EVEN,
    "difference": DIFFERENCE,
    "min": MIN,
    "prefix min": PREFIX_MIN,
}
ENDS = {name: CREDITS[name] for name in ("at the end", "difference")}
FOUR = {name: CREDITS[name] for name in ("at the end", "at the end, lambda 0.95", "even", "difference")}


def of_values(credits: dict[str, Flags], n: int, truth: Literal["mean", "sum"], penalty: float = PENALTY) -> dict[str, Arm]:
    """Ways of paying true values in worlds of n sentences: as they are for the mean, divided by n for the sum."""
    scale = {"normalizer": "none"} if truth == "mean" else {"normalizer": "scalar", "reward_mean": 0.0, "reward_std": float(n)}
    return {f"{n} sentences: {name}": Arm({**scale, **paid}, penalty / n, n, truth) for name, paid in credits.items()}


def of_model(paid: Flags, kl: float = OF_MODELS, iterations: int = ITERATIONS, **model) -> Arm:
    """A way of paying what a reward model says."""
    return Arm(paid, kl, model=Model(**model), iterations=iterations)


def standardised(paid: Flags, kl: float = OF_MODELS, iterations: int = ITERATIONS) -> Arm:
    """A way of paying true values on the scale of a reward model's scores."""
    scale = {"normalizer": "scalar", "reward_mean": 0.0, "reward_std": TRUE_STD}
    return Arm({**scale, **paid}, kl, iterations=iterations)


LEVELS = {
    "bandit": ("bandit", BANDIT),
    "bandit, lambda 0.95": ("bandit", {**BANDIT, "lam": 0.95}),
    "token, difference": ("token", DIFFERENCE),
    "segment, at the end": ("segment", AT_END),
    "segment, difference": ("segment", DIFFERENCE),
}


def cure(paid: Flags = DIFFERENCE, **model) -> Arm:
    """Where reward models are at their worst: few pairs, a weak penalty, and twice the time."""
    return of_model(paid, WEAK, LONGER, **{"pairs": PAIRS[0], **model})


# What the cures are for, what they could at most come to, and one reward a response.
SICK, WELL, PLAIN = "difference", "true values", "bandit"
CURES = {
    f"the model: {SICK}": cure(),
    f"the model: {WELL}": standardised(DIFFERENCE, WEAK, LONGER),
    "the model: three models": cure(members=3),
    "the model: three models, mean - std": cure({**DIFFERENCE, "ensemble": "mean_std"}, members=3),
    "the model: GRM": cure(flags={"reg_type": "sft", "reg_coef": 0.05}),
    "the model: pairs of repeats": cure(repeats=True),
    "the model: twelve times the pairs": cure(pairs=PAIRS[-1]),
    f"what is paid: {SICK}": cure(),
    f"what is paid: {WELL}": standardised(DIFFERENCE, WEAK, LONGER),
    f"what is paid: {PLAIN}": cure(BANDIT, level="bandit"),
    "what is paid: bandit, prefix differences": cure({**DIFFERENCE, "prefix_differences": True}, level="bandit"),
    "what is paid: at the end": cure(AT_END),
    "what is paid: difference, by place": cure({**DIFFERENCE, "normalizer": "location"}, fitted=True),
    "what is paid: difference, running moments": cure({**DIFFERENCE, "normalizer": "running"}),
    "what is paid: even, by place (published)": cure(EVEN, fitted=True),
    "what is paid: min": cure(MIN, fitted=True),
    "what is paid: prefix min": cure(PREFIX_MIN, fitted=True),
}

CUTS = {
    "entropy peaks": {},
    "every five tokens": {"segmenter": "benchmarks/evidence_cuts.py:every_five"},
    "every five tokens, two later": {"segmenter": "benchmarks/evidence_cuts.py:two_later"},
    "at random, one in five": {"segmenter": "benchmarks/evidence_cuts.py:at_random"},
}

ARMS: dict[Part, dict[str, Arm]] = {
    # Credit alone: the true values are paid.
    "sums": of_values(FOUR | {"min": MIN}, 4, "sum") | of_values(FOUR | {"min": MIN}, 16, "sum") | of_values(ENDS, 32, "sum"),
    "length": of_values(CREDITS, 4, "mean")
    | of_values(CREDITS, 8, "mean")
    | of_values(CREDITS, 16, "mean")
    | of_values(ENDS, 32, "mean"),
    "penalties": {
        f"{penalty:g}, {name}": arm for penalty in PENALTIES for name, arm in of_values(ENDS, 16, "mean", penalty).items()
    },
    "groups": {
        name: arm
        for n in (4, 16)
        for name, arm in of_values({f"{how}, groups": {**paid, **GROUPS} for how, paid in ENDS.items()}, n, "mean").items()
    },
    # Learned rewards.
    "models": {f"true values: {name}": standardised(paid) for name, paid in ENDS.items()}
    | {
        f"{pairs} pairs: {name}": of_model(paid, level=level, pairs=pairs)
        for pairs in PAIRS
        for name, (level, paid) in LEVELS.items()
    },
    "long": {
        f"{pairs} pairs: {name}": of_model(paid, OF_MODELS * LENGTH / 16, level=level, pairs=pairs)._replace(length=16)
        for pairs in PAIRS[1:]
        for name, (level, paid) in LEVELS.items()
        if name in ("bandit", "segment, difference")
    },
    "cures": CURES,
    # The paper's own choices.
    "thresholds": {
        "bandit": of_model(BANDIT, level="bandit"),
        **{f"{nats:g} nats": of_model(DIFFERENCE, threshold=nats) for nats in (4.7, 4.2)},
        f"{PEAKS:g} nats": of_model(DIFFERENCE),
        **{f"{nats:g} nats": of_model(DIFFERENCE, threshold=nats) for nats in (0.4, 0.2)},
        "token": of_model(DIFFERENCE, level="token"),
    },
    "aggregates": {
        f"{name}: {how}": of_model(paid, agg_func=how) for name, paid in ENDS.items() for how in ("avg", "sum", "last")
    },
    "paid": {
        "score_last, scalar": of_model(AT_END),
        **{f"{kind}, scalar": of_model({"assignment": kind}) for kind in ("difference_end", "difference")},
        **{f"{kind}, by place": of_model({"assignment": kind}, fitted=True) for kind in ("even", "even_mean", "repeat", "end")},
        "even, scalar": of_model({**EVEN, "normalizer": "scalar"}),
        "even, not normalised": of_model({**EVEN, "normalizer": "none"}),
    },
    "cuts": {
        f"{name}: {cut}": of_model({**paid, **flags}, flags=flags) for name, paid in ENDS.items() for cut, flags in CUTS.items()
    },
}


def compared_with(part: Part, name: str) -> str | None:
    """The first arm of the same panel, for all others."""
    panel = name.rpartition(": ")[0]
    first = next(other for other in ARMS[part] if other.rpartition(": ")[0] == panel)
    return None if first == name else first
