"""How inputs are spoilt: each function gives one that takes the test's World and returns what a flag is set to."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
GOOD_PAIR = {"prompt": "Tell me about the old kettle.", "chosen": "The kettle hums.", "rejected": "No."}


def file(name: str, content: bytes | str) -> Callable:
    """A file of this content, compressed where the name ends with .gz."""
    return lambda world: world.file(name, content)


def pairs(*rows: object, after: int = 1) -> Callable:
    """A file of some good pairs and then these rows."""
    return file("bad.jsonl", "".join(json.dumps(row) + "\n" for row in [GOOD_PAIR] * after + list(rows)))


def pair(**change) -> Callable:
    """A good pair and one with these values changed; None is null, ... leaves the key out."""
    return pairs({key: value for key, value in (GOOD_PAIR | change).items() if value is not ...})


def cut_gzip(world) -> Path:
    """A compressed file that lacks its last third."""
    path = world.file("cut.jsonl.gz", "".join(json.dumps({**GOOD_PAIR, "chosen": f"{n**9}"}) + "\n" for n in range(300)))
    path.write_bytes(path.read_bytes()[:-1500])
    return path


def torn_in_gzip(world) -> Path:
    """A compressed file whose third line is half a row."""
    good = json.dumps(GOOD_PAIR)
    return world.file("torn.jsonl.gz", f"{good}\n{good}\n{good[:30]}\n{good}\n")


def folder(*files: str) -> Callable:
    """A folder of files with one good pair each."""

    def make(world) -> Path:
        (world.own / "rows").mkdir()
        for name in files:
            (world.own / "rows" / name).write_text(json.dumps(GOOD_PAIR) + "\n")
        return world.own / "rows"

    return make


def model(good: str, change: Callable[[Path], object]) -> Callable:
    """A copy of a good model folder after the change."""

    def make(world) -> Path:
        path = world.folder(good)
        change(path)
        return path

    return make


def without(*names: str) -> Callable[[Path], object]:
    return lambda path: [(path / name).unlink() for name in names]


def written(name: str, content: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(content)


def half(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[: (path / name).stat().st_size // 2])


def config(**change) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        settings = json.loads((path / "config.json").read_text()) | change
        (path / "config.json").write_text(json.dumps(settings))

    return apply


def weights(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return apply


def fits(content: object) -> Callable:
    """A fits.json of this content."""
    return file("fits.json", content if isinstance(content, str) else json.dumps(content))


def entry(constants: object) -> Callable:
    """A fits.json with this under the key that the good run looks up."""
    return fits({"peak/avg/1.75": {"constants": constants}})


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def pickled(path: Path) -> None:
    """Weights as a pickle, which would leave the file `ran` beside the folder."""
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(path.parent / "ran")))


def with_code(path: Path) -> None:
    """A model of a class that the folder brings; its code leaves the file `ran` beside the folder."""
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config(model_type="own", architectures=["OwnModel"], auto_map=classes)(path)
    (path / "own.py").write_text(CODE.format(mark=str(path.parent / "ran")))
