"""Reward models of other libraries in our own layout: the same weights, with what is needed to read them in their config.

GRM's and ArmoRM's layouts, token classifiers of two labels (as of TRL's PRMTrainer), and language models that judge steps, or
two responses, by labels in a chat (as of RLHFlow). The way out is in export.py.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from denserl.data.chat import after_last_turn
from denserl.data.labels import label_ids
from denserl.data.pair_encoding import PairLayout
from denserl.errors import require
from denserl.models import armorm
from denserl.models.armorm import COUNT, SETTINGS, is_armorm
from denserl.models.export import CHECKED_IN, Tensors, classifier_settings, write_model
from denserl.models.folders import read_settings
from denserl.models.heads import GRM_SETTINGS, Head, head_settings, our_name, second_less_first
from denserl.models.lm_head import LM_HEAD
from denserl.models.loading import local_folder
from denserl.models.reward_models import load_armorm, load_grm, load_two_labels, new_reward_model
from denserl.models.reward_settings import KEY
from denserl.models.tokenizers import load_tokenizer

log = logging.getLogger(__name__)

# What a token classifier of steps is trained on: the question and each step with its separator, one behind the other, and no
# words of a chat. The last step too has a separator, at which it is read.
PLAIN_TEMPLATE = (
    "{{% if bos_token %}}{{{{ bos_token }}}}{{% endif %}}{{% for message in messages %}}"
    "{{% if message['role'] == 'assistant' %}}{{{{ message['content'] | trim + {separator!r} + eos_token }}}}"
    "{{% else %}}{{{{ message['content'] }}}}{{% endif %}}{{% endfor %}}"
)


def import_model(
    source: str,
    target: Path,
    labels: tuple[str, ...] | None = None,
    context_signs: str | None = None,
    separators: Sequence[str] | None = None,
    pair_layout: PairLayout | None = None,
) -> None:
    """A reward model of another library in our own layout; of which one is seen in its config.json.

    Args:
        labels: with which a language model judges, the better one first; of such a model alone.
        context_signs: how it is shown steps (step_encoding.StepLayout); default: plus.
        separators: what stands between steps; default: a line break of a token classifier, else a blank line.
        pair_layout: how a language model is shown two responses, if it compares them.

    Raises:
        UserError: none of the layouts; or weights that are missing, unexpected or of another shape.
    """
    settings = read_settings(local_folder(source) / "config.json")
    if labels is not None:
        steps = _of_steps(separators or ["\n\n"], context_signs or "plus")
        import_labels(source, target, labels, {"input": "pair", "pair_layout": pair_layout} if pair_layout else steps)
    elif any("ForTokenClassification" in str(name) for name in settings.get("architectures") or ()):
        import_token_classifier(source, target, separators or ["\n"])
    else:
        layout = "ArmoRM" if is_armorm(settings) else "GRM"
        require(
            not separators,
            f"`step_separator` has no effect: a reward model in {layout}'s layout knows no steps",
            "leave `step_separator` out, or give the `labels` with which a language model judges",
        )
        (import_armorm if is_armorm(settings) else import_grm)(source, target)


def import_grm(source: str, target: Path) -> None:
    """A published GRM model, without the language-model head that may come with it.

    Raises:
        UserError: not in that layout, or with weights that are missing, unexpected or of another shape.
    """
    model, head = load_grm(source, CHECKED_IN)
    settings = classifier_settings(source, model)
    settings[KEY] = {**(settings.get(KEY) or {}), "head": head_settings(head)}
    settings = {name: value for name, value in settings.items() if name not in GRM_SETTINGS}

    def change(tensors: Tensors) -> Tensors:
        return {our_name(name): tensor for name, tensor in tensors.items() if name not in LM_HEAD}

    write_model(source, target, settings, model, change, for_version_4=False)


def import_armorm(source: str, target: Path) -> None:
    """A published ArmoRM model (`armorm.stored_armorm_head`).

    Raises:
        UserError: not in that layout, or with weights that are missing, unexpected or of another shape.
    """
    model, head = load_armorm(source, CHECKED_IN, after_last_turn(load_tokenizer(source)))
    settings = classifier_settings(source, model)
    settings = {name: value for name, value in settings.items() if name not in (*SETTINGS, COUNT)}
    settings |= {name: getattr(model.config, name) for name in ("id2label", "label2id", "problem_type")}
    settings[KEY] = {**(settings.get(KEY) or {}), "head": head_settings(head)}

    def change(tensors: Tensors) -> Tensors:
        return {armorm.our_name(name): tensor for name, tensor in tensors.items()}

    log.info("its attributes: %s", ", ".join(head.names))
    write_model(source, target, settings, model, change, for_version_4=False)


def import_token_classifier(source: str, target: Path, separators: Sequence[str]) -> None:
    """A token classifier of wrong and right as a linear head with the difference of their rows, so that it gives the log-odds.

    Its tokenizer gets a template that writes what such a classifier is trained on (PLAIN_TEMPLATE).

    Raises:
        UserError: another number of labels; weights that are missing, unexpected or of another shape; no end-of-text token.
    """
    model, head = load_two_labels(source, CHECKED_IN)
    settings = classifier_settings(source, model)
    settings[KEY] = {"head": head_settings(head), **_of_steps(separators, "none")}
    template = PLAIN_TEMPLATE.format(separator=separators[0])
    log.info("its chat template is now the bare text of question and steps, as token classifiers of steps are trained on it")
    write_model(source, target, settings, model, second_less_first, for_version_4=False, template=template)


def import_labels(source: str, target: Path, labels: tuple[str, ...], read_as: dict[str, Any]) -> None:
    """A language model that judges by labels: its files as they are, and what its config says of the head.

    read_as: what it says of how the model is read.

    Raises:
        UserError: no language model, or labels that are not one token each in its chat template.
    """
    head = Head("label", labels=labels, label_ids=label_ids(load_tokenizer(source), labels))
    model = new_reward_model(source, CHECKED_IN, head=head)
    settings = read_settings(local_folder(source) / "config.json")
    described = model.config.segment_reward["head"]
    settings[KEY] = {**(settings.get(KEY) or {}), "head": described, **read_as}
    write_model(source, target, settings, model, dict, for_version_4=False)
    generation = local_folder(source) / "generation_config.json"
    if generation.is_file():
        shutil.copy(generation, target)


def _of_steps(separators: Sequence[str], context_signs: str) -> dict[str, Any]:
    """How a model that judges steps is read, as its config says it."""
    return {
        "scores": "logit",
        "segmenter": "step",
        "step_separator": list(separators),
        "context_signs": context_signs,
        "agg_func": "min",
    }
