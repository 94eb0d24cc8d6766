"""Plots, drawn with matplotlib without a display. Numbers come in ready; nothing is computed here but the curves drawn."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

# Okabe and Ito's palette, told apart with any colour vision; the marks tell levels apart in print.
LEVEL_COLOURS = {"segment": "#0072B2", "token": "#D55E00", "bandit": "#009E73"}
LEVEL_MARKS = {"segment": "o", "token": "s", "bandit": "^"}


class Curve(NamedTuple):
    """One line of a plot."""

    x: list[float]
    y: list[float]


def plot_normalizer(groups, mean, std, path: Path) -> None:
    """Mean and std of segment rewards by place, with the fitted lines; points sized by their number of rewards.

    Args:
        groups: denserl.rewards.fit.Groups. mean, std: denserl.rewards.fit.Line.
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


def plot_levels(
    curves: dict[str, Curve],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    reference: tuple[float, str] | None = None,
    points: dict[str, Curve] | None = None,
) -> None:
    """One curve per reward level.

    Args:
        curves, points: level -> Curve. Curves are lines with a mark at each point; points stand alone, large and hollow.
        reference: height and name of a dashed line across the plot.
    """
    figure, panel = _figure(1, 1, (5.6, 3.6))
    for level, curve in curves.items():
        panel.plot(*curve, color=LEVEL_COLOURS[level], marker=LEVEL_MARKS[level], markersize=4, linewidth=1.6, label=level)
    for level, curve in (points or {}).items():
        style = {"marker": LEVEL_MARKS[level], "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.8}
        panel.plot(*curve, color=LEVEL_COLOURS[level], linestyle="none", clip_on=False, **style)
    if reference is not None:
        height, name = reference
        panel.axhline(height, color="0.35", linestyle="--", linewidth=1)
        # x in shares of the width, y in data: just above the line, at the left where curves are still low.
        panel.annotate(name, (0.01, height), (0, 3), panel.get_yaxis_transform(), "offset points", color="0.25", fontsize=9)
    panel.set(xlabel=xlabel, ylabel=ylabel)
    panel.legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderpad=0.2)
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


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
