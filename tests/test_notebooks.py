"""The notebooks, run to their ends at a fiftieth of the world's data: the fast suite runs the first, `make faults` all."""

import json
import math
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import tiny_models

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
SCALE = 0.02


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What is trained is shared, as it is in the folder of a reader."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def run(work, monkeypatch):
    """What the names of a notebook hold when its cells have run, with the parameters of the tests in the place of its own."""
    matplotlib.use("Agg")
    monkeypatch.chdir(work)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))

    def run(number: int) -> dict:
        (path,) = [path for path in NOTEBOOKS if path.name.startswith(f"{number}_")]
        names: dict = {}
        with tiny_models.restored_environment():
            for cell in cells_of(path):
                source = "".join(cell["source"])
                if "parameters" in cell["metadata"].get("tags", ()):
                    assert source.startswith("SCALE = ") and 'WORK = "runs/notebooks"' in source
                    source = f"SCALE, WORK = {SCALE}, {str(work)!r}"
                if cell["cell_type"] == "code":
                    exec(compile(source, path.name, "exec"), names)
        return names

    return run


def test_notebooks_are_numbered_explained_and_without_outputs():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number}_" for number in range(1, 6)]
    for path in NOTEBOOKS:
        cells = cells_of(path)
        assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith(f"# {path.name[0]}. ")
        assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in cells) == 1
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_segments_and_entropies(run):
    names = run(1)
    lengths = names["batch"].response_mask.sum(1).tolist()
    text = names["rows"][0]["chosen"]
    assert len(names["cut"](0, 0.0)) == lengths[0] - 1  # every token but the end of turn
    assert names["cut"](0, 1000.0) == [text]
    assert names["entropy"].max() < math.log(len(names["tokenizer"]))


@pytest.mark.long
def test_a_reward_model_and_its_calibration(run):
    names = run(2)
    assert names["metrics"]["eval_accuracy"] == pytest.approx(names["right"].mean())
    encoded, reading = names["encoded"], names["scorer"].read([names["encoded"]])[0]
    assert sum(names["rewards"]) / len(names["rewards"]) == pytest.approx(reading.score) and encoded.ended
    assert names["shown"].responses[0].sources[0].score == pytest.approx(reading.score, rel=1e-4)
    assert "<div" in names["shown"]._repr_html_()


@pytest.mark.long
def test_ppo_at_three_levels(run):
    names = run(3)
    assert [round(value, 2) for value in names["paid"][0].tolist()] == [0, 0, 1.2, 0, -0.75, 0, 0, 0, 0.15]
    rows = {level: [row["step"] for row in rows] for level, rows in names["runs"].items()}
    assert rows == dict.fromkeys(("segment", "token", "bandit"), [0, 1, 2])


@pytest.mark.long
def test_a_process_reward(run):
    names = run(4)
    for logits in names["logits"].values():
        paid = names["step_rewards"](names["torch"].tensor([logits]), names["torch"].tensor([len(logits)]), "difference")
        assert paid.sum().item() == pytest.approx(1 / (1 + math.exp(-logits[-1])) - 0.5, abs=1e-6)


@pytest.mark.long
def test_a_reward_source_of_ones_own(run):
    names = run(5)
    says = names["names_the_wish"]([names["prompt"]], ["Coupons keep sailing cheap. Dinghies belong to sailing."])
    assert says == [[(27, 1.0), (55, 0.0)]]
    assert [len(rows) for rows in names["runs"].values()] == [3, 3, 3]
    assert "reward/no_repeats" in names["runs"]["and no repeats"][-1]
