"""Reward models with their heads, from a folder or the hub, in our layout and others; fresh heads on language models.

A missing head is an error, and so is another one than the config describes. What heads there are is in heads.py.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from denserl.errors import UserError, require
from denserl.models import armorm
from denserl.models.armorm import stored_armorm_head
from denserl.models.folders import opened, read_settings, weight_files
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
from denserl.models.loading import (
    HEADS,
    STOCK_HEAD,
    as_dtype,
    as_measured,
    check_weights,
    grow_embeddings,
    load_config,
    load_policy,
    load_weights,
    local_folder,
    names_under,
)
from denserl.models.measured import logit_map, measured, remember
from denserl.models.probe import check_same_hidden
from denserl.models.reward_settings import OF_SCORES


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
        check_weights(path, info, missing=(STOCK_HEAD,), unexpected=[*names_under(HEADS, info["unexpected_keys"]), *LM_HEAD])
        _read_labels(model, head, path)
        model.label_origin = Origin(path, kw)
    elif is_stock(head):
        if STOCK_HEAD in info["missing_keys"]:
            raise _without_head(path, info["unexpected_keys"])
        check_weights(path, info, missing=(), unexpected=())
    else:
        check_weights(path, info, missing=(STOCK_HEAD,), unexpected=names_under(HEADS, info["unexpected_keys"]))
        _read_head(model, head, path)
        # The labels that it has in the stock class are none where it is loaded with one.
        store_head(model.config, head)
    return as_measured(model, path).eval()


def load_grm(path: str, dtype: str | torch.dtype, **kw: Any) -> tuple[PreTrainedModel, Head]:
    """A reward model in GRM's published layout (docs/layouts.md) as ours, and its head; a language-model head is left out.

    Raises:
        UserError: the config does not describe such a head, or weights are missing, unexpected or of another shape.
    """
    model, info = _load_classifier(path, dtype, **kw)
    head = stored_grm_head(model.config, path)
    _check_one_head(path, info, "GRM")
    check_weights(path, info, missing=(STOCK_HEAD,), unexpected=[*names_under(HEADS, info["unexpected_keys"]), *LM_HEAD])
    _read_head(model, head, path, our_name)
    return as_measured(model, path).eval(), head


def load_armorm(path: str, dtype: str | torch.dtype, gate_offset: int, **kw: Any) -> tuple[PreTrainedModel, Head]:
    """A reward model in ArmoRM's published layout (docs/layouts.md) as ours, and its head.

    gate_offset: of prompts as its chat template writes them (`chat.after_last_turn`).

    Raises:
        UserError: the config does not describe such a head, or weights are missing, unexpected or of another shape.
    """
    model, info = _load_classifier(path, dtype, **kw)
    head = stored_armorm_head(read_settings(local_folder(path) / "config.json"), path, gate_offset)
    _check_one_head(path, info, "ArmoRM")
    check_weights(path, info, missing=(STOCK_HEAD,), unexpected=names_under(tuple(armorm.NAMES), info["unexpected_keys"]))
    _read_head(model, head, path, armorm.our_name, tuple(armorm.NAMES))
    store_head(model.config, head)
    return as_measured(model, path).eval(), head


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
    check_weights(path, info, missing=(STOCK_HEAD,), unexpected=names_under(HEADS, info["unexpected_keys"]))
    tensors = second_less_first(_tensors_under(path, HEADS))
    head = Head(bias="score.bias" in tensors)
    _put_head(model, head, path, tensors)
    store_head(model.config, head)
    return as_measured(model, path).eval(), head


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
    check_weights(path, info, missing=(STOCK_HEAD,), unexpected=[*names_under(HEADS, info["unexpected_keys"]), *LM_HEAD])
    if head.kind == "label":
        head = _begin_labels(model, head, path, dtype, **kw)
    elif not is_stock(head):
        model.score = make_head(model.score.in_features, head, as_dtype(dtype))
    store_head(model.config, head)
    init_head(model, seed)
    return as_measured(model, path).eval()


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
    """Whether a model is a reward model: by the names of its weights, or as its config describes.

    UserError for no folder, or weights that cannot be read.
    """
    folder, names = local_folder(path), []
    for file in weight_files(folder):
        with opened(file) as weights:
            names += weights.keys()
    return bool(names_under(HEADS, names)) or not is_stock(described_head(read_settings(folder / "config.json"), path))


def attach_lm_head(model: PreTrainedModel, path: str, dtype: str | torch.dtype, **kw: Any) -> None:
    """Give a classifier, as `model.lm_head`, the head of the language model it was made from; saving leaves it out.

    Where the family ties it to the embeddings, its weight is the classifier's own embedding matrix. Where the classifier's
    embeddings have grown (`match_embeddings`), it has grown alike.
    """
    policy = load_policy(path, dtype, **kw)
    grow_embeddings(policy, model.get_input_embeddings().num_embeddings)
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
        with opened(file) as weights:
            tensors |= {name: weights.get_tensor(name) for name in names_under(prefixes, weights.keys())}
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
    check_weights(path, info, missing=(), unexpected=())
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


def _check_one_head(path: str, info: dict[str, Any], layout: str) -> None:
    """UserError where files in another layout hold a stock head as well: which of both is meant is not known."""
    found = f"{path} holds a second head ({STOCK_HEAD}) beside that of {layout}'s layout"
    require(STOCK_HEAD in info["missing_keys"], found, "fetch or save the model again")


def _check_rows(head: Head, rows: int, path: str) -> None:
    require(
        max(head.label_ids) < rows,
        f"{path}: its head's label_ids are {' and '.join(map(str, head.label_ids))}, and its vocabulary has {rows} tokens",
        "find the ids anew with denserl export --layout denserl --labels, or put back the config.json that denserl wrote",
    )


def _without_head(path: str, unexpected: Collection[str]) -> UserError:
    """The error for a model without the head that it should have, by what stands in its place."""
    if names_under(("v_head.",), unexpected):
        return UserError(
            f"{path} has its head in GRM's layout (v_head)",
            f"write it in ours: denserl export --reward_model {path} --layout denserl --output_dir NEW_FOLDER",
        )
    if names_under(tuple(armorm.NAMES), unexpected):
        return UserError(
            f"{path} has its head in ArmoRM's layout (regression_layer, gating)",
            f"write it in ours: denserl export --reward_model {path} --layout denserl --output_dir NEW_FOLDER",
        )
    others = names_under(HEADS, unexpected)
    if others:
        return UserError(
            f"{path} holds a head ({', '.join(others)}) that its config.json does not describe (segment_reward, head)",
            "put back the config.json that denserl train-rm wrote",
        )
    return UserError(
        f"{path} holds no reward head (score.weight); it looks like a language model",
        "give a trained reward model, or train one with denserl train-rm --model " + str(path),
    )


def _load_classifier(path: str, dtype: str | torch.dtype, **kw: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A classifier of one label; of attributes in the files, which have a row each, nothing is taken."""
    code = {"trust_remote_code": kw.get("trust_remote_code", False)}
    # Under ZeRO-3 the library loads no weight of another shape.
    rows = len(stored_head(load_config(path, **code), path).names) or 1
    model, info = load_weights(AutoModelForSequenceClassification, path, dtype, num_labels=rows, **kw)
    if rows > 1:
        model.score = nn.Linear(model.score.in_features, 1, bias=False, dtype=model.dtype)
        model.config.num_labels = model.num_labels = 1
        info["missing_keys"] = {*info["missing_keys"], STOCK_HEAD}
    return read_in_fp32(model), info
