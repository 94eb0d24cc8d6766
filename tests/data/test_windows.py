"""Windows of a source: each row once and in order, had again from where it begins, and no more on the disk than two of them."""

import itertools
import json

import datasets
import pytest

from denserl.data import windows as module
from denserl.data.windows import Windows, WindowSampler, open_source
from denserl.errors import UserError
from denserl.trainer.config import SFTConfig


@pytest.fixture
def folder(tmp_path):
    """Seven files of one to seven rows, numbered through: 28 rows."""
    number = itertools.count()
    (tmp_path / "rows").mkdir()
    for rows in range(1, 8):
        lines = [json.dumps({"text": f"row {next(number)}"}) + "\n" for _ in range(rows)]
        (tmp_path / "rows" / f"{rows}.jsonl").write_text("".join(lines))
    return tmp_path / "rows"


def hub(monkeypatch, rows: int, shards: int):
    """A data set that is streamed in shards."""
    made = datasets.Dataset.from_list([{"text": f"row {i}", "none": None} for i in range(rows)])
    monkeypatch.setattr(module, "go_offline_if_unreachable", lambda: None)
    streamed = lambda name, config, split, streaming: made.to_iterable_dataset(num_shards=shards)  # noqa: E731
    monkeypatch.setattr(module.datasets, "load_dataset", streamed)


def texts(rows) -> list[str]:
    return [row["text"] for row in rows]


def of_window(file, cache):
    """Each row as it is; a row whose number is a multiple of five is left out, as a bad one would be."""
    cache.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return datasets.Dataset.from_list([row for row in rows if int(row["text"].split()[1]) % 5])


def windows_of(source, folder, size=6, anew=True) -> Windows:
    windows = Windows(source, size, folder, of_window)
    windows.begin(anew)
    return windows


def in_order(source) -> list[str]:
    return texts(row for row, _ in source.read(None))


def test_a_stream_that_breaks_off_says_how_it_goes_on(monkeypatch):
    class Broken:
        state_dict = None

        def __iter__(self):
            yield {"text": "row 0"}
            raise ConnectionError("Server Disconnected")

    monkeypatch.setattr(module, "go_offline_if_unreachable", lambda: None)
    monkeypatch.setattr(module.datasets, "load_dataset", lambda *args, **kw: Broken())
    with pytest.raises(UserError, match="broke off: Server Disconnected") as caught:
        in_order(open_source("someone/rows", "train", 3, "stop"))
    assert "`resume`" in str(caught.value)


@pytest.mark.parametrize("kind", ["files", "hub"])
def test_every_row_comes_once_in_order_and_a_source_that_ends_begins_anew(kind, folder, tmp_path, monkeypatch):
    hub(monkeypatch, 28, 3)
    source = open_source(str(folder) if kind == "files" else "someone/rows", "train", 3, "stop")
    order = in_order(source)
    assert sorted(order) == sorted(f"row {i}" for i in range(28))
    windows = windows_of(source, tmp_path / "stream")
    found = [texts(windows.open(number)) for number in range(6)]
    # Four of six rows, one of four, and the first again.
    wanted = [order[0:6], order[6:12], order[12:18], order[18:24], order[24:28], order[0:6]]
    assert found == [[text for text in window if int(text.split()[1]) % 5] for window in wanted]
    assert len(windows) == sum(map(len, found))
    # Numbers go on over windows; those of the last two can be had.
    first = windows.first_row(4)
    assert texts(windows[first + i] for i in range(len(found[4] + found[5]))) == found[4] + found[5]
    with pytest.raises(IndexError, match="not at hand"):
        windows[first - 1]
    assert sorted(path.name for path in (tmp_path / "stream").glob("window-*")) == ["window-000004", "window-000005"]
    windows.close()
    assert [path.name for path in (tmp_path / "stream").iterdir()] == ["windows.json"]


@pytest.mark.parametrize("kind", ["files", "hub"])
def test_a_window_is_had_again_and_gone_on_from(kind, folder, tmp_path, monkeypatch):
    hub(monkeypatch, 28, 3)
    source = open_source(str(folder) if kind == "files" else "someone/rows", "train", 3, "stop")
    whole = windows_of(source, tmp_path / "stream")
    expected = [texts(whole.open(number)) for number in range(5)]
    again = windows_of(source, tmp_path / "stream", anew=False)
    assert [texts(again.open(number)) for number in (2, 3, 4)] == expected[2:]
    assert [again.rows_of(number) for number in range(6)] == [*map(len, expected), None]
    assert texts(again.open(5)) == texts(whole.open(5))
    assert not windows_of(source, tmp_path / "stream", anew=True).known


def test_the_order_of_files_is_the_seeds_and_what_a_source_is_does_not_follow_from_where_it_lies(folder, tmp_path):
    one, other = (open_source(str(folder), "train", seed, "stop") for seed in (3, 4))
    assert in_order(one) != in_order(other) and sorted(in_order(one)) == sorted(in_order(other))
    assert in_order(one) == in_order(open_source(str(folder), "train", 3, "stop"))
    (tmp_path / "there").mkdir()
    moved = folder.rename(tmp_path / "there" / "rows")
    assert open_source(str(moved), "train", 3, "stop").identity == one.identity
    (moved / "1.jsonl").write_text('{"text": "row 100"}\n')
    assert open_source(str(moved), "train", 3, "stop").identity != one.identity


def batches(sampler) -> list[list]:
    return list(iter(sampler))


def test_steps_are_made_of_one_window_and_those_before_the_start_are_left_out_without_reading(folder, tmp_path):
    source = open_source(str(folder), "train", 3, "stop")

    def sampler(start: int, folder, anew: bool):
        windows = windows_of(source, folder, anew=anew)
        opened = []
        read, windows.open = windows.open, lambda number: opened.append(number) or read(number)
        of_rows = WindowSampler(windows, lambda rows: [len(text) for text in rows["text"]], 4, 2, 7, 9, lambda: start)
        return of_rows, windows, opened

    whole, windows, opened = sampler(0, tmp_path / "stream", True)
    found = batches(whole)
    assert len(found) == len(whole) == 9 * 2
    counted, made = [row for micro in found for row, counts in micro if counts], [windows.rows_of(n) for n in opened]
    steps = [-(-rows // 4) for rows in made]
    # All windows but the last one were given whole, each row once.
    before = sum(made[:-1])
    assert (
        sum(steps[:-1]) < 9 <= sum(steps) and sorted(counted)[:before] == [*range(before)] and len(set(counted)) == len(counted)
    )
    start = steps[0] + steps[1] + 1
    late, _, opened_late = sampler(start, tmp_path / "stream", False)
    again = batches(late)
    assert opened_late == opened[2:] and again[2 * start :] == found[2 * start :] and len(again) == len(found)
    assert again[: 2 * (steps[0] + steps[1])] == [[]] * (2 * (steps[0] + steps[1]))


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="`streaming` with several sources"):
        SFTConfig(model="m", data=["a", "b"], output_dir="o", streaming=True, max_steps=5).check()
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="a data set that save_to_disk wrote"):
        open_source(str(tmp_path / "saved"), "train", 0, "stop")
    with pytest.raises(UserError, match="there is no file or folder"):
        open_source("no such place", "train", 0, "stop")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="the source has no row"):
        windows_of(open_source(str(tmp_path / "empty.jsonl"), "train", 0, "stop"), tmp_path / "stream").open(0)
    (folder / "7.jsonl").write_text("{no JSON\n")
    with pytest.raises(UserError, match="7.jsonl:1"):
        in_order(open_source(str(folder), "train", 0, "stop"))
    assert len(in_order(open_source(str(folder), "train", 0, "skip"))) == 21
