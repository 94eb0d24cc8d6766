"""Reward models in the layouts of other libraries: the same weights to the bit, under other names and settings.

The way back is in importing.py. Which weights are accepted is in reward_models.py, what they are called in GRM's layout in
heads.py, and in ArmoRM's in armorm.py.
"""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.data.chat import after_last_turn, end_of_turn_id
from denserl.errors import UserError, require
from denserl.models.armorm import CLASS, armorm_name, armorm_settings
from denserl.models.folders import opened, read_settings, weight_files
from denserl.models.heads import Head, grm_name, grm_settings, is_stock, second_less_first, stored_head, weighted_row
from denserl.models.lm_head import LM_HEAD, embeddings_name, read_rows
from denserl.models.loading import local_folder
from denserl.models.reward_models import load_reward_model
from denserl.models.reward_settings import stored_settings
from denserl.models.tokenizers import load_tokenizer

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

# Loaded once to be checked; what is written comes from the files.
CHECKED_IN = torch.bfloat16
ROPE = ("rope_theta", "partial_rotary_factor")
# Where a family's config.json had names of its own for these.
OLD_ROPE_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
PHI3_ROPE_SCALING = ("short_factor", "long_factor")


def export_classifier(source: str, target: Path) -> None:
    """A standard classifier with one label, which transformers 4.57 and 5 score alike (docs/layouts.md).

    Raises:
        UserError: no reward model, one whose head is not one linear layer without bias, or no tokenizer that 4.57 reads alike.
    """
    model = load_reward_model(source, CHECKED_IN)
    head, change = _linear_form(source, model)
    if not is_stock(head):
        raise UserError(
            f"{source} has a head that no standard classifier has: {_described(head)}; it has one linear layer without bias",
            "train with denserl train-rm --head_type linear, or export with `layout` grm",
        )
    write_model(source, target, classifier_settings(source, model), model, change, for_version_4=True)


def export_grm(source: str, target: Path) -> None:
    """GRM's published layout (docs/layouts.md); a linear head without bias gets one of 0. UserError for no reward model."""
    model = load_reward_model(source, CHECKED_IN)
    head, linear = _linear_form(source, model)
    settings = classifier_settings(source, model) | grm_settings(head)

    def change(tensors: Tensors) -> Tensors:
        tensors = linear(tensors)
        changed = {grm_name(name): tensor for name, tensor in tensors.items()}
        if is_stock(head) and "score.weight" in tensors:
            changed[grm_name("score.bias")] = tensors["score.weight"].new_zeros(1)
        return changed

    write_model(source, target, settings, model, change, for_version_4=True)


def _linear_form(source: str, model: PreTrainedModel) -> tuple[Head, Callable[[Tensors], Tensors]]:
    """A reward model's head, and what becomes of its tensors, file by file: of labels or attributes it is the linear one that
    scores alike.

    UserError for labels of a language model that caps its logits, whose difference is not linear.
    """
    head = stored_head(model.config, source)
    if head.kind == "attributes":
        return Head(), functools.partial(weighted_row, weights=head.weights)
    require(
        head.kind != "gated",
        f"{source} weighs its attributes by the prompt, which no layer of a classifier does",
        "export it with `layout` armorm",
    )
    if head.kind != "label":
        return head, dict
    require(
        stored_settings(model.config, source).input != "pair",
        f"{source} compares two responses in one text, which no classifier of single responses does",
        "use it as the language model that it is, which every library reads",
    )
    require(
        head.cap is None,
        f"{source} reads two labels of a language model that caps its logits at {head.cap}; no layer of a classifier does",
        "use it as the language model that it is, which every library reads: its logits of both labels differ by the score",
    )
    rows = read_rows(local_folder(source), head.label_ids, embeddings_name(model))
    score = second_less_first({f"score.{name}": tensor for name, tensor in rows.items()}, -head.scale)

    def change(tensors: Tensors) -> Tensors:
        own = {name: score.pop(name) for name in list(score)}
        return {**{name: tensor for name, tensor in tensors.items() if name not in LM_HEAD}, **own}

    return Head(bias=head.bias), change


def export_armorm(source: str, target: Path) -> None:
    """ArmoRM's published layout (docs/layouts.md) of a gated model.

    UserError for any other, and where the gate is not read at the last end of turn, at which that layout's readers find it.
    """
    model = load_reward_model(source, CHECKED_IN)
    head, after = stored_head(model.config, source), after_last_turn(load_tokenizer(source))
    require(
        head.kind == "gated",
        f"{source} has no gate over attributes (its head is {head.kind})",
        "train one with denserl train-rm --head_type gated, or export with `layout` hf",
    )
    require(
        head.gate_offset == after,
        f"{source} reads its gate {head.gate_offset} tokens before the end of the prompt; its chat template ends the last turn "
        f"{after} tokens before, where readers of that layout look",
        "put back the chat template that it was trained with",
    )
    settings = classifier_settings(source, model) | armorm_settings(head)
    settings["architectures"] = [type(model).__name__.replace("ForSequenceClassification", CLASS)]

    def change(tensors: Tensors) -> Tensors:
        return {armorm_name(name): tensor for name, tensor in tensors.items()}

    write_model(source, target, settings, model, change, for_version_4=True)


LAYOUTS = {"hf": export_classifier, "grm": export_grm, "armorm": export_armorm}


def settings_for_version_4(settings: dict, path: str) -> dict:
    """What transformers 4 reads in place of a config's `rope_parameters`, which it ignores; nothing where there are none.

    Args:
        settings: a config as transformers 5 completes it. path: of its model, for the error.

    Raises:
        UserError: position encodings for which version 4 has no words.
    """
    if "text_config" in settings:
        raise UserError(f"{path} is a language model inside a larger one (text_config)", "use it with transformers 5, as it is")
    rope = settings.get("rope_parameters") or {}
    by_layer = {name: value for name, value in rope.items() if isinstance(value, dict)}
    if not by_layer:
        return _old_rope(rope, settings.get("model_type")) if rope else {}
    if set(by_layer) == {"full_attention", "sliding_attention"} and len(by_layer["sliding_attention"]) == 2:
        of_windows = by_layer["sliding_attention"]
        if of_windows.get("rope_type") == "default":
            return _old_rope(by_layer["full_attention"], "") | {"rope_local_base_freq": of_windows["rope_theta"]}
    raise UserError(
        f"{path}: transformers 4 has no words for its position encodings by type of layer ({', '.join(by_layer)})",
        "use it with transformers 5, as it is",
    )


def _old_rope(rope: dict, model_type: str | None) -> dict:
    names = OLD_ROPE_NAMES.get(model_type, {})
    old = {names.get(key, key): rope[key] for key in ROPE if key in rope}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return old
    scaling = {key: value for key, value in rope.items() if key not in ROPE}
    if model_type == "phi3":  # which refuses any other key
        scaling = {"type": kind, **{key: rope[key] for key in PHI3_ROPE_SCALING}}
    return old | {"rope_scaling": scaling}


def classifier_settings(source: str, model: PreTrainedModel) -> dict:
    """The config.json of `source` as that of a classifier with one label, of whose head nothing is said."""
    settings = read_settings(local_folder(source) / "config.json")
    # Code that came with the source, and does not come along.
    settings.pop("auto_map", None)
    if "segment_reward" in settings:
        settings["segment_reward"] = {key: value for key, value in settings["segment_reward"].items() if key != "head"}
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return settings | {"architectures": [type(model).__name__]} | labels


def write_model(
    source: str,
    target: Path,
    settings: dict,
    model: PreTrainedModel,
    change: Callable[[Tensors], Tensors],
    for_version_4: bool,
    template: str | None = None,
) -> None:
    """Config, tokenizer, and the weights of `source` as `change` gives them, file by file.

    template: a chat template in the place of the one that came with it.
    """
    tokenizer = load_tokenizer(source, {"text": template})
    if for_version_4 and stored_settings(model.config, source).entropy_threshold is not None:
        # Stock classes read the last token that the template writes; what was trained here is read at its end of turn.
        end = tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))
        tokenizer.chat_template = closed_template(tokenizer.get_chat_template(), end)
    settings["pad_token_id"] = tokenizer.pad_token_id
    if for_version_4:
        rows = model.get_input_embeddings().num_embeddings
        if tokenizer.pad_token_id >= rows:
            raise UserError(
                f"{source} has no pad token beside its end-of-turn token, and its {rows} embeddings have no place for one",
                "train it with denserl train-rm, which adds one to model and tokenizer",
            )
        settings |= settings_for_version_4(model.config.to_dict(), source)
        if settings.get("attn_logit_softcapping"):
            log.warning("with transformers 4, load it with attn_implementation='eager': its sdpa leaves out the soft cap")
    (target / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(target, save_jinja_files=not for_version_4)
    if for_version_4:
        _tokenizer_for_version_4(target, tokenizer)
    _copy_weights(local_folder(source), target, change)


def closed_template(template: str, end: str) -> str:
    """The chat template without what it writes after the text `end` that closes a last assistant turn, such as a line break."""
    closed = f"{{{{- written.rpartition({end!r})[0] + {end!r} -}}}}"
    return (
        f"{{% set written %}}{template}{{% endset %}}"
        "{%- if add_generation_prompt or messages[-1]['role'] != 'assistant' -%}{{- written -}}"
        f"{{%- else -%}}{closed}{{%- endif -%}}"
    )


def _tokenizer_for_version_4(target: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name in tokenizer_config.json what version 4 knows. UserError unless the tokenizer read back cuts text as before."""
    path = target / "tokenizer_config.json"
    settings = read_settings(path)
    for name in ("backend", "is_local", "local_files_only", "auto_map"):
        settings.pop(name, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Version 4 expects an object under the newer name.
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    chat = [{"role": "user", "content": "The quick  brown fox,\n12 jumps;"}, {"role": "assistant", "content": "Äpfel."}]
    again = load_tokenizer(str(target)) if (target / "tokenizer.json").is_file() else None
    if again is None or any(_ids(again, chat, special) != _ids(tokenizer, chat, special) for special in (False, True)):
        raise UserError(
            f"{target}: the tokenizer cannot be written as a plain PreTrainedTokenizerFast, which transformers 4 reads",
            "use the reward model with transformers 5, as it is",
        )


def _ids(tokenizer: PreTrainedTokenizerBase, chat: list[dict], special: bool) -> list[int]:
    return tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=special)


def _copy_weights(source: Path, target: Path, change: Callable[[Tensors], Tensors]) -> None:
    files, size = weight_files(source), 0
    places: dict[str, str] = {}
    for file in files:
        with opened(file) as weights:
            tensors = change({name: weights.get_tensor(name) for name in weights.keys()})
        save_file(tensors, target / file.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if [file.name for file in files] != ["model.safetensors"]:
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


def _described(head: Head) -> str:
    return f"an mlp of {head.layers} hidden layer(s)" if head.kind == "mlp" else "a linear layer with bias"
