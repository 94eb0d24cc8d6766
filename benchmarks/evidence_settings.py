"""Every run of the evidence: the one table of settings, by part and name. evidence.py makes the runs.

Each arm says in what world it runs, what is paid, and how; all else is the model type `tiny`. A name is "PANEL: ARM" or the
arm alone; arms are compared with the first one of their panel. Arms of the same settings are one run.
"""

from typing import Literal, NamedTuple

from denserl.world.make import THRESHOLD as PEAKS

Part = Literal["length", "sums", "penalties", "groups", "models", "longer", "cures", "thresholds", "aggregates", "paid", "cuts"]
Flags = dict[str, object]

LENGTHS = (4, 8, 16, 32)
# Of the two later questions.
LENGTH = 8
ITERATIONS, LONGER = 40, 120
PAIRS = (1000, 4000, 12000)
THRESHOLDS = {"segment": PEAKS, "token": 0.0, "bandit": 1000.0}
# The weight of the KL for each sentence, where the truth is a mean: what a sentence more is worth falls with their number.
PENALTY, PENALTIES = 0.1, (0.4, 0.1, 0.025)
# The same of rewards in standard deviations of a reward model's scores.
OF_MODELS, WEAK = 0.05, 0.0125


class Model(NamedTuple):
    """A reward model: where it cuts, of how many pairs it is trained, and further flags of train-rm."""

    level: str = "segment"
    pairs: int = 4000
    threshold: float | None = None  # nats; None: the level's
    agg_func: str = "avg"
    flags: Flags = {}
    members: int = 1  # of an ensemble
    repeats: bool = False  # whether a further third of the pairs says what was said before, and loses for it
    fitted: bool = False  # whether what it pays is normalised by place


class Arm(NamedTuple):
    """A way of paying in a world: flags of train-ppo, and the reward model; none: the sentences' true values."""

    paid: Flags
    length: int = LENGTH
    truth: Literal["mean", "sum"] = "mean"
    kl: float = OF_MODELS
    model: Model | None = None
    iterations: int = ITERATIONS


AT_END: Flags = {"assignment": "score_last"}
DIFFERENCE: Flags = {"assignment": "difference_end"}
EVEN: Flags = {"assignment": "even"}
GROUPS: Flags = {"advantage": "rloo", "samples_per_prompt": 4, "critic_lr": None}

CREDITS = {
    "at the end": AT_END,
    "at the end, lambda 1": {**AT_END, "lam": 1.0},
    "even": EVEN,
    "difference": DIFFERENCE,
    "min": {"assignment": "end", "credit": "min"},
    "prefix min": {"assignment": "end", "credit": "prefix_min"},
}
ENDS = {name: CREDITS[name] for name in ("at the end", "difference")}
FOUR = ("at the end", "at the end, lambda 1", "even", "difference")


def of_truth(credits: dict[str, Flags], lengths=LENGTHS, truth: Literal["mean", "sum"] = "mean") -> dict[str, Arm]:
    """Ways of paying true values, in worlds of these lengths."""
    return {f"{n} sentences: {name}": Arm(paid, n, truth, PENALTY) for n in lengths for name, paid in credits.items()}


def of_model(paid: Flags, kl: float = OF_MODELS, iterations: int = ITERATIONS, **model) -> Arm:
    """A way of paying what a reward model says."""
    return Arm(paid, kl=kl, model=Model(**model), iterations=iterations)


LEVELS = {
    "bandit": ("bandit", {"assignment": "mean_last"}),
    "token, difference": ("token", DIFFERENCE),
    "segment, at the end": ("segment", AT_END),
    "segment, difference": ("segment", DIFFERENCE),
}


BUT_TOKENS = {name: way for name, way in LEVELS.items() if way[0] != "token"}


def at_sizes(kl: float, iterations: int, sizes: tuple[int, ...], levels: dict = LEVELS) -> dict[str, Arm]:
    """Levels side by side, with reward models of so many pairs."""
    return {
        f"{pairs} pairs: {name}": of_model(paid, kl, iterations, level=level, pairs=pairs)
        for pairs in sizes
        for name, (level, paid) in levels.items()
    }


def cure(paid: Flags, **model) -> Arm:
    """Where reward models are at their worst: few pairs and a weak penalty."""
    return of_model(paid, WEAK, pairs=PAIRS[0], **model)


CURES = {
    **{name: cure(paid, level=level) for name, (level, paid) in BUT_TOKENS.items()},
    "even, by place (published)": cure(EVEN, fitted=True),
    "even, by place, min": cure({**EVEN, "credit": "min"}, fitted=True),
    "difference, by place": cure({**DIFFERENCE, "normalizer": "location"}, fitted=True),
    "difference, running moments": cure({**DIFFERENCE, "normalizer": "running", "score_clip": 0.8}),
    "difference, running scale": cure({**DIFFERENCE, "normalizer": "running_scale"}),
    "bandit, prefix differences": cure({**DIFFERENCE, "prefix_differences": True}, level="bandit"),
    "difference, three models": cure(DIFFERENCE, members=3),
    "difference, three models, mean - std": cure({**DIFFERENCE, "ensemble": "mean_std"}, members=3),
    "difference, GRM": cure(DIFFERENCE, flags={"reg_type": "sft", "reg_coef": 0.05}),
    "difference, pairs of repeats": cure(DIFFERENCE, repeats=True),
}

CUTS = {
    "entropy peaks": {},
    "as many, evenly": {"segmenter": "benchmarks/evidence_cuts.py:evenly"},
    "as many, at random": {"segmenter": "benchmarks/evidence_cuts.py:at_random"},
}

ARMS: dict[Part, dict[str, Arm]] = {
    # Credit alone: the true values are paid.
    "length": of_truth(CREDITS, LENGTHS[:3]) | of_truth({name: CREDITS[name] for name in FOUR}, LENGTHS[3:]),
    "sums": of_truth({name: CREDITS[name] for name in ("at the end", "even", "difference", "min")}, (4, 16), "sum")
    | of_truth(ENDS, (32,), "sum"),
    "penalties": {
        f"16 sentences, {penalty:g}: {name}": Arm(CREDITS[name], 16, kl=penalty)
        for penalty in PENALTIES
        for name in ("at the end", "even", "difference")
    },
    "groups": of_truth({f"{name}, groups": {**paid, **GROUPS} for name, paid in ENDS.items()}, (4, 16, 32)),
    # Learned rewards.
    "models": {f"true values: {name}": Arm(paid, kl=PENALTY) for name, paid in ENDS.items()}
    | at_sizes(OF_MODELS, ITERATIONS, PAIRS),
    "longer": at_sizes(WEAK, LONGER, (PAIRS[0], PAIRS[-1]), BUT_TOKENS),
    "cures": CURES,
    # The paper's own ablations.
    "thresholds": {
        f"{nats:g} nats": of_model(DIFFERENCE, threshold=nats) for nats in (1000.0, 3.0, 2.25, PEAKS, 1.0, 0.5, 0.0)
    },
    "aggregates": {
        f"{name}: {how}": of_model(paid, agg_func=how) for name, paid in ENDS.items() for how in ("avg", "sum", "last")
    },
    "paid": {
        **{f"{kind}, scalar": of_model({"assignment": kind}) for kind in ("score_last", "difference_end", "difference")},
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
