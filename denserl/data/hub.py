"""Names on the Hugging Face hub, and whether the hub can be reached at all.

Downloading is done by the callers.
"""

import functools
import logging
import re
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import datasets
from huggingface_hub import constants

log = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SECONDS = 5


def is_hub_name(text: str) -> bool:
    """Whether a text that is no file or folder names something on the hub, rather than a path in a folder that is there."""
    return bool(HUB_NAME.fullmatch(text)) and not ("/" in text and Path(text).parent.is_dir())


def split_revision(name: str) -> tuple[str, str | None]:
    """NAME@REVISION -> the hub name and its commit, tag or branch; another hub name, or a path, and None."""
    before, at, revision = name.rpartition("@")
    return (before, revision) if at and revision and is_hub_name(before) and not Path(name).exists() else (name, None)


def public_name(name: str) -> str:
    """A hub name as it is, with its revision and configuration; of a file or folder of this machine the last part alone."""
    return name if is_hub_name(split_revision(name)[0].partition(":")[0]) and not Path(name).exists() else Path(name).name


@functools.cache
def go_offline_if_unreachable() -> None:
    """Where the hub cannot be reached, let the libraries use only what is stored: they would retry for half a minute."""
    if constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT):
        return
    log.warning("%s cannot be reached; only what was fetched before is used", constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def _answers(url: str) -> bool:
    # Behind a proxy a connection from here says nothing.
    if urllib.request.getproxies():
        return True
    place = urlsplit(url)
    try:
        port = place.port or (80 if place.scheme == "http" else 443)
        socket.create_connection((place.hostname, port), timeout=_SECONDS).close()
    except OSError:
        return False
    return True
