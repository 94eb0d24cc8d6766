"""Torn, truncated, bit-flipped and half-deleted checkpoints: named, passed over for the one before, and the end is the same."""

import random
import shutil
from pathlib import Path

import pytest
from real_runs import checkpoints, differences

SHORT = ["ppo-zero0", "rm-zero2"]
NAMES = ["ppo-zero0", "ppo-zero2", "rm-zero0", "rm-zero2"]


def files(checkpoint: Path) -> list[Path]:
    """A checkpoint's files but the manifest, largest first."""
    found = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return sorted(found, key=lambda path: (-path.stat().st_size, path))


def truncate(file: Path, size: int) -> None:
    with open(file, "r+b") as opened:
        opened.truncate(size)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def largest_file_cut_in_half(checkpoint: Path) -> str:
    file = files(checkpoint)[0]
    truncate(file, file.stat().st_size // 2)
    return file.name


def a_file_emptied(checkpoint: Path) -> str:
    file = files(checkpoint)[1]
    truncate(file, 0)
    return file.name


def one_bit_flipped(checkpoint: Path) -> str:
    file = files(checkpoint)[0]
    flip(file, 4 * file.stat().st_size)
    return file.name


def state_with_another_number(checkpoint: Path) -> str:
    """Still JSON, and of the same length."""
    text = (checkpoint / "state.json").read_text()
    number = next(letter for letter in text if letter.isdigit())
    (checkpoint / "state.json").write_text(text.replace(number, "1" if number == "0" else "0", 1))
    return "state.json"


def largest_file_missing(checkpoint: Path) -> str:
    file = files(checkpoint)[0]
    file.unlink()
    return file.name


def every_other_file_missing(checkpoint: Path) -> str:
    for file in files(checkpoint)[::2]:
        file.unlink()
    return "is missing"


def manifest_missing(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").unlink()
    return "manifest.json"


def manifest_torn(checkpoint: Path) -> str:
    truncate(checkpoint / "manifest.json", (checkpoint / "manifest.json").stat().st_size // 2)
    return "manifest.json"


def manifest_zeroed(checkpoint: Path) -> str:
    """What some file systems leave of a file that was not flushed before the machine lost its power."""
    (checkpoint / "manifest.json").write_bytes(bytes((checkpoint / "manifest.json").stat().st_size))
    return "manifest.json"


def everything_missing(checkpoint: Path) -> str:
    for path in checkpoint.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return "manifest.json"


DAMAGES = [
    largest_file_cut_in_half,
    a_file_emptied,
    one_bit_flipped,
    state_with_another_number,
    largest_file_missing,
    every_other_file_missing,
    manifest_missing,
    manifest_torn,
    manifest_zeroed,
    everything_missing,
]


def goes_back(done, half, damaged: list[Path], words: list[str]) -> None:
    """A resumed run names each damaged checkpoint with its fault and the one it takes instead, and ends the same."""
    names = [path.name for path in checkpoints(half.output)]
    code, said = half.training.run(half.output)
    assert code == 0, said[-3000:]
    for path, word in zip(damaged, words, strict=True):
        line = next(line for line in said.splitlines() if f"{path.name} is damaged" in line)
        assert word in line and f"going back to {names[names.index(path.name) - 1]}" in line
    assert not differences(done.output, half.output)


def damaged_newest(damage, name: str, finished, half_done) -> None:
    half = half_done(name)
    newest = checkpoints(half.output)[-1]
    goes_back(finished(name), half, [newest], [damage(newest)])


def test_a_damaged_checkpoint_is_passed_over(finished, half_done):
    damaged_newest(every_other_file_missing, "rm-zero2", finished, half_done)


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_of_every_training_is_passed_over(damage, name, finished, half_done):
    damaged_newest(damage, name, finished, half_done)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("how", ["bit", "cut"])
def test_no_file_is_too_small_to_be_checked(seed, how, finished, half_done):
    name, draw = NAMES[seed % len(NAMES)], random.Random(seed)
    half = half_done(name)
    newest = checkpoints(half.output)[-1]
    file = draw.choice([file for file in files(newest) if file.stat().st_size])
    if how == "bit":
        flip(file, draw.randrange(8 * file.stat().st_size))
    else:
        truncate(file, draw.randrange(file.stat().st_size))
    goes_back(finished(name), half, [newest], [file.name])


def test_two_damaged_checkpoints_are_both_passed_over(finished, half_done):
    half = half_done("ppo-zero0")
    *_, second, newest = checkpoints(half.output)
    words = [one_bit_flipped(newest), manifest_missing(second)]
    goes_back(finished("ppo-zero0"), half, [newest, second], words)


@pytest.mark.parametrize("name", SHORT)
def test_when_all_are_damaged_a_run_says_so_and_stops(name, half_done):
    half = half_done(name)
    for checkpoint in checkpoints(half.output):
        largest_file_cut_in_half(checkpoint)
    before = (half.output / "metrics.jsonl").read_bytes()
    code, said = half.training.run(half.output, resume=True)
    assert code == 2 and "Traceback" not in said, said[-3000:]
    assert "all checkpoints are damaged" in said and "fix:" in said
    assert all(f"{checkpoint.name} is damaged" in said for checkpoint in checkpoints(half.output))
    assert (half.output / "metrics.jsonl").read_bytes() == before


POINTERS = {
    "missing": None,
    "empty": b"",
    "torn": b"iter",
    "zeroed": bytes(17),
    "not text": b"\xff\xfe\x00",
    "dangling": b"iteration-000099\n",
}


def test_a_bad_pointer_does_no_harm(finished, half_done):
    bad_pointer(POINTERS["torn"], "ppo-zero0", finished, half_done)


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("pointer", POINTERS.values(), ids=POINTERS)
def test_every_bad_pointer_does_no_harm(pointer, name, finished, half_done):
    bad_pointer(pointer, name, finished, half_done)


def bad_pointer(pointer: bytes | None, name: str, finished, half_done) -> None:
    half = half_done(name)
    shutil.rmtree(checkpoints(half.output)[-1])
    latest = half.output / "checkpoints" / "latest"
    latest.unlink()
    if pointer is not None:
        latest.write_bytes(pointer)
    newest = checkpoints(half.output)[-1]
    code, said = half.training.run(half.output)
    assert code == 0, said[-3000:]
    assert newest.name in said and "damaged" not in said
    assert not differences(finished(name).output, half.output)


@pytest.mark.parametrize("name", [SHORT[0], pytest.param(SHORT[1], marks=pytest.mark.long)])
def test_what_an_unfinished_save_left_is_not_taken_for_a_checkpoint(name, finished, half_done):
    half = half_done(name)
    newest = checkpoints(half.output)[-1]
    newest.rename(newest.with_name(f".{newest.name}.partial"))
    shutil.copytree(checkpoints(half.output)[0], newest.with_name(f".{checkpoints(half.output)[0].name}.dropped"))
    code, said = half.training.run(half.output)
    assert code == 0, said[-3000:]
    assert not differences(finished(name).output, half.output)
