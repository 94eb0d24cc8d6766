"""Model folders: checks before a library loads one, and error messages when it could not.

Loading, and the checks of weights, are in loading.py.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from denserl.data.hub import HUB_NAME, go_offline_if_unreachable, is_hub_name, split_revision
from denserl.data.messages import kind_of
from denserl.errors import UserError
from denserl.files import refuse_lfs_pointer

# Settings files that are checked where they exist; the first is required.
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "config.json")
ADAPTERS = "adapter_config.json"
CHECKPOINT_FILES = ("manifest.json", "state.json")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# What the libraries raise when they cannot load a tokenizer or a model.
UNREADABLE = (
    OSError, ValueError, RuntimeError, ImportError, TypeError, LookupError, ArithmeticError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip


def check_source(path: str, files: tuple[str, ...]) -> None:
    """UserError unless `path` is a hub name, or a folder in which those of the files that are there are JSON objects.

    Adapters alone are no model, and refused where one is to be read; so are checkpoints.
    """
    folder = Path(path)
    if path and folder.is_dir():
        if MODEL_FILES[0] == files[0] and (folder / ADAPTERS).exists() and not _matching(folder, ["model*.safetensors"]):
            raise UserError(
                f"{path} holds adapters ({ADAPTERS}) and no whole model",
                f"merge them: denserl merge --model BASE --adapter {path} --output_dir NEW_FOLDER",
            )
        if is_checkpoint(folder):
            raise UserError(
                f"{path} is a checkpoint of a run, which holds no whole model",
                f"take the model out of it: denserl export --checkpoint {path} --output_dir NEW_FOLDER",
            )
        for file in _matching(folder, [*files, "*.safetensors"]):
            refuse_lfs_pointer(file)
        for name in files:
            if (folder / name).exists() or name == MODEL_FILES[0] == files[0]:
                read_settings(folder / name)
    elif path and folder.exists():
        raise UserError(f"{path} is a file; expected a model folder or a hub name", "give the folder that holds config.json")
    elif is_hub_name(split_revision(path)[0]):
        go_offline_if_unreachable()
    else:
        in_the_way = f"; {folder.parent} is a folder here, so that it is no hub name" if HUB_NAME.fullmatch(path) else ""
        raise UserError(
            f"there is no model folder {path!r}; expected one, or a hub name (user/model, or user/model@revision){in_the_way}",
            "give the path of a model folder",
        )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a training (trainer/checkpoint.py), by the files that it has and has not."""
    return all((folder / name).is_file() for name in CHECKPOINT_FILES) and not (folder / MODEL_FILES[0]).exists()


def not_loaded(path: str, is_tokenizer: bool, error: Exception) -> UserError:
    """The UserError for a library's error at loading a tokenizer or a model; clearer where the folder shows the cause."""
    folder, kind = Path(path), "a tokenizer" if is_tokenizer else "a model"
    # A word in backticks would be shown as a flag.
    said = " ".join(str(error).replace("`", "'").split())[:400] or type(error).__name__
    found = f"{path}: could not load {kind}: {said}"
    fix = "give the path of a model folder (config.json, model.safetensors, tokenizer.json) or a hub name"
    pickled = _matching(folder, _PICKLES)
    if "trust_remote_code" in str(error):
        found = f"{path} brings Python code of its own, which is not run unless it is trusted"
        fix = "read that code; if you trust it, add `trust_remote_code`"
    elif family := re.search(r"\.(\w+)Config'> for this kind of AutoModel: AutoModelForSequenceClassification", said):
        found = f"{path}: transformers has no sequence classifier of its family, {family[1]}, and a reward model is one"
        fix = "start from a model of a family that has one, such as Llama, Qwen2, Mistral, Gemma or Phi-3"
    elif isinstance(error, ImportError):
        fix = "install what is missing, e.g. pip install 'denserl[flash]' for `attention` flash_attention_2"
    elif isinstance(error, SafetensorError) and folder.is_dir():
        damaged = ", ".join(file.name for file in _matching(folder, ["*.safetensors"]) if not _opens(file))
        found, fix = f"{path}: {damaged} is damaged or half written ({error})", "fetch or save the model again"
    elif is_tokenizer and folder.is_dir() and not _matching(folder, _VOCABULARIES):
        found = f"{path} holds no tokenizer (tokenizer.json, tokenizer_config.json, chat_template.jinja)"
        fix = f"save it beside the model: tokenizer.save_pretrained({path!r})"
    elif not is_tokenizer and pickled and not _matching(folder, ["*.safetensors"]):
        found = f"{path} holds pickled weights ({pickled[0].name}), which can run code when they are read, and no safetensors"
        fix = f"where you trust the file, load the model with transformers and save it anew: model.save_pretrained({path!r})"
    return UserError(found, fix)


def wrong_setting(path: str, name: str, found: object, expected: str) -> UserError:
    """The error for a value in a model's config.json that is of another type than it should be."""
    return UserError(
        f"{path}/config.json has {found!r} for {name}; expected {expected}", "correct it there, as denserl train-rm writes it"
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights: one, or those that its index names. UserError where there are none."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise not_loaded(str(folder), False, FileNotFoundError(f"{folder} holds no model.safetensors"))
    named = read_settings(index).get("weight_map")
    names = sorted(set(named.values())) if isinstance(named, dict) and all(isinstance(n, str) for n in named.values()) else []
    # A name with a folder in it could lead out of this one.
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{index} does not say which file holds which weight", "fetch or save the model again")
    return [folder / name for name in names]


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A file of weights, whose tensors are read one by one. UserError where it is damaged, half written or not there."""
    try:
        weights = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise not_loaded(str(file.parent), False, error) from error
    with weights as tensors:
        yield tensors


def read_settings(file: Path) -> dict:
    """The JSON object in a file. UserError where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", f"give a model folder; {file.parent} is none") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error})", "fetch or save the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds {kind_of(content)}; expected an object", "fetch or save the model again")
    return content


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return [file for pattern in patterns for file in sorted(folder.glob(pattern))]


def _opens(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False
