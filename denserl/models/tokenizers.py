"""Tokenizers from a folder or the hub, with a chat template and a pad token of their own; whether two are the same."""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from denserl.data.chat import check_system_prompt, end_of_turn_id
from denserl.data.chat_format import is_free
from denserl.data.hub import split_revision
from denserl.data.templates import SYSTEM_PROMPT, set_template, template_settings
from denserl.errors import UserError
from denserl.models.folders import MODEL_FILES, read_settings
from denserl.models.loading import load_stock

log = logging.getLogger(__name__)

NEW_PAD_TOKEN = "<|denserl_pad|>"
# A file that a model may lack.
_OPTIONAL: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}
# Cut alike by tokenizers that are the same.
_SAMPLE = "The quick brown fox, 12 jumps;\n\tÄpfel."


def load_tokenizer(path: str, template: Mapping[str, Any] | None = None, **kw: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a chat template of one date, and a pad token that differs from the end-of-turn token.

    Where the pad token is missing or is the end-of-turn token, a special token of the vocabulary that nothing uses takes its
    place, else a new one (then the model's embeddings must follow: `match_embeddings`).

    Args:
        template: what the chat template is to be, if not as it is saved (the arguments of `set_template`).

    Raises:
        UserError: nothing loadable there, no chat template, or none that can be used as it is asked for.
    """
    tokenizer, template = load_stock(AutoTokenizer, path, **kw), template or {}
    set_template(tokenizer, **template)
    check_system_prompt(tokenizer, template_settings(tokenizer)[SYSTEM_PROMPT])
    try:
        closing = end_of_turn_id(tokenizer)
    except UserError as error:
        if not template.get("file"):
            raise
        raise UserError(f"`chat_template` {template['file']}: {error.found}", "correct it, or give another") from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == closing:
        before, unused = tokenizer.pad_token, _unused_token(tokenizer, path)
        tokenizer.add_special_tokens({"pad_token": unused or NEW_PAD_TOKEN})
        log.warning(
            "pad token: %s; using %s %r (id %d), which is saved with the model",
            "none" if before is None else f"{before!r} is also the end-of-turn token",
            "the unused token" if unused else "a new token",
            tokenizer.pad_token,
            tokenizer.pad_token_id,
        )
    tokenizer.padding_side = "right"
    return tokenizer


def saved_tokenizer(path: str, **kw: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model as it is saved, whatever it lacks."""
    return load_stock(AutoTokenizer, path, **kw)


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether both have the same vocabulary, but for the pad token, and cut a sample alike."""
    return not _differing_tokens(one, other) and one.encode(_SAMPLE) == other.encode(_SAMPLE)


def check_same_tokenizer(policy: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, path: str) -> None:
    """UserError unless both tokenizers are the same: segment rewards are read by token."""
    if not same_tokenizer(policy, other):
        differing = _differing_tokens(policy, other)
        raise UserError(
            f"{path} has another tokenizer than the policy ({len(differing)} tokens differ, e.g. {sorted(differing)[:3]}); "
            "segment rewards are read token by token, so both must share one",
            "start the reward model and the policy from the same SFT model: denserl train-rm --model SFT_MODEL ...",
        )


def _differing_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> set[str]:
    differing = set(one.get_vocab().items()) ^ set(other.get_vocab().items())
    return {token for token, _ in differing} - {one.pad_token, other.pad_token}


def _unused_token(tokenizer: PreTrainedTokenizerBase, path: str) -> str | None:
    """A special token of the vocabulary that nothing uses: no role of the tokenizer, no setting of the model, not the template,
    and no text that is encoded. One whose name says padding comes first, then one that was kept for such uses."""
    used = {*tokenizer.special_tokens_map.values()} - {tokenizer.pad_token}
    used |= {tokenizer.convert_ids_to_tokens(i) for i in _ids_in_settings(path) if i < len(tokenizer)}
    free = [
        token.content
        for _, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token.content not in used and is_free(tokenizer, token.content)
    ]
    for pattern in (r"pad", r"reserved|unused|placeholder|control"):
        for token in free:
            if re.search(pattern, token, re.IGNORECASE):
                return token
    return free[0] if free else None


def _ids_in_settings(path: str) -> set[int]:
    """Ids of the tokens that a model's settings name, such as further ends of a text; its pad token is none of them."""

    def ids(values: Any) -> Iterator[int]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from ids(value)
            elif key.endswith("_token_id") and key != "pad_token_id":
                yield from (i for i in (value if isinstance(value, list) else [value]) if type(i) is int)

    name, revision = split_revision(path)
    found = [cached_file(name, file, revision=revision, **_OPTIONAL) for file in MODEL_FILES[:2]]
    return {i for file in found if file for i in ids(read_settings(Path(file)))}
