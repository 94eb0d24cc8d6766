"""Checkpoints with stand-ins for engines: complete or absent, damage found, the newest whole one, old ones dropped."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import xxhash

from denserl.errors import UserError
from denserl.files import SummedFile, entry_of
from denserl.trainer import checkpoint
from denserl.trainer.checkpoint import (
    aside_folder,
    check_settings,
    commit,
    damage,
    has_checkpoints,
    is_disk_full,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


class Engine:
    """Keeps one number in a file, as DeepSpeed keeps its tensors, and a note that is not summed; may fail on the way."""

    def __init__(self, number: int = 0, error: Exception | None = None):
        self.number, self.error, self.checkpoint_engine = number, error, self
        self.written = {}

    def save_checkpoint(self, folder, tag, save_latest):
        target = Path(folder) / tag
        target.mkdir(parents=True)
        with SummedFile(target / "number") as file:
            file.write(str(self.number).encode())
        self.written = {str(target / "number"): file.entry}
        (target / "note").write_text("beside it")
        if self.error:
            raise self.error

    def take_written(self):
        return self.written

    def load_checkpoint(self, folder, tag):
        self.number = int((Path(folder) / tag / "number").read_text())


def save(folder, iteration, number=1, keep=10, error=None, tensors=None):
    engines = {"actor": Engine(number), "critic": Engine(-number, error)}
    state = {"iteration": iteration, "beta": 0.1}
    return save_checkpoint(folder, f"iteration-{iteration:06d}", state, engines, tensors or {}, keep)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


def test_the_manifest_lists_every_file(tmp_path):
    path = save(tmp_path, 3)
    files = [file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    assert len(files) == 7  # two of each engine, random state, tensors, state
    expected = {
        file.relative_to(path).as_posix(): {
            "bytes": len(file.read_bytes()),
            "xxh3_128": xxhash.xxh3_128_hexdigest(file.read_bytes()),
        }
        for file in files
    }
    assert json.loads((path / "manifest.json").read_text())["files"] == expected
    assert (tmp_path / "latest").read_text() == "iteration-000003\n"


def test_what_was_summed_as_it_was_written_is_not_read_back(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoint, "entry_of", lambda path: read.append(path.name) or entry_of(path))
    save(tmp_path, 3)
    assert sorted(read) == ["note", "note", "random-0.safetensors", "state.json", "tensors.safetensors"]


def test_sums_of_earlier_versions_are_checked(tmp_path):
    path = save(tmp_path, 3)
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry["sha256"] = hashlib.sha256((path / name).read_bytes()).hexdigest()
        del entry["xxh3_128"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert damage(path) is None
    flipped(path / "state.json")
    assert damage(path) == "state.json is not as it was written (other checksum)"


def test_files_are_dealt_to_ranks_by_size(monkeypatch):
    """Each file once; no rank has more than the least loaded and its own last file."""
    sizes = {"optimiser-0": 900, "optimiser-1": 880, "averages": 300, "state": 3, "random-0": 2, "random-1": 2}
    monkeypatch.setattr(checkpoint.distributed, "world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(checkpoint.distributed, "rank", lambda rank=rank: rank)
        shares.append(checkpoint._share(sizes))
    assert shares == [["optimiser-0"], ["optimiser-1"], ["averages", "state", "random-0", "random-1"]]


def test_a_save_that_fails_half_way_leaves_the_one_before(tmp_path):
    whole = save(tmp_path, 1)
    with pytest.raises(RuntimeError, match="bad weights"):
        save(tmp_path, 2, error=RuntimeError("bad weights"))
    assert newest_checkpoint(tmp_path) == whole
    again = save(tmp_path, 2, number=5)
    assert newest_checkpoint(tmp_path) == again
    assert (again / "actor" / "state" / "number").read_text() == "5"
    assert names(tmp_path) == [whole.name, again.name, "latest"]


class Killed(BaseException):
    """Nothing in the program catches this, as nothing catches SIGKILL."""


class Countdown:
    """Lets so many calls of the functions it wraps pass, then kills."""

    def __init__(self, calls: int):
        self.left = calls

    def __call__(self, function):
        def call(*args, **kw):
            if not self.left:
                raise Killed
            self.left -= 1
            return function(*args, **kw)

        return call


FILE_OPERATIONS = [(os, "replace"), (os, "fsync"), (shutil, "rmtree"), (checkpoint, "save_file"), (checkpoint, "entry_of")]


def test_killed_at_any_file_operation_a_whole_checkpoint_is_left(tmp_path, monkeypatch):
    outcomes, killed = [], True
    while killed:
        folder, countdown = tmp_path / str(len(outcomes)), Countdown(len(outcomes))
        save(folder, 2, keep=1)
        with monkeypatch.context() as patch:
            for module, name in FILE_OPERATIONS:
                patch.setattr(module, name, countdown(getattr(module, name)))
            try:
                save(folder, 3, number=3, keep=1)
                killed = False
            except Killed:
                pass
        newest, engines = newest_checkpoint(folder), {"actor": Engine(), "critic": Engine()}
        load_checkpoint(newest, engines)
        assert engines["actor"].number == {"iteration-000002": 1, "iteration-000003": 3}[newest.name]
        outcomes.append(newest.name)
        # The next save clears away what is left.
        save(folder, 3, number=4, keep=1)
        assert names(folder) == ["iteration-000003", "latest"]
    assert len(outcomes) > 20 and outcomes == sorted(outcomes) and len(set(outcomes)) == 2


def truncated(path):
    os.truncate(path, path.stat().st_size - 1)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = [
    ("actor/state/number", lambda path: path.write_text("12"), "actor/state/number has 2 bytes, the manifest says 1"),
    ("actor/state/number", flipped, "actor/state/number is not as it was written"),
    ("critic/state/number", Path.unlink, "critic/state/number is missing"),
    ("random-0.safetensors", truncated, "random-0.safetensors has"),
    ("tensors.safetensors", flipped, "tensors.safetensors is not as it was written"),
    ("state.json", flipped, "state.json is not as it was written"),
    ("manifest.json", Path.unlink, "it has no manifest.json"),
    ("manifest.json", truncated, "its manifest.json cannot be read"),
    ("manifest.json", lambda path: path.write_text("[]"), "its manifest.json cannot be read"),
    ("manifest.json", lambda path: path.write_text('{"files": {"a": {}}}'), "its manifest.json cannot be read"),
    ("manifest.json", lambda path: path.write_text('{"files": {}}'), "its manifest.json does not list state.json"),
]


@pytest.mark.parametrize("file, spoil, words", DAMAGE)
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, caplog, file, spoil, words):
    before, newest = save(tmp_path, 1), save(tmp_path, 2)
    assert damage(before) is None and damage(newest) is None
    spoil(newest / file)
    assert words in damage(newest)
    assert newest_checkpoint(tmp_path) == before
    assert f"checkpoint iteration-000002 is damaged: {words}" in caplog.text
    assert "going back to iteration-000001" in caplog.text


def test_when_all_are_damaged_it_says_so(tmp_path):
    for path in [save(tmp_path, iteration) for iteration in (1, 2)]:
        truncated(path / "state.json")
    with pytest.raises(UserError, match="all checkpoints are damaged .iteration-000001, iteration-000002."):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("latest", [None, b"", b"\xff\xfe", b"iteration-000009\n", b"../elsewhere\n"])
def test_without_a_pointer_the_number_decides(tmp_path, latest):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (tmp_path / "latest").unlink()
    if latest is not None:
        (tmp_path / "latest").write_bytes(latest)
    assert newest_checkpoint(tmp_path) == newest


def test_what_the_pointer_does_not_yet_reach_was_not_finished(tmp_path):
    before = save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "latest").write_text("iteration-000001\n")
    assert newest_checkpoint(tmp_path) == before


def test_the_last_good_one_is_never_dropped_for_a_damaged_one(tmp_path):
    """Two are kept: the damaged one in between does not count."""
    good = save(tmp_path, 1, keep=2)
    truncated(save(tmp_path, 2, keep=2) / "state.json")
    save(tmp_path, 3, keep=2)
    assert names(tmp_path) == [good.name, "iteration-000003", "latest"]


def test_a_protected_checkpoint_stays(tmp_path):
    for number in (1, 2, 3):
        aside = aside_folder(tmp_path, f"step-{number:06d}")
        (aside / "weights").write_text(str(number))
        commit(aside, tmp_path / f"step-{number:06d}", keep=1, protected="step-000001")
    assert names(tmp_path) == ["latest", "step-000001", "step-000003"]


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    RuntimeError(
        "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0: file write failed"
    ),
]


@pytest.mark.parametrize("error", FULL, ids=["space", "quota", "torch.save"])
def test_a_full_disk_is_said_and_leaves_the_one_before(tmp_path, error):
    whole = save(tmp_path, 1)
    with pytest.raises(UserError) as said:
        save(tmp_path, 2, error=error)
    assert "no space left" in str(said.value) and "iteration-000002 could not be saved" in str(said.value)
    assert "iteration-000001 is complete" in str(said.value) and "`resume`" in said.value.fix
    assert newest_checkpoint(tmp_path) == whole
    # What was half written makes room again.
    assert names(tmp_path) == [whole.name, "latest"]


def test_a_disk_that_is_full_for_the_pointer_leaves_the_one_before(tmp_path, monkeypatch):
    whole, real = save(tmp_path, 1), checkpoint.write_flushed

    def write(file, text):
        if file.name == ".latest":
            raise FULL[0]
        real(file, text)

    monkeypatch.setattr(checkpoint, "write_flushed", write)
    with pytest.raises(UserError, match="iteration-000002 could not be saved; iteration-000001 is complete"):
        save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == whole


def test_an_old_one_that_cannot_be_removed_stops_nothing(tmp_path, monkeypatch):
    """As on network storage, while another host reads a file of it."""
    save(tmp_path, 1, keep=1)
    real = os.rmdir

    def rmdir(path, **kw):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    monkeypatch.setattr(os, "rmdir", rmdir)
    assert newest_checkpoint(tmp_path) != save(tmp_path, 2, keep=1)
    save(tmp_path, 3, keep=1)
    assert newest_checkpoint(tmp_path).name == "iteration-000003"
    monkeypatch.setattr(os, "rmdir", real)
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["iteration-000004", "latest"]


def test_an_error_that_came_from_a_full_disk_is_one():
    outer = RuntimeError("could not write")
    outer.__cause__ = FULL[0]
    assert is_disk_full(outer) and not is_disk_full(RuntimeError("could not write"))


def test_settings_harmless_ones_are_logged_harmful_ones_named(tmp_path, caplog):
    caplog.set_level("INFO")
    saved = {"seed": 1, "save_every": 5, "entropy_threshold": 1.75, "ranks": 2}
    harmless = frozenset({"save_every"})
    check_settings(saved, saved, harmless, tmp_path)
    assert not caplog.text
    check_settings(saved, saved | {"save_every": 7}, harmless, tmp_path)
    assert "save_every was 5" in caplog.text and "now it is 7" in caplog.text
    with pytest.raises(UserError) as said:
        check_settings(saved, saved | {"save_every": 7, "entropy_threshold": 2.0, "new": 3}, harmless, tmp_path)
    assert "entropy_threshold: 1.75, now 2.0" in said.value.found and "new: None, now 3" in said.value.found
    assert "save_every" not in said.value.found and "ranks" not in said.value.found


@pytest.mark.parametrize("iterations", [(9, 10), (20, 99, 100), (999_999, 1_000_000)])
def test_the_newest_is_the_one_with_the_highest_number(tmp_path, iterations):
    paths = {iteration: save(tmp_path, iteration) for iteration in iterations}
    for name in ("iteration-x", "iteration-", ".iteration-9999999.partial", "iteration-9999999.old"):
        (tmp_path / name).mkdir()
    assert newest_checkpoint(tmp_path) == paths[max(iterations)]


def test_only_the_newest_are_kept(tmp_path):
    for iteration in (8, 9, 10, 11):
        save(tmp_path, iteration, keep=2)
    assert names(tmp_path) == ["iteration-000010", "iteration-000011", "latest"]


def test_the_same_iteration_is_replaced(tmp_path):
    save(tmp_path, 4, number=1)
    path = save(tmp_path, 4, number=2)
    engines = {"actor": Engine(), "critic": Engine()}
    load_checkpoint(path, engines)
    assert engines["actor"].number == 2


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None
    assert not has_checkpoints(tmp_path / "nowhere")
