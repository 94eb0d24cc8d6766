"""A model that is written gets its card, and goes to the Hugging Face hub where that is asked for: the model, and nothing else.

The token is that of HF_TOKEN, or of huggingface_hub's login; none is read here.
"""

import json
import logging
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from denserl import distributed
from denserl.data.hub import public_name
from denserl.errors import UserError, require
from denserl.flags import as_flags, written_out
from denserl.models.card import CARD, Making, is_as_written, write_cards
from denserl.models.config import SharingConfig
from denserl.models.folders import ADAPTERS, MODEL_FILES, read_settings

log = logging.getLogger(__name__)

# All that is ever sent, of a model's folder and of its adapters in adapter/.
SENT = (
    *MODEL_FILES, "model.safetensors", "model-*-of-*.safetensors", ADAPTERS, "adapter_model.safetensors", CARD,
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "*.tiktoken",
)  # fmt: skip
# Settings that name models and files where they were on this machine.
_PLACES = ("_name_or_path", "name_or_path", "base_model_name_or_path", "sft_model", "sft_from_here", "segmenter")


def publish(folder: str | Path, making: Making, role: str | None = None) -> None:
    """Write the cards of a model that is in a folder, then push it where the options of its making say so. By rank 0.

    Raises:
        UserError: as of `push`.
    """
    if distributed.rank() == 0:
        write_cards(Path(folder), making, role)
        options = making.options
        if isinstance(options, SharingConfig) and options.push_to_hub:
            push(Path(folder), options.push_to_hub, options.hub_public)


def check_sharing(options: SharingConfig) -> None:
    """UserError where it is known before any work that a push would fail: no name of a repository, no token."""
    if not options.push_to_hub:
        return
    try:
        validate_repo_id(options.push_to_hub)
    except HFValidationError as error:
        raise UserError(f"`push_to_hub` {options.push_to_hub} is no name of a repository", "give USER/NAME") from error
    require(
        get_token(),
        "`push_to_hub`: there is no token for the hub",
        "set HF_TOKEN, or run hf auth login; or leave `push_to_hub` out, and push later with denserl push",
    )


def push(folder: Path, repo: str, public: bool = False) -> None:
    """Send the model in a folder, its card and its adapters to a repository of the hub, which is made where there is none.

    Settings lose the paths of this machine. A card that somebody has written or changed there stays.

    public: whether a new repository is seen by all.

    Raises:
        UserError: the hub cannot be reached, or refuses; or the repository is seen by all and that is not asked for.
    """
    files = files_to_send(folder)
    weights = any(name.endswith(".safetensors") for name in files)
    require(weights, f"{folder} holds no model", "give the folder of one, as a training or denserl export writes it")
    asked = written_out(SharingConfig(push_to_hub=repo, hub_public=public))
    again = shlex.join(["denserl", "push", *as_flags("model", str(folder)), *asked])
    try:
        api = HfApi()
        repo = api.create_repo(repo, private=not public, exist_ok=True).repo_id
        seen = not api.model_info(repo).private
        found = f"{folder} is not pushed: {repo} is there already, and seen by all"
        require(public or not seen, found, "give denserl push another repository, or add `hub_public`")
        if not _is_replaceable(api, repo):
            log.warning("the card of %s was written by somebody else and stays as it is", repo)
            files.pop(CARD, None)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo, operations, commit_message="Model and card by denserl")
    except (HTTPError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"the model is in {folder}, and is not on the hub as {repo}: {said}", again, one_rank=True) from error
    log.info("%s: pushed to %s/%s (%s)", folder, api.endpoint, repo, "seen by all" if seen else "private")


def files_to_send(folder: Path) -> dict[str, Path | bytes]:
    """What is sent of a model's folder: name -> a file, or the settings in it without paths of this machine."""
    found: dict[str, Path | bytes] = {}
    for part in (folder, folder / "adapter"):
        for file in sorted(part.glob("*")):
            if file.is_file() and any(fnmatch(file.name, name) for name in SENT):
                found[file.relative_to(folder).as_posix()] = _without_places(file)
    return found


def _without_places(file: Path) -> Path | bytes:
    if file.suffix != ".json" or file.name in ("tokenizer.json", "vocab.json"):
        return file
    settings = read_settings(file)
    clean = _clean(settings)
    return file if clean == settings else (json.dumps(clean, indent=2, ensure_ascii=False) + "\n").encode()


def _clean(value: Any) -> Any:
    """Settings without what only means something on this machine."""
    if not isinstance(value, dict):
        return value
    kept = {name: _clean(item) for name, item in value.items()}
    for name in _PLACES:
        place = kept.get(name)
        if isinstance(place, str) and public_name(place) != place:
            kept[name] = public_name(place) if name == "segmenter" else None
    return kept


def _is_replaceable(api: HfApi, repo: str) -> bool:
    """Whether the repository has no card yet, or one as it was written here."""
    try:
        card = Path(api.hf_hub_download(repo, CARD)).read_text(encoding="utf-8")
    except RemoteEntryNotFoundError:
        return True
    return is_as_written(card)
