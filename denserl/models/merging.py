"""LoRA adapters merged into the model that they were trained on: a language model, or a reward model with its head.

Training with adapters is prepared in denserl/models/adapters.py.
"""

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.errors import UserError
from denserl.models.folders import ADAPTERS, read_settings
from denserl.models.four_bit import stored_base
from denserl.models.heads import Head, described_head, make_head
from denserl.models.loading import load_policy, match_embeddings
from denserl.models.reward_models import new_reward_model
from denserl.models.reward_settings import OF_SCORES
from denserl.models.tokenizers import load_tokenizer

log = logging.getLogger(__name__)

SETTINGS, WEIGHTS = ADAPTERS, "adapter_model.safetensors"
PREFIX = "base_model.model."


def merge_adapters(
    base: str, adapter: str, dtype: str | torch.dtype | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model `base` with the LoRA adapters of a folder merged in, and the tokenizer that goes with it.

    Adapters of a sequence classifier make a reward model: its head, and what train-rm keeps in its config, come with them.

    Args:
        dtype: precision of the merged weights; default: the adapters' own.

    Raises:
        UserError: no adapters there, no reward head with those of a reward model, or adapters of another model.
    """
    settings, tensors = read_adapter(adapter)
    config = read_settings(Path(adapter) / "config.json") if (Path(adapter) / "config.json").is_file() else {}
    named = settings.get("base_model_name_or_path")
    if named and named != base:
        log.warning("%s says that its adapters were trained on %s", Path(adapter) / SETTINGS, named)
    own = next((tensor.dtype for name, tensor in tensors.items() if "lora_" in name), None)
    if own is None:
        raise UserError(f"{adapter} holds no LoRA weights", "give a folder that was saved with them")
    source = adapter if (Path(adapter) / "tokenizer_config.json").is_file() else base
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    if settings["task_type"] == "CAUSAL_LM":
        model = load_policy(base, dtype or own, trust_remote_code=trust_remote_code)
    else:
        head = described_head(config, adapter)
        model = new_reward_model(base, dtype or own, head=head, trust_remote_code=trust_remote_code)
        _check_head(
            adapter,
            head,
            tensors,
            next(module.in_features for module in model.score.modules() if isinstance(module, nn.Linear)),
        )
    match_embeddings(model, tokenizer)
    merged = _merged(model, base, adapter, tensors)
    for name in OF_SCORES:
        if name in config:
            setattr(merged.config, name, config[name])
    return merged.eval(), tokenizer


def merge_trained(model: nn.Module, adapter: Path) -> PreTrainedModel:
    """A model that was trained with adapters, these merged in; of one in 4 bits, into its base as it is stored.

    adapter: folder to which they have just been saved.
    """
    base = stored_base(model)
    if base is None:
        return model.merge_and_unload()
    return merge_adapters(base.path, str(adapter), trust_remote_code=base.trust_remote_code)[0]


def read_adapter(path: str) -> tuple[dict, dict[str, Tensor]]:
    """Settings and weights of LoRA adapters in a folder. UserError where there are none, or of a kind that is not merged."""
    folder = Path(path)
    if not (folder / SETTINGS).is_file():
        inside = folder / "adapter"
        fix = (
            f"give {inside}" if (inside / SETTINGS).is_file() else "give the folder adapter/ that a run with `lora_rank` wrote"
        )
        raise UserError(f"{path} holds no adapters ({SETTINGS})", fix)
    settings = read_settings(folder / SETTINGS)
    for name, known in (("peft_type", ("LORA",)), ("task_type", ("CAUSAL_LM", "SEQ_CLS"))):
        if settings.get(name) not in known:
            raise UserError(
                f"{folder / SETTINGS} has {settings.get(name)!r} for {name}; expected {' or '.join(known)}",
                "give adapters that denserl wrote, or merge these with the library that wrote them",
            )
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{path} holds no {WEIGHTS}; pickled adapters are not read", "save them again as safetensors")
    try:
        return settings, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} is damaged or half written ({error})", "fetch or save it again") from error


def _check_head(adapter: str, head: Head, tensors: dict[str, Tensor], hidden: int) -> None:
    """UserError unless the adapters come with every weight of the head, and with no other."""
    with torch.device("meta"):
        expected = {f"{PREFIX}score.{name}" for name in make_head(hidden, head).state_dict()}
    found = {name for name in tensors if name.startswith(f"{PREFIX}score.")}
    if not found:
        raise UserError(
            f"{adapter} holds adapters of a reward model but no reward head (score), which cannot be made up",
            "save them with modules_to_save=['score'], as denserl train-rm --lora_rank does, or train again",
        )
    if found != expected:
        raise UserError(
            f"{adapter} holds another head than its config.json describes: {', '.join(sorted(found ^ expected))}",
            "put back the config.json that denserl train-rm wrote beside the adapters",
        )


def _merged(model: PreTrainedModel, base: str, adapter: str, tensors: dict[str, Tensor]) -> PreTrainedModel:
    try:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    except ImportError as error:
        raise UserError(
            "merging adapters needs the package peft, which is not installed", "pip install 'denserl[lora]'"
        ) from error
    try:
        config = LoraConfig.from_pretrained(adapter)
        config.base_model_name_or_path = None  # what it was then has been compared
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
        result = set_peft_model_state_dict(wrapped, tensors)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise _do_not_fit(adapter, base, " ".join(str(error).split())[:300]) from error
    missing = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing or result.unexpected_keys:
        raise _do_not_fit(adapter, base, f"{len(missing)} weights missing, {len(result.unexpected_keys)} too many")
    return wrapped.merge_and_unload()


def _do_not_fit(adapter: str, base: str, why: str) -> UserError:
    return UserError(
        f"{adapter}: the adapters do not fit {base}: {why}", "give as `model` the folder that they were trained on"
    )
