"""Plots, drawn with matplotlib without a display. Numbers come in ready; nothing is computed here but the curves drawn."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from denserl.rewards.strength import DECILE, PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from denserl.rewards.normalizer_fit import Groups, Line

# Okabe and Ito's palette, told apart with any colour vision; the marks tell lines apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#8C564B", "#5D3A9B")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ("-", "--", ":")  # of the first ten lines, the next ten, and so on
FEW_POINTS = 40
FEW_LINES = 5  # of which a panel has room for a legend of its own


class Curve(NamedTuple):
    """One line of a plot."""

    x: list[float]
    y: list[float]


class Band(NamedTuple):
    """One line of a plot with the interval of each of its points; None where one is not known."""

    x: list[float]
    y: list[float]
    low: list[float | None]
    high: list[float | None]


def plot_normalizer(groups: "Groups", mean: "Line", std: "Line", path: Path) -> None:
    """Mean and std of segment rewards by place, with the fitted lines; points sized by their number of rewards.

    Args:
        groups, mean, std: see denserl/rewards/normalizer_fit.py.
    """
    figure, panels = _figure(1, 2, (9, 3.6))
    curve = np.linspace(groups.place.min(), 1, 400)
    size = 8 + 60 * groups.count / groups.count.max()
    for panel, points, line, name in zip(panels, (groups.mean, groups.std), (mean, std), ("mean", "std"), strict=True):
        panel.scatter(groups.place, points, s=size, alpha=0.5, linewidths=0, label="groups")
        fitted = line.slope * np.log(curve) + line.intercept
        panel.plot(curve, fitted, color="C1", label=f"{line.slope:.3f} ln p {line.intercept:+.3f}   (R² {line.r2:.3f})")
        panel.set(xlabel="place p = k / K", ylabel=f"{name} of segment rewards")
        panel.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_over_optimisation(
    gold: dict[str, Curve | Band],
    path: Path,
    *,
    xlabel: str,
    ylabel: str = "gold reward",
    proxy: dict[str, Curve | Band] | None = None,
    proxy_label: str = "proxy reward",
) -> None:
    """What rewards are worth against KL, one line per name; on the left, where it is given, what the proxy makes of them.

    Args:
        gold, proxy: name -> Curve or Band.
        ylabel, proxy_label: of the gold and of the proxy rewards.
    """
    plot_side_by_side({proxy_label: proxy, ylabel: gold} if proxy else {ylabel: gold}, path, xlabel=xlabel)


def plot_side_by_side(
    panels: dict[str, dict[str, Curve | Band]],
    path: Path,
    *,
    xlabel: str,
    scale: Literal["linear", "doublings", "roots"] = "linear",
) -> None:
    """Panels with an x-axis of one meaning, each with lines of its own.

    Args:
        panels: label of the y-axis -> name -> Curve or Band. A name has one colour in all panels; a panel of several names has
            a legend, and where there are many all have one below them; lines of many points have no marks.
        scale: of the x-axis: doublings for numbers that double, roots for a KL, which goes by its square root.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    columns = 2 * len(panels)
    below = -(-len(names) // columns) if len(names) > FEW_LINES else 0
    figure, axes = _figure(1, len(panels), (1.2 + 4.4 * len(panels), 3.6 + 0.2 * below))
    handles = {}
    for panel, (label, curves) in zip(np.ravel(axes), panels.items(), strict=True):
        for name, curve in curves.items():
            again, number = divmod(names.index(name), len(COLOURS))
            colour, mark = COLOURS[number], MARKS[(number + again) % len(MARKS)]
            marked = {"marker": mark, "markersize": 4} if len(curve.x) <= FEW_POINTS else {}
            dash = DASHES[again % len(DASHES)]
            (handles[name],) = panel.plot(curve.x, curve.y, color=colour, linestyle=dash, linewidth=1.6, label=name, **marked)
            if isinstance(curve, Band):
                # matplotlib leaves a gap where a bound is not a number.
                low, high = (np.array(bound, dtype=float) for bound in (curve.low, curve.high))
                panel.fill_between(curve.x, low, high, color=colour, alpha=0.18, linewidth=0)
        panel.set(xlabel=xlabel, ylabel=label)
        if scale == "roots":
            panel.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
            panel.set_xlim(left=0)
        elif scale == "doublings":
            panel.set_xscale("log", base=2)
        if scale != "linear":
            panel.xaxis.set_major_formatter("{x:g}")
        if len(curves) > 1 and not below:
            panel.legend(frameon=False, fontsize=9)
    if below:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    _save(figure, path)


def plot_intervals(intervals: dict[str, tuple[float, float]], path: Path, *, xlabel: str) -> None:
    """One point with its interval for each name, one under the other.

    Args:
        intervals: name -> middle and half-width; a half-width that is not a number is not drawn.
    """
    names = list(intervals)
    figure, panel = _figure(1, 1, (6.4, 0.8 + 0.32 * len(names)))
    middles, halves = np.array(list(intervals.values()), dtype=float).T
    places = np.arange(len(names))[::-1]
    panel.errorbar(middles, places, xerr=np.nan_to_num(halves), fmt="o", color=COLOURS[0], capsize=3, markersize=5)
    panel.set(xlabel=xlabel, yticks=places, yticklabels=names)
    _save(figure, path)


def _figure(rows: int, columns: int, size: tuple[float, float]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=True)
    for panel in np.ravel(panels):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    return figure, panels


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_reliability(calibration: dict, path: Path) -> None:
    """Accuracy of pairs against the confidence of their scores, with the pairs in each bin below it.

    Args:
        calibration: what denserl.evaluation.statistics.calibration returns.
    """
    bins = calibration["bins"]
    figure, (panel, counts) = _figure(2, 1, (4.6, 4.8))
    panel.get_gridspec().set_height_ratios([3, 1])
    middle = [(row["low"] + row["high"]) / 2 for row in bins]
    width = [0.9 * (row["high"] - row["low"]) for row in bins]
    panel.plot([0.5, 1], [0.5, 1], color="0.35", linestyle="--", linewidth=1, label="calibrated")
    means = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
    panel.plot(*means, color=COLOURS[0], marker="o", markersize=5, linewidth=1.6, label="measured")
    panel.set(xlim=(0.5, 1), ylim=(0, 1.02), ylabel="share of pairs judged rightly")
    panel.set_title(f"ECE {calibration['ece']:.3f}   Brier {calibration['brier']:.3f}", fontsize=10, loc="left")
    panel.legend(frameon=False, fontsize=9, loc="lower right")
    counts.bar(middle, [row["n"] for row in bins], width, color="0.6")
    counts.set(xlim=(0.5, 1), xlabel="confidence, sigmoid of the difference of scores", ylabel="pairs")
    _save(figure, path)


def plot_judgements(rows: list[dict], path: Path) -> None:
    """What PPO maximises, and gold and true rewards that it does not, against KL; nothing where neither is known.

    rows: of a metrics.jsonl.
    """
    keys = {"reward": "reward that is trained on", "gold_reward": "gold reward", "true_reward": "true reward"}
    panels: dict[str, dict[str, Curve | Band]] = {}
    for key, label in keys.items():
        # A number that was not finite is None there.
        points = [(row.get("eval_kl"), row.get(f"eval_{key}")) for row in rows]
        points = [point for point in points if None not in point]
        if points:
            panels[label] = {key: Curve(*map(list, zip(*points, strict=True)))}
    if len(panels) > 1:
        plot_side_by_side(panels, path, xlabel="KL of held-out rollouts (nats)")


def plot_best_of_n(results: dict, path: Path) -> None:
    """Best-of-n's gains over n = 1 against KL, by both estimators; the interval is of the unbiased one."""

    def lines(score: str) -> dict:
        unbiased, first_n = (results[name][f"{score}_gain"] for name in ("unbiased", "first_n"))
        band = Band(results["kl"], unbiased["mean"], unbiased["low"], unbiased["high"])
        return {"unbiased, with 95 % interval": band, "first n": Curve(results["kl"], first_n["mean"])}

    plot_over_optimisation(
        lines("gold"),
        path,
        xlabel="KL of best-of-n (nats)",
        ylabel="gold reward, gain over n = 1",
        proxy=lines("proxy"),
        proxy_label="proxy reward, gain over n = 1",
    )


def plot_stored_answers(curves: dict, path: Path) -> None:
    """The accuracy of each way of choosing among n stored answers, with 95 % intervals over problems.

    curves: `n`, and of each name `mean`, `low` and `high`.
    """
    lines: dict[str, Curve | Band] = {
        name: Band(curves["n"], each["mean"], each["low"], each["high"]) for name, each in curves.items() if name != "n"
    }
    plot_side_by_side({"share of problems answered rightly": lines}, path, xlabel="answers to choose from", scale="doublings")


def plot_by_strength(groups: dict[str, dict], path: Path) -> None:
    """The accuracy of pairs in each tenth of them by strength, with 95 % intervals.

    groups: of a suite's results; those that are read are named DECILE and a number.
    """
    tenths = [group for name, group in groups.items() if name.startswith(DECILE)]
    low, high = zip(*(group["interval"] for group in tenths), strict=True)
    band = Band(list(range(1, len(tenths) + 1)), [group["accuracy"] for group in tenths], list(low), list(high))
    panels: dict[str, dict[str, Curve | Band]] = {"share of pairs judged rightly": {"deciles": band}}
    plot_side_by_side(panels, path, xlabel="decile by mean preference difference, the lowest first")


def plot_strength(mean: np.ndarray, part: np.ndarray, deciles: list[dict], path: Path) -> None:
    """How many pairs have which strength, by parts; and how far members are apart in each tenth of them.

    Args:
        mean: (N,) mean differences. part: (N,) numbers of their parts, in the order of PARTS. deciles: of a summary.
    """
    figure, (counts, spreads) = _figure(1, 2, (9.6, 3.6))
    edges = np.histogram_bin_edges(mean, bins=min(60, max(10, len(mean) // 20)))
    own = [mean[part == number] for number in range(len(PARTS))]
    counts.hist(own, bins=edges, stacked=True, color=COLOURS[: len(PARTS)], label=list(PARTS))
    counts.axvline(0, color="0.35", linestyle="--", linewidth=1)
    counts.set(xlabel="mean preference difference", ylabel="pairs")
    counts.yaxis.get_major_locator().set_params(integer=True)
    counts.legend(frameon=False, fontsize=9)
    spreads.plot([row["mean"] for row in deciles], [row["std"] for row in deciles], color=COLOURS[0], marker="o", markersize=4)
    spreads.axvline(0, color="0.35", linestyle="--", linewidth=1)
    spreads.set(xlabel="mean preference difference, of each tenth of the pairs", ylabel="std over members", ylim=(0, None))
    _save(figure, path)
