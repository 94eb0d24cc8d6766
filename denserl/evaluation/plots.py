"""Plots, drawn with matplotlib without a display. Numbers come in ready; nothing is computed here but the curves drawn."""

from pathlib import Path

import numpy as np


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


def _figure(rows: int, columns: int, size: tuple[float, float]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=True)


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
