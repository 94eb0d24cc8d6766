"""Language models, and classifiers without their head, as stock Hugging Face classes, from a folder or the hub.

Loading is strict: a missing weight or one too many is an error. safetensors only; no remote code unless asked. Tokenizers are
in tokenizers.py, reward models with their heads in reward_models.py.
"""

import contextlib
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from denserl.data.hub import split_revision
from denserl.errors import UserError
from denserl.models.dropout import disable_dropout
from denserl.models.findings import measure
from denserl.models.folders import MODEL_FILES, TOKENIZER_FILES, UNREADABLE, check_source, not_loaded
from denserl.models.four_bit import Stored, quantised, settle
from denserl.models.heads import read_in_fp32
from denserl.models.measured import Measured, remember
from denserl.models.probe import run_as
from denserl.models.varlen import DTYPES as NARROW
from denserl.models.varlen import TORCH, tell

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Matrices of such a size are what devices are fast at.
ROWS_AT_ONCE = 64
# Names of weights: the head of stock classifiers, and what heads begin with (ours, GRM's).
STOCK_HEAD = "score.weight"
HEADS = ("score.", "v_head.")


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """`fp32`, `bf16` or a torch dtype -> the torch dtype. ValueError for another name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)} and torch dtypes")
    return DTYPES[dtype]


def load_config(path: str, **kw: Any) -> PreTrainedConfig:
    """The config of a model, to be read and not changed: all who ask are given one. UserError where none can be read."""
    file = Path(path) / MODEL_FILES[0]
    if not file.is_file():
        return load_stock(AutoConfig, path, **kw)
    return _config_in(path, file.stat().st_size, file.stat().st_mtime_ns, **kw)


@functools.lru_cache(maxsize=64)
def _config_in(folder: str, size: int, time: int, **kw: Any) -> PreTrainedConfig:
    """size, time: of its file, which tell whether it is still that one."""
    return load_stock(AutoConfig, folder, **kw)


def load_policy(path: str, dtype: str | torch.dtype, dropout: bool = False, **kw: Any) -> PreTrainedModel:
    """A causal language model, measured (probe.py); dtype is `fp32`, `bf16` or a torch dtype.

    dropout: keep what its config says of dropout, for training where neither scores nor ratios are used.
    four_bit: hold its linear layers in 4 bits, to be trained under adapters (four_bit.py).

    Raises:
        UserError: no folder, incomplete weights, or numbers that depend on more than a row and what came before.
    """
    model, info = load_weights(AutoModelForCausalLM, path, dtype, dropout, **kw)
    heads = names_under(HEADS, info["unexpected_keys"])
    if heads:
        raise _is_reward_model(path, heads[0])
    check_weights(path, info, missing=(), unexpected=())
    return as_measured(model, path)


def empty_policy(path: str, dtype: str | torch.dtype, **kw: Any) -> PreTrainedModel:
    """The language model that a config.json describes, on torch's meta device: shapes without numbers; no weights are read.

    Raises:
        UserError: no config there, none of a language model, or that of a reward model.
    """
    return _empty_model(AutoModelForCausalLM, path, dtype, **kw)


def empty_reward_model(path: str, dtype: str | torch.dtype, **kw: Any) -> PreTrainedModel:
    """The same with one score in place of logits, whatever head the config was written for."""
    return read_in_fp32(_empty_model(AutoModelForSequenceClassification, path, dtype, num_labels=1, **kw))


def match_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model its pad id, and grow its embeddings where the tokenizer has gained a token: to a multiple of 64 rows."""
    rows = model.get_input_embeddings().num_embeddings
    if grow_embeddings(model, len(tokenizer)):
        log.warning("embeddings grown from %d to %d rows for new tokens", rows, model.get_input_embeddings().num_embeddings)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def grow_embeddings(model: PreTrainedModel, rows: int) -> bool:
    """Add rows where there are fewer, the same new ones in every model: policy and reference must start out equal."""
    if model.get_input_embeddings().num_embeddings >= rows:
        return False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(rows, pad_to_multiple_of=ROWS_AT_ONCE)
    return True


def local_folder(path: str) -> Path:
    """The folder that holds a model's files: `path` itself, or the hub snapshot it names. UserError for no model folder."""
    check_source(path, MODEL_FILES[:1])
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        name, revision = split_revision(path)
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.py"]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is neither a model folder nor a hub model that can be fetched", "give the folder's present path"
        ) from error


def load_weights(
    auto_class: type[Any], path: str, dtype: str | torch.dtype, dropout: bool = False, four_bit: bool = False, **kw: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what `check_weights` reads. Weights of another shape are reported there, not by the library.

    dropout, four_bit: see `load_policy`.
    """
    settings = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if four_bit:
        trust = kw.get("trust_remote_code", False)
        settings |= quantised(load_config(path, trust_remote_code=trust), path, as_dtype(dtype))
    model, info = load_stock(auto_class, path, dtype=as_dtype(dtype), **settings, **{**kw, **_kernel(**kw)})
    if four_bit:
        settle(model, Stored(path, trust))
    if not dropout:
        disable_dropout(model)
    return model, info


def _kernel(attn_implementation: str | None = None, **_: Any) -> dict[str, str | None]:
    """sdpa is left to the library to choose, which takes it where a family has it, and eager attention elsewhere."""
    return {"attn_implementation": None if attn_implementation == "sdpa" else attn_implementation}


def as_measured(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The model, set to run as it is found that it may be (probe.py).

    Raises:
        UserError: flash attention is asked for in fp32, which it does not have.
    """
    found = measure(model, path)
    if found.attention.startswith("flash") and model.dtype not in NARROW:
        raise UserError(
            f"`attention` {found.attention} computes in bf16 and fp16 alone", "add `dtype` bf16, or `attention` sdpa"
        )
    if found.row_by_row:
        tell(TORCH.name, found.row_by_row)
    if found.masked:
        tell(TORCH.name, found.masked, "decoding goes under masks")
    return run_as(model, found)


def _empty_model(
    auto_class: type[Any],
    path: str,
    dtype: str | torch.dtype,
    trust_remote_code: bool = False,
    attn_implementation: str = "sdpa",
    **settings: Any,
) -> PreTrainedModel:
    config = load_stock(AutoConfig, path, trust_remote_code=trust_remote_code, **settings)
    if auto_class is AutoModelForCausalLM and any("Classification" in name for name in config.architectures or ()):
        raise _is_reward_model(path, config.architectures[0])
    # Classifiers ask for one, as a tokenizer's would be set; it has no part in shapes.
    config.get_text_config().pad_token_id = config.pad_token_id = 0
    try:
        with torch.device("meta"):
            kw = {"trust_remote_code": trust_remote_code, **_kernel(attn_implementation)}
            model = auto_class.from_config(config, dtype=as_dtype(dtype), **kw)
    except UNREADABLE as error:
        raise not_loaded(str(path), False, error) from error
    # Nothing can be measured where there are no numbers, and memory does not depend on it.
    remember(model, Measured())
    return model


def _is_reward_model(path: str, sign: str) -> UserError:
    return UserError(
        f"{path} is a reward model (it holds {sign}); a language model is expected here",
        "give the language model that it was trained from",
    )


def load_stock(auto_class: type[Any], path: str | Path, **kw: Any) -> Any:
    """What an auto class of transformers makes of a folder or hub name. UserError where there is nothing that it can read."""
    path = str(path)
    is_tokenizer = auto_class is AutoTokenizer
    check_source(path, TOKENIZER_FILES if is_tokenizer else MODEL_FILES)
    try:
        name, revision = split_revision(path)
        which = {"revision": revision} if revision else {}
        # Left unset, trust_remote_code would ask at the terminal.
        with _errors_alone():
            return auto_class.from_pretrained(name, **{"trust_remote_code": False, **which, **kw})
    except UNREADABLE as error:
        raise not_loaded(path, is_tokenizer, error) from error


@contextlib.contextmanager
def _errors_alone() -> Iterator[None]:
    """The library's own report of missing and unexpected weights is only a warning; `check_weights` decides what is an error.

    It is its handlers that are told: another level of its logger would make each of the process's loggers, some thousands,
    forget what it shows.
    """
    levels = [(handler, handler.level) for handler in transformers_logging.get_logger("transformers").handlers]
    for handler, level in levels:
        handler.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        for handler, level in levels:
            handler.setLevel(level)


def check_weights(path: str, info: Mapping[str, Any], *, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """UserError unless the weights fit the model, but for the names that may be missing or unexpected."""
    wrong = {
        "missing": sorted(set(info["missing_keys"]) - set(missing)),
        "unexpected": sorted(set(info["unexpected_keys"]) - set(unexpected)),
        "of another shape": sorted(
            f"{key}: {tuple(found)}, expected {tuple(expected)}" for key, found, expected in info["mismatched_keys"]
        ),
    }
    found = "; ".join(f"{len(keys)} {what} (e.g. {keys[0]})" for what, keys in wrong.items() if keys)
    if found:
        raise UserError(f"{path}: the weights do not fit the model: {found}", "save the model again, or give another folder")


def names_under(prefixes: tuple[str, ...], names: Iterable[str]) -> list[str]:
    """The names that begin with one of the prefixes, in order."""
    return sorted(name for name in names if name.startswith(prefixes))
