"""Checkpoints with stand-ins for engines: complete or absent, the newest by number, old ones dropped, random state."""

from pathlib import Path

import pytest
import torch

from denserl.trainer.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint


class Engine:
    """Keeps one number in a file, as DeepSpeed keeps its tensors; may fail on the way."""

    def __init__(self, number: int = 0, fails: bool = False):
        self.number, self.fails = number, fails

    def save_checkpoint(self, folder, tag, save_latest):
        target = Path(folder) / tag
        target.mkdir(parents=True)
        (target / "number").write_text(str(self.number))
        if self.fails:
            raise OSError("disk full")

    def load_checkpoint(self, folder, tag):
        self.number = int((Path(folder) / tag / "number").read_text())


def save(folder, iteration, number=1, keep=10, fails=False, tensors=None):
    engines = {"actor": Engine(number), "critic": Engine(-number, fails)}
    return save_checkpoint(folder, iteration, {"iteration": iteration, "beta": 0.1}, engines, tensors or {}, keep)


def test_what_is_written_comes_back(tmp_path):
    tensors = {"ema.0": torch.tensor([1.5, -2.0])}
    path = save(tmp_path, 3, number=7, tensors=tensors)
    engines = {"actor": Engine(), "critic": Engine()}
    state, read = load_checkpoint(path, engines)
    assert state == {"iteration": 3, "beta": 0.1}
    assert {name: engine.number for name, engine in engines.items()} == {"actor": 7, "critic": -7}
    assert list(read) == ["ema.0"] and torch.equal(read["ema.0"], tensors["ema.0"])


def test_random_numbers_go_on_where_they_were(tmp_path):
    torch.manual_seed(11)
    torch.rand(3)
    path = save(tmp_path, 1)
    expected = torch.rand(5)
    torch.manual_seed(12)
    load_checkpoint(path, {"actor": Engine(), "critic": Engine()})
    assert torch.equal(torch.rand(5), expected)


def test_a_checkpoint_that_fails_half_way_is_absent(tmp_path):
    whole = save(tmp_path, 1)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2, fails=True)
    assert newest_checkpoint(tmp_path) == whole
    again = save(tmp_path, 2, number=5)
    assert newest_checkpoint(tmp_path) == again
    assert (again / "actor" / "state" / "number").read_text() == "5"
    assert sorted(path.name for path in tmp_path.iterdir()) == [whole.name, again.name]


@pytest.mark.parametrize("iterations", [(9, 10), (99, 100, 20), (999_999, 1_000_000)])
def test_the_newest_is_the_one_with_the_highest_number(tmp_path, iterations):
    paths = {iteration: save(tmp_path, iteration) for iteration in iterations}
    for name in ("iteration-x", "iteration-", ".iteration-9999999.partial", "iteration-9999999.old"):
        (tmp_path / name).mkdir()
    assert newest_checkpoint(tmp_path) == paths[max(iterations)]


def test_only_the_newest_are_kept(tmp_path):
    for iteration in (8, 9, 10, 11):
        save(tmp_path, iteration, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iteration-000010", "iteration-000011"]


def test_the_same_iteration_is_replaced(tmp_path):
    save(tmp_path, 4, number=1)
    path = save(tmp_path, 4, number=2)
    engines = {"actor": Engine(), "critic": Engine()}
    load_checkpoint(path, engines)
    assert engines["actor"].number == 2


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None
