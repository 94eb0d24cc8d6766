"""What the over-optimisation plots draw, read back from the figure before it is written."""

import json

import numpy as np
import pytest

from denserl.evaluation import plots
from denserl.evaluation.plots import Band, Curve, plot_judgements, plot_over_optimisation
from denserl.trainer.trackers import read_metrics


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The panels of the figures that are written."""
    kept, save = [], plots._save

    def keep(figure, path):
        kept.extend(figure.axes)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return kept


def lines(panel) -> dict[str, tuple[list, list]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines}


def test_proxy_and_gold_stand_side_by_side(drawn, tmp_path):
    x, y = [0.0, 0.2, 0.4], [0.0, 1.0, 0.5]
    gold = {"a": Curve(x, y), "b": Band(x, [0.0, 2.0, 3.0], [None, 1.0, 2.0], [None, 3.0, 4.0])}
    plot_over_optimisation(gold, tmp_path / "new/p.png", xlabel="KL", proxy={"b": Curve(x, x)}, proxy_label="by proxy")
    left, right = drawn
    assert (left.get_ylabel(), right.get_ylabel(), right.get_xlabel()) == ("by proxy", "gold reward", "KL")
    assert lines(left) == {"b": (x, x)} and lines(right) == {"a": (x, y), "b": (x, [0.0, 2.0, 3.0])}
    assert left.lines[0].get_color() == right.lines[1].get_color() != right.lines[0].get_color()
    (band,) = right.collections
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    # Where a bound is not known, nothing is filled.
    assert {tuple(corner) for corner in corners} == {(0.2, 1.0), (0.2, 3.0), (0.4, 2.0), (0.4, 4.0)}
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["a", "b"] and left.get_legend() is None
    assert (tmp_path / "new/p.png").stat().st_size > 1000


def test_gold_alone_is_one_panel_and_many_points_have_no_marks(drawn, tmp_path):
    curves = {str(count): Curve(list(range(count)), [0.0] * count) for count in (5, 100)}
    plot_over_optimisation(curves, tmp_path / "p.png", xlabel="KL", ylabel="true reward")
    (panel,) = drawn
    assert panel.get_ylabel() == "true reward"
    assert [line.get_marker() == "None" for line in panel.lines] == [False, True]


def test_a_kl_goes_by_its_root_and_lines_beyond_the_colours_are_dashed(drawn, tmp_path):
    curves = {str(number): Curve([0.0, 1.0, 4.0, 9.0], [0.0] * 4) for number in range(11)}
    plots.plot_side_by_side({"true reward": curves}, tmp_path / "p.png", xlabel="KL", scale="roots")
    (panel,) = drawn
    places = panel.transData.transform([(x, 0.0) for x in (0.0, 1.0, 4.0, 9.0)])[:, 0]
    assert np.diff(places) == pytest.approx([places[1] - places[0]] * 3) and panel.get_xlim()[0] == 0
    first, last = panel.lines[0], panel.lines[10]
    assert first.get_color() == last.get_color() and first.get_linestyle() != last.get_linestyle()
    (legend,) = panel.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*curves] and panel.get_legend() is None


def test_judgements_are_read_from_the_metrics(drawn, tmp_path):
    rows = [
        {"step": 0, "eval_kl": 0.0, "eval_reward": 1.0, "eval_true_reward": 0.5},
        {"step": 1, "reward": 7.0},
        {"step": 1, "eval_kl": 0.3, "eval_reward": 2.0, "eval_true_reward": None},
        {"step": 2, "eval_kl": 0.7, "eval_reward": 3.0, "eval_true_reward": 0.25},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_judgements(read_metrics(path), tmp_path / "over_optimisation.png")
    assert [panel.get_ylabel() for panel in drawn] == ["reward that is trained on", "true reward"]
    assert list(lines(drawn[0]).values()) == [([0.0, 0.3, 0.7], [1.0, 2.0, 3.0])]
    assert list(lines(drawn[1]).values()) == [([0.0, 0.7], [0.5, 0.25])]
    assert (tmp_path / "over_optimisation.png").exists()


def test_without_a_judge_there_is_no_plot(drawn, tmp_path):
    plot_judgements([{"step": 0, "eval_kl": 0.0, "eval_reward": 1.0}], tmp_path / "over_optimisation.png")
    assert not drawn and not (tmp_path / "over_optimisation.png").exists()
