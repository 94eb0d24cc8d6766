"""Charts of what trainings have logged: a chart for each number, and in it a line for each run, training and held-out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from denserl.pages.charts import Chart, Reference, Series
from denserl.report.reading import Run, number
from denserl.report.seeds import Curve, mean_curve, name_of

MOST_POINTS = 1500  # of a line; of more every k-th is drawn, and the last
HELD_OUT = "eval_"
BOUNDS = ("_low", "_high")  # of an interval that stands beside its number


class Panel(NamedTuple):
    """One chart: what it is called, and the names of its numbers in metrics.jsonl, of which several may stand in one chart."""

    title: str
    names: tuple[str, ...]
    unit: str = ""


DISTANCE = "Distance from the reference"
# By heading. What stands in none of them comes last, a chart each; docs/metrics.md has what each means.
PPO: dict[str, list[Panel]] = {
    "Rewards": [
        Panel("Reward", ("reward",), "mean score of a response"),
        Panel("Reward by source", ("reward/*",), "mean score of a response"),
        Panel("True reward", ("true_reward",), "mean of a response"),
        Panel("Gold reward", ("gold_reward",), "mean of a response"),
        Panel("Win rate by the judge", ("judge_win_rate",), "share of prompts"),
        Panel("Normalised reward", ("normalised_reward",), "mean of a response"),
        Panel("Paid to a response", ("paid",), "before clip and KL penalty"),
        Panel("Return", ("return",), "KL penalty included"),
        Panel("Quantiles of rewards", ("reward_q05", "reward_q50", "reward_q95"), "score"),
        Panel("Spread of rewards", ("reward_std", "true_reward_std", "gold_reward_std"), "standard deviation"),
    ],
    DISTANCE: [  # followed by what rewards are for their KL
        Panel("KL", ("kl",), "nats a response"),
        Panel("KL by token", ("kl_per_token",), "nats a token"),
        Panel("Weight of the KL", ("kl_coefficient",), "coefficient"),
        Panel("Perplexity of what was sampled", ("perplexity", "ref_perplexity"), "of policy and reference"),
    ],
    "Responses": [
        Panel("Length", ("response_length",), "tokens"),
        Panel("Entropy of the policy", ("entropy",), "nats a token"),
        Panel("Ended with an end token", ("ended",), "share of responses"),
        Panel("Cut at the longest length", ("capped",), "share of responses"),
        Panel("Segments", ("segments",), "of a response"),
        Panel("Length of segments", ("segment_length",), "tokens"),
        Panel("Segments by source", ("segments/*",), "of a response"),
    ],
    "Updates": [
        Panel("Clipped tokens of the policy", ("clip_fraction",), "share of tokens"),
        Panel("Clipped values", ("value_clip_fraction",), "share of tokens"),
        Panel("Explained variance", ("explained_variance",), "of returns, by the critic"),
        Panel("KL of an update", ("approx_kl",), "nats a token"),
        Panel("Ratio of policies", ("ratio",), "mean"),
        Panel("Advantages", ("advantage_mean", "advantage_std"), "before whitening"),
        Panel("Policy loss", ("policy_loss",), "mean of the steps"),
        Panel("Value loss", ("value_loss",), "mean of the steps"),
        Panel("Further losses", ("kl_loss", "ptx_loss", "entropy_loss"), "mean of the steps"),
        Panel("Norms of gradients", ("actor_grad_norm", "critic_grad_norm"), "before clipping"),
        Panel("Learning rates", ("actor_lr", "critic_lr"), "of the first step"),
        Panel("Steps that were skipped", ("skipped_steps",), "steps"),
    ],
    "Speed": [
        Panel("Seconds by phase", ("rollout_seconds", "scoring_seconds", "update_seconds"), "seconds"),
        Panel(
            "Tokens a second by phase",
            ("rollout_tokens_per_second", "scoring_tokens_per_second", "update_tokens_per_second"),
            "response tokens, all ranks",
        ),
    ],
}
SUPERVISED: dict[str, list[Panel]] = {
    "Losses and accuracies": [
        Panel("Loss", ("loss",), "mean since the last log"),
        Panel("Accuracy", ("accuracy",), "share of pairs"),
        Panel("Accuracy of preferring the longer", ("length_accuracy",), "share of pairs"),
        Panel("Losses by objective", ("bt_loss", "reg_loss", "pos_loss"), "before weights"),
        Panel("Accuracy of steps", ("step_accuracy",), "share of steps"),
        Panel("F1 of first errors", ("first_error_f1",), "F1"),
        Panel("Error of ratings", ("mse", "mean_mse"), "mean squared"),
    ],
    "Scores and lengths": [
        Panel("Scores of both sides", ("chosen_reward", "rejected_reward"), "mean score"),
        Panel("Difference of scores", ("reward_difference",), "chosen - rejected"),
        Panel("All scores", ("score_mean", "score_std"), "mean and spread"),
        Panel("Score and length", ("length_correlation",), "correlation"),
        Panel("Segments", ("segments_per_response",), "of a response"),
        Panel("Length of segments", ("segment_length",), "tokens"),
        Panel("Length of responses", ("response_length",), "tokens"),
    ],
    "Updates": [
        Panel("Norm of the gradient", ("grad_norm",), "before clipping"),
        Panel("Learning rate", ("learning_rate",), "of the step"),
        Panel("Steps that were skipped", ("skipped_steps",), "since the last log"),
    ],
}
REST = "Further numbers"
NO_METRICS = {"step", "epoch"}


def sections(
    groups: Sequence[Sequence[Run]], kind: str, references: Mapping[str, Sequence[Reference]] | None = None
) -> list[tuple[str, list[Chart]]]:
    """Headings and their charts, of trainings of one kind.

    Args:
        groups: of runs, each drawn as one line, the mean over its runs.
        references: lines across the charts of some numbers, by their names.
    """
    known, xlabel = (PPO, "iteration") if kind == "train-ppo" else (SUPERVISED, "optimiser step")
    names = dict.fromkeys(base(name) for group in groups for run in group for row in run.metrics for name in row)
    left = [name for name in names if name not in NO_METRICS and not name.endswith(BOUNDS)]
    found = []
    for heading, panels in known.items():
        charts = []
        for panel in panels:
            there = [name for name in left if any(_matches(name, pattern) for pattern in panel.names)]
            left = [name for name in left if name not in there]
            # Lines of several runs and of several numbers would be too many for one chart.
            split = len(groups) > 1 and len(there) > 1
            shown = [Panel(f"{panel.title}: {name}", (name,), panel.unit) for name in there] if split else [panel]
            for one in shown:
                charts += _charts(groups, one, one.names if split else there, xlabel, references or {})
        found.append((heading, charts + (_for_its_distance(groups) if heading == DISTANCE else [])))
    rest = [chart for name in left for chart in _charts(groups, Panel(name, (name,)), [name], xlabel, references or {})]
    return [(heading, charts) for heading, charts in [*found, (REST, rest)] if charts]


def base(name: str) -> str:
    """The name of a number, be it of training or held-out."""
    return name.removeprefix(HELD_OUT)


def curve_of(run: Run, name: str) -> Curve:
    """A number by step, as the file has it; of several rows of one step the last. A gap where it was not finite."""
    at: dict[float, float | None] = {}
    for row in run.metrics:
        step = number(row.get("step"))
        if step is not None and name in row and (row[name] is None or number(row[name]) is not None):
            at[step] = number(row[name])
    steps = _thinned(sorted(at))
    return Curve(steps, [at[step] for step in steps])


def _charts(
    groups: Sequence[Sequence[Run]],
    panel: Panel,
    names: Sequence[str],
    xlabel: str,
    references: Mapping[str, Sequence[Reference]],
) -> list[Chart]:
    """The chart of a panel; none where no run has a number of it."""
    series = []
    for name in names:
        for place, group in enumerate(groups):
            for held_out in (False, True):
                key = HELD_OUT + name if held_out else name
                curve = mean_curve([found for run in group if (found := curve_of(run, key)).x] or [Curve([], [])])
                if any(value is not None for value in curve.y):
                    label = _label(group, groups, name, names, held_out)
                    curve = _with_bounds(curve, group, key)
                    series.append((label, curve, held_out, place))
    if not series:
        return []
    # Colours tell runs apart, or what a single run's lines are of; held-out lines of several runs are dashed.
    several = len({place for *_, place in series}) > 1
    drawn = [
        Series(label, curve.x, curve.y, "line", curve.low, curve.high, place if several else None, several and held_out)
        for label, curve, held_out, place in series
    ]
    lines = [line for name in names for line in references.get(name, ())]
    return [Chart(panel.title, xlabel, panel.unit or panel.title, drawn, lines)]


def _for_its_distance(groups: Sequence[Sequence[Run]]) -> list[Chart]:
    """Held-out rewards against KL, of each evaluation a point: what a policy has gained for its distance."""
    charts = []
    for name in ("true_reward", "gold_reward", "reward"):
        series = []
        for place, group in enumerate(groups):
            rows = [row for run in group for row in run.metrics]
            both = [(number(row.get(f"{HELD_OUT}kl")), number(row.get(HELD_OUT + name))) for row in rows]
            points = sorted((kl, reward) for kl, reward in both if kl is not None and reward is not None)
            if points:
                distances, rewards = zip(*points, strict=True)
                series.append(Series(name_of(group), distances, rewards, "points", colour=place))
        if series:
            charts.append(
                Chart(f"Held-out {name.replace('_', ' ')} for its KL", "KL (nats a response)", "mean of a response", series)
            )
    return charts


def _label(group: Sequence[Run], groups: Sequence[Sequence[Run]], name: str, names: Sequence[str], held_out: bool) -> str:
    parts = [name_of(group)] if len(groups) > 1 or len(group) > 1 else []
    parts += [name] if len(names) > 1 or "/" in name else []
    return ", ".join([*parts, "held-out" if held_out else "training"])


def _with_bounds(curve: Curve, group: Sequence[Run], key: str) -> Curve:
    """The curve of a single run with the bounds that its rows have beside the number."""
    if len(group) > 1 or curve.low is not None:
        return curve
    low, high = (curve_of(group[0], key + end) for end in BOUNDS)
    return curve._replace(low=low.y, high=high.y) if low.x == high.x == curve.x else curve


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _thinned(steps: list[float]) -> list[float]:
    """At most MOST_POINTS of them, evenly, the first and the last among them."""
    if len(steps) <= MOST_POINTS:
        return steps
    stride = -(-len(steps) // MOST_POINTS)
    return sorted({*steps[::stride], steps[-1]})


def last(run: Run, name: str) -> float | None:
    """The last number of a name that is one."""
    return next((found for row in reversed(run.metrics) if (found := number(row.get(name))) is not None), None)


def first(run: Run, name: str) -> float | None:
    """The first number of a name that is one."""
    return next((found for row in run.metrics if (found := number(row.get(name))) is not None), None)
