"""Tokenizer, policy, reward model and critic as stock Hugging Face classes, from a folder or the hub.

Loading is strict: a missing head, a missing weight or one too many is an error. safetensors only; no remote code unless asked.
"""

import contextlib
import logging
import math
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from denserl.data.chat import end_of_turn_id
from denserl.errors import UserError
from denserl.models.folders import MODEL_FILES, TOKENIZER_FILES, UNREADABLE, check_source, not_loaded
from denserl.models.packing import enable_packing

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NEW_PAD_TOKEN = "<|denserl_pad|>"


def load_tokenizer(path: str, **kw) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token that differs from the end-of-turn token.

    Where the pad token is missing or is the end-of-turn token, a reserved special token of the vocabulary takes its place, else
    a new one (then the model's embeddings must follow: `match_embeddings`).

    Raises:
        UserError: nothing loadable there, or no chat template.
    """
    tokenizer = _load(AutoTokenizer, path, **kw)
    closing = end_of_turn_id(tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == closing:
        before, reserved = tokenizer.pad_token, _reserved_token(tokenizer)
        tokenizer.add_special_tokens({"pad_token": reserved or NEW_PAD_TOKEN})
        log.warning(
            "pad token: %s; using %s %r (id %d), which is saved with the model",
            "none" if before is None else f"{before!r} is also the end-of-turn token",
            "the reserved token" if reserved else "a new token",
            tokenizer.pad_token,
            tokenizer.pad_token_id,
        )
    tokenizer.padding_side = "right"
    return tokenizer


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """`fp32`, `bf16` or a torch dtype -> the torch dtype. ValueError for another name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)} and torch dtypes")
    return DTYPES[dtype]


def load_policy(path: str, dtype: str | torch.dtype, **kw) -> PreTrainedModel:
    """A causal language model; dtype is `fp32`, `bf16` or a torch dtype. UserError for no folder or incomplete weights."""
    model, info = _load_model(AutoModelForCausalLM, path, dtype, **kw)
    if "score.weight" in info["unexpected_keys"]:
        raise _is_reward_model(path, "score.weight")
    _refuse(path, info, missing=(), unexpected=())
    return model


def load_reward_model(path: str, dtype: str | torch.dtype, **kw) -> PreTrainedModel:
    """A trained reward model: backbone weights and `score.weight` of shape (1, hidden), nothing missing, nothing unknown.

    Raises:
        UserError: no head, a head of another shape, missing or unexpected weights.
    """
    model, info = _load_classifier(path, dtype, **kw)
    if "score.weight" in info["missing_keys"]:
        raise UserError(
            f"{path} holds no reward head (score.weight); it looks like a language model",
            "give a trained reward model, or train one with denserl train-rm --model " + str(path),
        )
    _refuse(path, info, missing=(), unexpected=())
    return model


def new_reward_model(path: str, dtype: str | torch.dtype, seed: int = 0, **kw) -> PreTrainedModel:
    """The backbone of a language model under a fresh reward head, normal(0, 1 / (hidden + 1)) (spec dense-rlhf, section 3)."""
    model, info = _load_classifier(path, dtype, **kw)
    _refuse(path, info, missing=("score.weight",), unexpected=("lm_head.weight",))
    init_head(model, seed)
    return model


def empty_policy(path: str, dtype: str | torch.dtype, **kw) -> PreTrainedModel:
    """The language model that a config.json describes, on torch's meta device: shapes without numbers; no weights are read.

    Raises:
        UserError: no config there, none of a language model, or that of a reward model.
    """
    return _empty_model(AutoModelForCausalLM, path, dtype, **kw)


def empty_reward_model(path: str, dtype: str | torch.dtype, **kw) -> PreTrainedModel:
    """The same with one score in place of logits, whatever head the config was written for."""
    return _empty_model(AutoModelForSequenceClassification, path, dtype, num_labels=1, **kw)


def init_head(model: PreTrainedModel, seed: int) -> None:
    """Draw the head anew, the same on every rank; under ZeRO-3 the partitioned weight is gathered first."""
    weight = model.score.weight
    hidden = model.config.get_text_config().hidden_size
    values = torch.empty(1, hidden).normal_(0, 1 / (hidden + 1), generator=torch.Generator().manual_seed(seed))
    with gathered([weight], write=True), torch.no_grad():
        weight.copy_(values)


def gathered(parameters: list[nn.Parameter], write: bool = False):
    """A context in which ZeRO-3 parameters are whole on every rank; does nothing for ordinary ones."""
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if write else None)


def disable_dropout(model: nn.Module) -> None:
    """Switch dropout off for good, where old and new log-probabilities must agree."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def match_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model its pad id, and grow its embeddings where the tokenizer has gained a token."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        # The same new rows in every model that is grown so: policy and reference must start out equal.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(len(tokenizer))
        log.warning("embeddings grown from %d to %d rows for new tokens", rows, len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def check_same_tokenizer(policy: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, path: str) -> None:
    """UserError unless both tokenizers have the same vocabulary and cut a sample alike: segment rewards are read by token."""
    sample = "The quick brown fox, 12 jumps;\n\tÄpfel."
    differing = set(policy.get_vocab().items()) ^ set(other.get_vocab().items())
    differing = {token for token, _ in differing} - {policy.pad_token, other.pad_token}
    if differing or policy.encode(sample) != other.encode(sample):
        raise UserError(
            f"{path} has another tokenizer than the policy ({len(differing)} tokens differ, e.g. {sorted(differing)[:3]}); "
            "segment rewards are read token by token, so both must share one",
            "start the reward model and the policy from the same SFT model: denserl train-rm --model SFT_MODEL ...",
        )


class StoredSettings(NamedTuple):
    """What train-rm keeps in a reward model's config; None where it says nothing."""

    sft_model: str | None
    model_type: str | None
    entropy_threshold: float | None
    mean: float | None
    std: float | None


def stored_settings(config, path: str) -> StoredSettings:
    """The settings in the config of the reward model at `path`. UserError for one of another type than it should be."""
    values = config.to_dict()
    nested = values.get("segment_reward") or {}
    if not isinstance(nested, dict):
        raise _wrong_setting(path, "segment_reward", nested, "an object")
    values = {**nested, "mean": values.get("mean"), "std": values.get("std")}
    for name in ("sft_model", "model_type"):
        if not isinstance(values.get(name), (str, type(None))):
            raise _wrong_setting(path, name, values[name], "a text")
    for name in ("entropy_threshold", "mean", "std"):
        value = values.get(name)
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise _wrong_setting(path, name, value, "a finite number")
    return StoredSettings(*map(values.get, StoredSettings._fields))


def _wrong_setting(path: str, name: str, found: object, expected: str) -> UserError:
    return UserError(
        f"{path}/config.json has {found!r} for {name}; expected {expected}", "correct it there, as denserl train-rm writes it"
    )


def local_folder(path: str) -> Path:
    """The folder that holds a model's files: `path` itself, or the hub snapshot it names. UserError for no model folder."""
    check_source(path, MODEL_FILES[:1])
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is neither a model folder nor a hub model that can be fetched", "give the folder's present path"
        ) from error


def _load_classifier(path, dtype, **kw):
    return _load_model(AutoModelForSequenceClassification, path, dtype, num_labels=1, **kw)


def _load_model(auto_class, path, dtype, **kw):
    """The model and what `_refuse` reads. Weights of another shape are reported there, not by the library."""
    settings = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _load(auto_class, path, dtype=as_dtype(dtype), **settings, **kw)
    return enable_packing(model), info


def _empty_model(auto_class, path, dtype, trust_remote_code: bool = False, attn_implementation: str = "sdpa", **settings):
    config = _load(AutoConfig, path, trust_remote_code=trust_remote_code, **settings)
    if auto_class is AutoModelForCausalLM and any("Classification" in name for name in config.architectures or ()):
        raise _is_reward_model(path, config.architectures[0])
    # Classifiers ask for one, as a tokenizer's would be set; it has no part in shapes.
    config.get_text_config().pad_token_id = config.pad_token_id = 0
    try:
        with torch.device("meta"):
            kw = {"trust_remote_code": trust_remote_code, "attn_implementation": attn_implementation}
            return auto_class.from_config(config, dtype=as_dtype(dtype), **kw)
    except UNREADABLE as error:
        raise not_loaded(str(path), False, error) from error


def _is_reward_model(path, sign: str) -> UserError:
    return UserError(
        f"{path} is a reward model (it holds {sign}); a language model is expected here",
        "give the language model that it was trained from",
    )


def _load(auto_class, path, **kw):
    path = str(path)
    is_tokenizer = auto_class is AutoTokenizer
    check_source(path, TOKENIZER_FILES if is_tokenizer else MODEL_FILES)
    # The library's own report of missing and unexpected weights is only a warning; `_refuse` decides what is an error.
    # Left unset, trust_remote_code would ask at the terminal.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return auto_class.from_pretrained(path, **{"trust_remote_code": False, **kw})
    except UNREADABLE as error:
        raise not_loaded(path, is_tokenizer, error) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _refuse(path, info, *, missing, unexpected) -> None:
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


def _reserved_token(tokenizer) -> str | None:
    """A special token of the vocabulary that nothing uses, one meant for padding first."""
    used = {*tokenizer.special_tokens_map.values()} - {tokenizer.pad_token}
    free = [
        token.content
        for _, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token.content not in used and token.content not in (tokenizer.chat_template or "")
    ]
    closing = tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))
    free = [token for token in free if token != closing]
    for pattern in (r"pad", r"reserved|unused|placeholder|control"):
        for token in free:
            if re.search(pattern, token, re.IGNORECASE):
                return token
    return None
