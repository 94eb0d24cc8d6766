"""Writing a model as its head wants it: one of labels as the language model that it is, one that tells quality from what goes
with a covariate as the plain classifier of its quality, any other as it stands.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from denserl.errors import require
from denserl.models.four_bit import config_as_stored
from denserl.models.gathering import merged_weights
from denserl.models.heads import STOCK, is_disentangled, is_of_labels, quality_alone, store_head, stored_head
from denserl.models.lm_head import embeddings_name, read_whole
from denserl.models.loading import empty_policy, local_folder
from denserl.models.measured import stock_model
from denserl.models.prototypes import PROTOTYPES
from denserl.models.reward_models import origin_of


def save_model(model: PreTrainedModel, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write weights and config. A model of labels becomes a stock language model (`as_language_model`), a disentangled one the
    stock classifier of its quality.

    state: its weights, whole, if not as the model has them (`gathering.whole_state`).

    Raises:
        UserError: a model of labels whose language model is not known.
    """
    if is_of_labels(model):
        as_language_model(model, state or model.state_dict()).save_pretrained(folder)
    elif is_disentangled(model):
        _save_quality(model, folder, state or model.state_dict())
    else:
        model.save_pretrained(folder, state_dict=state)


def save_merged(model: nn.Module, folder: str | Path) -> None:
    """Write a whole policy as it computes now, adapters merged; what is in 4 bits in the type that it was quantised from."""
    stock = stock_model(model)
    if stock is model:
        return model.save_pretrained(folder)
    with torch.device("meta"):
        plain = type(stock)(config_as_stored(stock))
    plain.load_state_dict({name: weight() for name, _, weight in merged_weights(model)}, strict=False, assign=True)
    plain.tie_weights()
    plain.generation_config = stock.generation_config
    plain.save_pretrained(folder)


def is_saved_otherwise(model: PreTrainedModel) -> bool:
    """Whether `save_model` writes another model than it is given, so that it needs the weights whole."""
    return is_of_labels(model) or is_disentangled(model)


def _save_quality(model: PreTrainedModel, folder: str | Path, state: Mapping[str, Tensor]) -> None:
    model.save_pretrained(folder, state_dict=quality_alone(state))
    # After the weights, with which the library writes the config of the model as it is.
    config = copy.deepcopy(model.config)
    store_head(config, STOCK)
    config.save_pretrained(folder)


def as_language_model(model: PreTrainedModel, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model of labels as the causal language model of its trunk, whose logits of both labels differ by its score.

    Its head is that of the language model that it was made from, with the two rows put back; where that family ties it to the
    embeddings, it is tied no longer. After `train_whole_head` it is the whole head as it was trained, tied as it was.

    state: the weights of the model, whole.
    """
    origin = origin_of(model)
    require(
        origin is not None,
        f"{type(model).__name__}: a model of labels whose language model is not known cannot be written",
        "load it with denserl.models.loading, from a folder that holds a whole model",
    )
    head, embeddings = _whole_head(model, state, origin.path), model.get_input_embeddings().weight
    config = copy.deepcopy(model.config)
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = model.score.weight is embeddings
    # What only classifiers have.
    config.num_labels = 2
    own_class = origin.own_class or type(empty_policy(origin.path, model.dtype, **origin.loading))
    # The class itself, since the library's own ways to make one would spread its weights under ZeRO-3.
    with torch.device("meta"):
        policy = own_class(config)
    own = next(name for name, module in policy.named_modules() if module is policy.get_output_embeddings())
    beside = ("score.", "lm_head.", f"{PROTOTYPES}.")
    trunk = {name: tensor for name, tensor in state.items() if not name.startswith(beside)}
    policy.load_state_dict({**trunk, **{f"{own}.{name}": tensor for name, tensor in head.items()}}, assign=True)
    policy.tie_weights()
    if (local_folder(origin.path) / "generation_config.json").is_file():
        policy.generation_config = GenerationConfig.from_pretrained(local_folder(origin.path))
    return policy


def _whole_head(model: PreTrainedModel, state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    own = {name.removeprefix("score."): tensor for name, tensor in state.items() if name.startswith("score.")}
    ids = stored_head(model.config, path).label_ids
    if len(own["weight"]) > len(ids):
        return own
    tied = embeddings_name(model)
    whole = {key: tensor.to(model.dtype) for key, tensor in read_whole(local_folder(path), tied).items()}
    missing = model.get_input_embeddings().num_embeddings - len(whole["weight"])
    for key, tensor in whole.items():
        # Tokens that the vocabulary has gained are as likely as others.
        tensor = torch.cat([tensor, *[tensor.float().mean(0, keepdim=True).to(tensor)] * missing])
        tensor[list(ids)] = own[key].to(tensor)
        whole[key] = tensor
    return whole
