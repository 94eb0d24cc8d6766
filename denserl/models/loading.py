"""Tokenizer, policy, reward model and critic as stock Hugging Face classes, from a folder or the hub.

Loading is strict: a missing head, a missing weight or one too many is an error. safetensors only; no remote code unless asked.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from denserl.data.chat import check_system_prompt, end_of_turn_id
from denserl.data.chat_format import is_free
from denserl.data.hub import split_revision
from denserl.data.templates import SYSTEM_PROMPT, set_template, template_settings
from denserl.errors import UserError, require
from denserl.models import armorm
from denserl.models.armorm import stored_armorm_head
from denserl.models.dropout import disable_dropout
from denserl.models.findings import measure
from denserl.models.folders import (
    MODEL_FILES,
    TOKENIZER_FILES,
    UNREADABLE,
    check_source,
    not_loaded,
    read_settings,
    weight_files,
)
from denserl.models.gated import GatedHead, draw_gate
from denserl.models.gathering import gathered
from denserl.models.heads import (
    STOCK,
    Head,
    described_head,
    is_of_labels,
    is_stock,
    make_head,
    our_name,
    read_in_fp32,
    second_less_first,
    store_head,
    stored_grm_head,
    stored_head,
)
from denserl.models.lm_head import LM_HEAD, embeddings_name, read_rows
from denserl.models.measured import Measured, logit_map, measured, remember
from denserl.models.probe import check_same_hidden, run_as
from denserl.models.reward_settings import OF_SCORES

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NEW_PAD_TOKEN = "<|denserl_pad|>"
# Matrices of such a size are what devices are fast at.
ROWS_AT_ONCE = 64
# A file that a model may lack.
_OPTIONAL: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}
# Cut alike by tokenizers that are the same.
_SAMPLE = "The quick brown fox, 12 jumps;\n\tÄpfel."
# Names of weights: the head of stock classifiers, and what heads begin with (ours, GRM's).
STOCK_HEAD = "score.weight"
HEADS = ("score.", "v_head.")


def load_tokenizer(path: str, template: Mapping[str, Any] | None = None, **kw: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a chat template of one date, and a pad token that differs from the end-of-turn token.

    Where the pad token is missing or is the end-of-turn token, a special token of the vocabulary that nothing uses takes its
    place, else a new one (then the model's embeddings must follow: `match_embeddings`).

    Args:
        template: what the chat template is to be, if not as it is saved (the arguments of `set_template`).

    Raises:
        UserError: nothing loadable there, no chat template, or none that can be used as it is asked for.
    """
    tokenizer, template = _load(AutoTokenizer, path, **kw), template or {}
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
    return _load(AutoTokenizer, path, **kw)


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """`fp32`, `bf16` or a torch dtype -> the torch dtype. ValueError for another name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)} and torch dtypes")
    return DTYPES[dtype]


def load_config(path: str, **kw: Any) -> PreTrainedConfig:
    """The config of a model. UserError where there is none that can be read."""
    return _load(AutoConfig, path, **kw)


def load_policy(path: str, dtype: str | torch.dtype, dropout: bool = False, **kw: Any) -> PreTrainedModel:
    """A causal language model, measured (probe.py); dtype is `fp32`, `bf16` or a torch dtype.

    dropout: keep what its config says of dropout, for training where neither scores nor ratios are used.

    Raises:
        UserError: no folder, incomplete weights, or numbers that depend on more than a row and what came before.
    """
    model, info = _load_model(AutoModelForCausalLM, path, dtype, dropout, **kw)
    heads = _under(HEADS, info["unexpected_keys"])
    if heads:
        raise _is_reward_model(path, heads[0])
    _refuse(path, info, missing=(), unexpected=())
    return _measured(model, path)


def load_reward_model(path: str, dtype: str | torch.dtype, **kw: Any) -> PreTrainedModel:
    """A trained reward model, in evaluation mode: a backbone, the head that its config describes, and nothing else.

    Raises:
        UserError: no head, another than the config describes (`heads.stored_head`), missing or unexpected weights.
    """
    model, info = _load_classifier(path, dtype, **kw)
    head = stored_head(model.config, path)
    if not is_stock(head):
        # Attributes, and labels in a checkpoint of a training, have several rows where a stock classifier has one.
        info["mismatched_keys"] = [key for key in info["mismatched_keys"] if key[0] != STOCK_HEAD]
    if head.kind == "label":
        _refuse(path, info, missing=(STOCK_HEAD,), unexpected=[*_under(HEADS, info["unexpected_keys"]), *LM_HEAD])
        _read_labels(model, head, path)
        model.label_origin = Origin(path, kw)
    elif is_stock(head):
        if STOCK_HEAD in info["missing_keys"]:
            raise _without_head(path, info["unexpected_keys"])
        _refuse(path, info, missing=(), unexpected=())
    else:
        _refuse(path, info, missing=(STOCK_HEAD,), unexpected=_under(HEADS, info["unexpected_keys"]))
        _read_head(model, head, path)
        # The labels that it has in the stock class are none where it is loaded with one.
        store_head(model.config, head)
    return _measured(model, path).eval()


def load_grm(path: str, dtype: str | torch.dtype, **kw: Any) -> tuple[PreTrainedModel, Head]:
    """A reward model in GRM's published layout (docs/layouts.md) as ours, and its head; a language-model head is left out.

    Raises:
        UserError: the config does not describe such a head, or weights are missing, unexpected or of another shape.
    """
    model, info = _load_classifier(path, dtype, **kw)
    head = stored_grm_head(model.config, path)
    _refuse(path, info, missing=(STOCK_HEAD,), unexpected=[*_under(HEADS, info["unexpected_keys"]), *LM_HEAD])
    _read_head(model, head, path, our_name)
    return _measured(model, path).eval(), head


def load_armorm(path: str, dtype: str | torch.dtype, gate_offset: int, **kw: Any) -> tuple[PreTrainedModel, Head]:
    """A reward model in ArmoRM's published layout (docs/layouts.md) as ours, and its head.

    gate_offset: of prompts as its chat template writes them (`chat.after_last_turn`).

    Raises:
        UserError: the config does not describe such a head, or weights are missing, unexpected or of another shape.
    """
    model, info = _load_classifier(path, dtype, **kw)
    head = stored_armorm_head(read_settings(local_folder(path) / "config.json"), path, gate_offset)
    require(
        STOCK_HEAD in info["missing_keys"],
        f"{path} holds a second head ({STOCK_HEAD}) beside that of ArmoRM's layout",
        "fetch or save the model again",
    )
    _refuse(path, info, missing=(STOCK_HEAD,), unexpected=_under(tuple(armorm.NAMES), info["unexpected_keys"]))
    _read_head(model, head, path, armorm.our_name, tuple(armorm.NAMES))
    store_head(model.config, head)
    return _measured(model, path).eval(), head


def load_two_labels(path: str, dtype: str | torch.dtype, **kw: Any) -> tuple[PreTrainedModel, Head]:
    """A token classifier of two labels as a reward model, and its head: linear, the logit of label 1 less that of label 0.

    UserError for a head of another shape, and for weights that are missing, unexpected or of another shape.
    """
    model, info = _load_classifier(path, dtype, **kw)
    found = {key: shape for key, shape, _ in info["mismatched_keys"]}
    shape = found.pop(STOCK_HEAD, (1, model.score.in_features))
    require(
        tuple(shape) == (2, model.score.in_features),
        f"{path} is a token classifier whose head ({STOCK_HEAD}) has the shape {tuple(shape)}; expected two labels, "
        f"{(2, model.score.in_features)}",
        "give one of two labels, wrong and right",
    )
    info["mismatched_keys"] = [key for key in info["mismatched_keys"] if key[0] != STOCK_HEAD]
    _refuse(path, info, missing=(STOCK_HEAD,), unexpected=_under(HEADS, info["unexpected_keys"]))
    tensors = second_less_first(_tensors_under(path, HEADS))
    head = Head(bias="score.bias" in tensors)
    _put_head(model, head, path, tensors)
    store_head(model.config, head)
    return _measured(model, path).eval(), head


def new_reward_model(path: str, dtype: str | torch.dtype, seed: int = 0, head: Head = STOCK, **kw: Any) -> PreTrainedModel:
    """The trunk of a language model, or of a reward model, under a fresh head (see `init_head`), in evaluation mode.

    What the head is stands in `config.segment_reward["head"]`, unless it is the stock one. A head of labels begins as the rows
    that the language model has for their tokens (`head.label_ids`), so that its scores are that model's own log-odds of them.
    What a reward model has stored of its scores is left out with its head.
    """
    model, info = _load_classifier(path, dtype, **kw)
    info["mismatched_keys"] = [key for key in info["mismatched_keys"] if key[0] != STOCK_HEAD]
    for name in OF_SCORES:
        vars(model.config).pop(name, None)
    _refuse(path, info, missing=(STOCK_HEAD,), unexpected=[*_under(HEADS, info["unexpected_keys"]), *LM_HEAD])
    if head.kind == "label":
        head = _begin_labels(model, head, path, dtype, **kw)
    elif not is_stock(head):
        model.score = make_head(model.score.in_features, head, as_dtype(dtype))
    store_head(model.config, head)
    init_head(model, seed)
    return _measured(model, path).eval()


def new_gated_model(path: str, dtype: str | torch.dtype, head: Head, seed: int = 0, **kw: Any) -> PreTrainedModel:
    """A model of rated attributes under a gate that is drawn anew, in evaluation mode.

    Its attributes are not transformed, and the gate's scale is 1.

    Raises:
        UserError: no model of the attributes that `head` names.
    """
    model = load_reward_model(path, dtype, **kw)
    require(
        stored_head(model.config, path).names == head.names and not isinstance(model.score, GatedHead),
        f"{path} is no model of the attributes {', '.join(head.names)}",
        "train one with denserl train-rm --input ratings --head_type attributes",
    )
    for name in OF_SCORES:
        vars(model.config).pop(name, None)
    rows = model.score.weight
    model.score = make_head(rows.shape[1], head, rows.dtype).eval()
    model.score.weight = rows
    draw_gate(model.score.gate, seed)
    store_head(model.config, head)
    return model


def holds_reward_head(path: str) -> bool:
    """Whether a model is a reward model: by the names of its weights, or as its config describes. UserError for no folder."""
    folder, names = local_folder(path), []
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            names += weights.keys()
    return bool(_under(HEADS, names)) or not is_stock(described_head(read_settings(folder / "config.json"), path))


def attach_lm_head(model: PreTrainedModel, path: str, dtype: str | torch.dtype, **kw: Any) -> None:
    """Give a classifier, as `model.lm_head`, the head of the language model it was made from; saving leaves it out.

    Where the family ties it to the embeddings, its weight is the classifier's own embedding matrix. Where the classifier's
    embeddings have grown (`match_embeddings`), it has grown alike.
    """
    policy = load_policy(path, dtype, **kw)
    _grow_embeddings(policy, model.get_input_embeddings().num_embeddings)
    # Before they share a weight, which ZeRO-3 does not gather twice at once.
    check_same_hidden(policy, model)
    head = policy.get_output_embeddings()
    if head.weight is policy.get_input_embeddings().weight:
        head.weight = model.get_input_embeddings().weight
    remember(model, measured(model)._replace(logits=logit_map(policy)))
    model.lm_head = head
    names = [f"lm_head.{name}" for name, _ in head.named_parameters()]
    model._keys_to_ignore_on_save = [*(model._keys_to_ignore_on_save or ()), *names]


def train_whole_head(model: PreTrainedModel, path: str, dtype: str | torch.dtype, **kw: Any) -> None:
    """Let a model of labels learn with all rows of the language model's head, as `model.lm_head` (`attach_lm_head`).

    `score` reads its two rows there, so that it moves with them; where the family ties the head, all are the embeddings.
    """
    attach_lm_head(model, path, dtype, **kw)
    model.score.read_in(model.lm_head, stored_head(model.config, path).label_ids)
    if model.score.weight is model.get_input_embeddings().weight:
        model._keys_to_ignore_on_save.append("score.weight")


def freeze_trunk(model: PreTrainedModel) -> None:
    """Let the reward head alone learn, of a gated one its gate."""
    model.requires_grad_(False)
    learning = model.score.gate if isinstance(model.score, GatedHead) else model.score
    learning.requires_grad_(True)


class Origin(NamedTuple):
    """The language model that a model of labels was made from, which has the other rows of its head."""

    path: str
    loading: dict[str, Any]  # the arguments that it is loaded with
    own_class: type[PreTrainedModel] | None = None  # of the language model, where it is known


def origin_of(model: PreTrainedModel) -> Origin | None:
    """Of a model of labels that was loaded here."""
    return getattr(model, "label_origin", None)


def empty_policy(path: str, dtype: str | torch.dtype, **kw: Any) -> PreTrainedModel:
    """The language model that a config.json describes, on torch's meta device: shapes without numbers; no weights are read.

    Raises:
        UserError: no config there, none of a language model, or that of a reward model.
    """
    return _empty_model(AutoModelForCausalLM, path, dtype, **kw)


def empty_reward_model(path: str, dtype: str | torch.dtype, **kw: Any) -> PreTrainedModel:
    """The same with one score in place of logits, whatever head the config was written for."""
    return read_in_fp32(_empty_model(AutoModelForSequenceClassification, path, dtype, num_labels=1, **kw))


def init_head(model: PreTrainedModel, seed: int) -> None:
    """Draw the head anew, the same on every rank; under ZeRO-3 partitioned weights are gathered first.

    A linear head's weight is normal(0, 1 / (hidden + 1)) (as for arXiv 2501.02790) and its bias 0; an MLP's layers are
    drawn as torch draws them (as for arXiv 2406.10216). Nothing is drawn for labels, which have their rows.
    """
    head = model.score
    if is_of_labels(model):
        return
    with gathered(list(head.parameters()), write=True), torch.no_grad():
        if isinstance(head, nn.Linear):
            spread = 1 / (head.in_features + 1)
            head.weight.copy_(torch.empty(head.weight.shape).normal_(0, spread, generator=torch.Generator().manual_seed(seed)))
            if head.bias is not None:
                head.bias.zero_()
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for layer in head.children():
                    if isinstance(layer, nn.Linear):
                        layer.reset_parameters()


def match_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model its pad id, and grow its embeddings where the tokenizer has gained a token: to a multiple of 64 rows."""
    rows = model.get_input_embeddings().num_embeddings
    if _grow_embeddings(model, len(tokenizer)):
        log.warning("embeddings grown from %d to %d rows for new tokens", rows, model.get_input_embeddings().num_embeddings)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def _grow_embeddings(model: PreTrainedModel, rows: int) -> bool:
    """Add rows where there are fewer, the same new ones in every model: policy and reference must start out equal."""
    if model.get_input_embeddings().num_embeddings >= rows:
        return False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(rows, pad_to_multiple_of=ROWS_AT_ONCE)
    return True


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


def _load_classifier(path: str, dtype: str | torch.dtype, **kw: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A classifier of one label; of attributes in the files, which have a row each, nothing is taken."""
    code = {"trust_remote_code": kw.get("trust_remote_code", False)}
    # Under ZeRO-3 the library loads no weight of another shape.
    rows = len(stored_head(load_config(path, **code), path).names) or 1
    model, info = _load_model(AutoModelForSequenceClassification, path, dtype, num_labels=rows, **kw)
    if rows > 1:
        model.score = nn.Linear(model.score.in_features, 1, bias=False, dtype=model.dtype)
        model.config.num_labels = model.num_labels = 1
        info["missing_keys"] = {*info["missing_keys"], STOCK_HEAD}
    return read_in_fp32(model), info


def _load_model(
    auto_class: type[Any], path: str, dtype: str | torch.dtype, dropout: bool = False, **kw: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model and what `_refuse` reads. Weights of another shape are reported there, not by the library."""
    settings = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _load(auto_class, path, dtype=as_dtype(dtype), **settings, **{**kw, **_kernel(**kw)})
    if not dropout:
        disable_dropout(model)
    return model, info


def _kernel(attn_implementation: str | None = None, **_: Any) -> dict[str, str | None]:
    """sdpa is left to the library to choose, which takes it where a family has it, and eager attention elsewhere."""
    return {"attn_implementation": None if attn_implementation == "sdpa" else attn_implementation}


def _measured(model: PreTrainedModel, path: str) -> PreTrainedModel:
    return run_as(model, measure(model, path))


def _empty_model(
    auto_class: type[Any],
    path: str,
    dtype: str | torch.dtype,
    trust_remote_code: bool = False,
    attn_implementation: str = "sdpa",
    **settings: Any,
) -> PreTrainedModel:
    config = _load(AutoConfig, path, trust_remote_code=trust_remote_code, **settings)
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


def _load(auto_class: type[Any], path: str | Path, **kw: Any) -> Any:
    path = str(path)
    is_tokenizer = auto_class is AutoTokenizer
    check_source(path, TOKENIZER_FILES if is_tokenizer else MODEL_FILES)
    # The library's own report of missing and unexpected weights is only a warning; `_refuse` decides what is an error.
    # Left unset, trust_remote_code would ask at the terminal.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        name, revision = split_revision(path)
        which = {"revision": revision} if revision else {}
        return auto_class.from_pretrained(name, **{"trust_remote_code": False, **which, **kw})
    except UNREADABLE as error:
        raise not_loaded(path, is_tokenizer, error) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _refuse(path: str, info: Mapping[str, Any], *, missing: Iterable[str], unexpected: Iterable[str]) -> None:
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


def _read_head(
    model: PreTrainedModel,
    head: Head,
    path: str,
    name_of: Callable[[str], str] = str,
    prefixes: tuple[str, ...] = HEADS,
) -> None:
    """Put a head on a classifier, with the weights that the files at `path` hold for it; strict.

    name_of: a weight's name in the files -> its name here. prefixes: of the names of a head's weights in the files.
    """
    tensors = {name_of(name): tensor for name, tensor in _tensors_under(path, prefixes).items()}
    if not tensors:
        raise _without_head(path, ())
    _put_head(model, head, path, tensors)


def _tensors_under(path: str, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(local_folder(path)):
        with safe_open(file, framework="pt") as weights:
            tensors |= {name: weights.get_tensor(name) for name in _under(prefixes, weights.keys())}
    return tensors


def _put_head(model: PreTrainedModel, head: Head, path: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put a head on a classifier with just these weights, by the names that they have in the model."""
    # On meta, as the config's sizes are not checked yet: nothing is allocated for them.
    with torch.device("meta"):
        module = make_head(model.score.in_features, head)
    expected = {f"score.{name}": weight for name, weight in module.state_dict().items()}
    both = expected.keys() & tensors.keys()
    info = {
        "missing_keys": expected.keys() - both,
        "unexpected_keys": tensors.keys() - both,
        "mismatched_keys": [
            (name, tensors[name].shape, expected[name].shape) for name in both if tensors[name].shape != expected[name].shape
        ],
    }
    _refuse(path, info, missing=(), unexpected=())
    module.load_state_dict({name.removeprefix("score."): tensor for name, tensor in tensors.items()}, assign=True)
    model.score = module.to(model.dtype)


def _begin_labels(model: PreTrainedModel, head: Head, path: str, dtype: str | torch.dtype, **kw: Any) -> Head:
    """Put a head of labels on a classifier, with the rows of the language model that it was made from; what it is, whole."""
    policy = load_policy(path, dtype, **kw)
    own, logits = policy.get_output_embeddings(), logit_map(policy)
    _check_rows(head, policy.get_input_embeddings().num_embeddings, path)
    head = head._replace(bias=own.bias is not None, scale=logits.scale, cap=logits.cap)
    model.score = make_head(model.score.in_features, head, as_dtype(dtype))
    with gathered(list(own.parameters())), torch.no_grad():
        for mine, whole in zip(model.score.parameters(), own.parameters(), strict=True):
            mine.copy_(whole[list(head.label_ids)])
    check_same_hidden(policy, model)
    model.label_origin = Origin(path, kw, type(policy))
    return head


def _read_labels(model: PreTrainedModel, head: Head, path: str) -> None:
    """Put a head of labels on a classifier, with the rows that the files at `path` hold for it; strict.

    They stand in the language model's head, or in that of a checkpoint of a training.
    """
    _check_rows(head, model.get_input_embeddings().num_embeddings, path)
    tied = embeddings_name(model) if model.config.get_text_config().tie_word_embeddings else None
    tensors = read_rows(local_folder(path), head.label_ids, tied)
    require(
        "weight" in tensors,
        f"{path} has a head of labels by its config.json, and its files hold no language model's head ({LM_HEAD[0]})",
        "fetch or save the model again",
    )
    _put_head(model, head, path, {f"score.{name}": tensor for name, tensor in tensors.items()})


def _check_rows(head: Head, rows: int, path: str) -> None:
    require(
        max(head.label_ids) < rows,
        f"{path}: its head's label_ids are {' and '.join(map(str, head.label_ids))}, and its vocabulary has {rows} tokens",
        "find the ids anew with denserl export --layout denserl --labels, or put back the config.json that denserl wrote",
    )


def _under(prefixes: tuple[str, ...], names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(prefixes))


def _without_head(path: str, unexpected: Collection[str]) -> UserError:
    """The error for a model without the head that it should have, by what stands in its place."""
    if _under(("v_head.",), unexpected):
        return UserError(
            f"{path} has its head in GRM's layout (v_head)",
            f"write it in ours: denserl export --reward_model {path} --layout denserl --output_dir NEW_FOLDER",
        )
    if _under(tuple(armorm.NAMES), unexpected):
        return UserError(
            f"{path} has its head in ArmoRM's layout (regression_layer, gating)",
            f"write it in ours: denserl export --reward_model {path} --layout denserl --output_dir NEW_FOLDER",
        )
    others = _under(HEADS, unexpected)
    if others:
        return UserError(
            f"{path} holds a head ({', '.join(others)}) that its config.json does not describe (segment_reward, head)",
            "put back the config.json that denserl train-rm wrote",
        )
    return UserError(
        f"{path} holds no reward head (score.weight); it looks like a language model",
        "give a trained reward model, or train one with denserl train-rm --model " + str(path),
    )


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
