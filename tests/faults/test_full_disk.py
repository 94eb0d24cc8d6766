"""A full disk ends a training with a message; what was saved before is whole, and with more room it goes on to the same end.

The disk is a small tmpfs. Mounting one takes rights that ordinary users lack; the tests are skipped without them.
"""

import subprocess
from pathlib import Path

import pytest
from on_ranks import ended, start_ranks
from real_runs import checkpoints, differences

PAGE = 4096
ROOM = "64m"


class Disk:
    """A tmpfs of some pages, mounted on a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def mount(self, pages: int) -> None:
        # inode32 and the like are left to the system; nr_inodes counts files, which is not what runs out here.
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", str(self.folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")

    def grow(self) -> None:
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(self.folder)], check=True)

    def unmount(self) -> None:
        if self.folder.is_mount():
            subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    try:
        disk = Disk(tmp_path / "disk")
    except FileNotFoundError as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield disk
    disk.unmount()


def pages(folder: Path) -> int:
    """The pages of a tmpfs that the files of a folder take."""
    return sum(-(-path.stat().st_size // PAGE) for path in folder.rglob("*") if path.is_file())


def runs_out(done, disk: Disk, room: int, log: Path) -> tuple[list[str], int]:
    """Run on a disk of so many pages until it is full, make room, go on; returns the checkpoints there were, and the status."""
    disk.mount(room)
    output = disk.folder / "run"
    output.mkdir()
    code, said = done.training.run(output, log=log)
    complete = [path.name for path in checkpoints(output)]
    if code:
        assert code == 2 and "Traceback" not in said, f"with {room} pages: {said[-3000:]}"
        assert "no space left on the disk" in said and "fix:" in said, said[-3000:]
    disk.grow()
    again, said = done.training.run(output, log=log)
    assert again == 0 and "damaged" not in said, f"with {room} pages: {said[-3000:]}"
    assert not differences(done.output, output), f"with {room} pages"
    disk.unmount()
    return complete, code


@pytest.mark.parametrize("name", ["ppo-zero0", pytest.param("rm-zero2", marks=pytest.mark.long)])
def test_a_full_disk_ends_a_run_that_can_go_on(name, finished, disk, tmp_path):
    done = finished(name)
    first, second = checkpoints(done.output)[:2]
    # Room for the first checkpoint, the metrics, and half of the second.
    complete, code = runs_out(done, disk, pages(first) + pages(second) // 2, tmp_path / "log")
    assert complete == [first.name] and code == 2


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["ppo-zero0", "rm-zero2"])
def test_wherever_a_disk_gets_full_the_run_can_go_on(name, finished, disk, tmp_path):
    """From a few pages to room for almost everything, page by page around the end of the first save."""
    done = finished(name)
    whole, one = pages(done.output), pages(checkpoints(done.output)[0])
    codes = {}
    for room in [2, one // 3, *range(one - 2, one + 10, 2), *range(one + 10, whole - 1, (whole - one) // 6), whole + 8]:
        _, codes[room] = runs_out(done, disk, room, tmp_path / "log")
    assert codes[2] == codes[one] == 2 and codes[whole + 8] == 0


@pytest.mark.long
@pytest.mark.parametrize("name", ["ppo-zero2", "rm-zero2"])
def test_a_full_disk_ends_all_ranks(name, trainings, disk, tmp_path):
    training, whole = trainings[name], tmp_path / "whole"
    assert ended(start_ranks(training, whole))[0] == [0, 0]
    first, second = checkpoints(whole)[:2]
    disk.mount(pages(first) + pages(second) // 2)
    output = disk.folder / "run"
    output.mkdir()
    codes, said = ended(start_ranks(training, output))
    assert None not in codes and 2 in codes and 0 not in codes, said[-3000:]
    assert [path.name for path in checkpoints(output)] == [first.name]
    disk.grow()
    assert ended(start_ranks(training, output))[0] == [0, 0]
    assert not differences(whole, output)
