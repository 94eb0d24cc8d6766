"""Models in checkpoints: what a checkpoint holds of a model beside its trained weights, and the model that both make.

Weights are read from DeepSpeed's files, without its engines, on one process, whatever the ranks and the ZeRO stage were.
"""

import contextlib
import copy
import io
import json
import logging
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from denserl.data.fingerprints import file_fingerprint
from denserl.errors import UserError, require
from denserl.models.folders import ADAPTERS, read_settings
from denserl.models.four_bit import config_as_stored
from denserl.models.heads import described_head
from denserl.models.loading import as_dtype, load_policy, local_folder, match_embeddings
from denserl.models.measured import stock_model
from denserl.models.merging import PREFIX, WEIGHTS, merge_adapters
from denserl.models.prototypes import PROTOTYPES
from denserl.models.reward_models import load_reward_model, new_gated_model, new_reward_model, train_whole_head
from denserl.models.saving import save_model
from denserl.models.tokenizers import load_tokenizer
from denserl.trainer.checkpoint import STATE, damage, read_state

log = logging.getLogger(__name__)

# The folder of a checkpoint, or of one of its engines, that describes the model.
DESCRIPTION = "model"
# Of torch: `torch.load` runs nothing that a file names.
_TENSORS_ALONE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# What objectives read beside a reward model, and what is saved leaves out.
BESIDE = ("lm_head.", f"{PROTOTYPES}.")
# Peft's names of what it trains; in files it leaves out the part that names the adapter.
OF_ADAPTER = re.compile(r"(\.modules_to_save)?\.default(?=\.|$)")


def describe(folder: Path, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what a model is beside its weights: config, generation settings, adapters' settings if any, and the tokenizer."""
    stock, target = stock_model(model), folder / DESCRIPTION
    config_as_stored(stock).save_pretrained(target)
    if stock.can_generate():
        stock.generation_config.save_pretrained(target)
    if hasattr(model, "peft_config"):
        adapters = copy.copy(model.peft_config["default"])
        # As peft has it in what it saves.
        adapters.inference_mode = True
        adapters.save_pretrained(str(target))
    tokenizer.save_pretrained(target)


class Part(NamedTuple):
    """A model in a checkpoint: where, where it is written below the output folder, and the options that name its base."""

    folder: str
    tag: str
    target: str
    prefix: str  # of the names of its weights, beyond those of the model
    base: str


def write_models(checkpoint: Path, target: Path, trust_remote_code: bool = False) -> None:
    """Write what a run would have written had it ended at a checkpoint: of PPO the policy, and the critic in critic/.

    A moving average of the policy is not written. Mean and std of a reward model's scores are stored where its run evaluated it
    at that step. Files are read for their tensors alone.

    Args:
        trust_remote_code: whether code of a model's folder may be run, where the run did so.

    Raises:
        UserError: no whole checkpoint there, one without description, the model that it began with is another one now, or its
            code is not trusted.
    """
    require(
        (checkpoint / STATE).is_file(),
        f"{checkpoint} is no checkpoint of a run ({STATE})",
        "give a folder such as OUTPUT_DIR/checkpoints/step-000256",
    )
    found = damage(checkpoint)
    require(found is None, f"{checkpoint} is damaged: {found}", "give another one")
    settings = read_state(checkpoint)["settings"]
    require(
        trust_remote_code or not settings["trust_remote_code"],
        f"{checkpoint} is of a run with `trust_remote_code`, and its model's code would be run",
        "give `trust_remote_code`, if you trust that code",
    )
    for part in _parts(checkpoint, settings):
        _write(checkpoint, part, settings, target / part.target)


def _parts(checkpoint: Path, settings: dict) -> list[Part]:
    if (checkpoint / "actor").is_dir():
        critic = "reward_model" if settings["critic_init"] == "reward_model" else "model"
        parts = [Part("actor", "state", ".", "model.", "model"), Part("critic", "state", "critic", "", critic)]
        return [part for part in parts if (checkpoint / part.folder).is_dir()]
    tag = next((path.name for path in checkpoint.glob("global_step*")), None)
    require(tag is not None, f"{checkpoint} holds no weights (global_step*)", "give another checkpoint")
    return [Part(".", tag, ".", "", "start_from" if settings.get("start_from") else "model")]


def _write(checkpoint: Path, part: Part, settings: dict, target: Path) -> None:
    description = checkpoint / part.folder / DESCRIPTION
    require(
        description.is_dir(),
        f"{checkpoint} was written by an earlier version, and does not say what model its weights are of",
        "go on from it with `resume`; the run writes the model at its end",
    )
    base, dtype = settings[part.base], settings["precision"]
    base = base[0] if isinstance(base, list) else base
    now, then = file_fingerprint(local_folder(base), dtype)[:16], settings[f"weights of {part.base}"].split()[0]
    require(now == then, f"{base} is not what the run began with: its weights are others", "put back the model as it was")
    trained = {
        name.removeprefix(part.prefix): tensor.to(as_dtype(dtype))
        for name, tensor in _trained_weights(checkpoint / part.folder, part.tag).items()
    }
    trust, target = settings["trust_remote_code"], Path(target)
    target.mkdir(parents=True, exist_ok=True)
    is_policy = (description / GENERATION_CONFIG_NAME).is_file()
    config = AutoConfig.from_pretrained(description, trust_remote_code=trust)
    if not is_policy and part.folder == ".":
        _store_moments(config, checkpoint)
    if (description / ADAPTERS).is_file():
        model = _merged(base, trained, description, config, target / "adapter", trust)
    else:
        tokenizer = load_tokenizer(str(description), trust_remote_code=trust)
        model = (_policy if is_policy else _classifier)(base, trained, description, dtype, tokenizer, trust)
    model.config = config
    if is_policy:
        model.generation_config = GenerationConfig.from_pretrained(description)
    save_model(model, target)
    _copy_but(description, target, CONFIG_NAME, GENERATION_CONFIG_NAME, ADAPTERS)


def _trained_weights(folder: Path, tag: str) -> dict[str, Tensor]:
    """What was trained, by name, in fp32, whole. UserError where a file would run something to be read."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        with _tensors_alone([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            if not any((folder / tag).glob("*_optim_states.pt")):
                return torch.load(folder / tag / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)["module"]
            with contextlib.redirect_stdout(io.StringIO()):
                return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag))
    except pickle.UnpicklingError as error:
        found = f"{folder / tag} holds more than tensors and numbers, and is not read: {str(error).splitlines()[0]}"
        raise UserError(found, "take a checkpoint of a run of your own") from error


@contextlib.contextmanager
def _tensors_alone(others: list[type]):
    """Within the context `torch.load` makes nothing of a file but tensors, plain values and these others, whoever calls it."""
    before = os.environ.get(_TENSORS_ALONE)
    os.environ[_TENSORS_ALONE] = "1"
    try:
        with torch.serialization.safe_globals(others):
            yield
    finally:
        del os.environ[_TENSORS_ALONE]
        if before is not None:
            os.environ[_TENSORS_ALONE] = before


def _policy(
    base: str, trained: dict[str, Tensor], description: Path, dtype: str, tokenizer: PreTrainedTokenizerBase, trust: bool
) -> PreTrainedModel:
    model = load_policy(base, dtype, trust_remote_code=trust)
    match_embeddings(model, tokenizer)
    return _with_weights(model, trained)


def _classifier(
    base: str, trained: dict[str, Tensor], description: Path, dtype: str, tokenizer: PreTrainedTokenizerBase, trust: bool
) -> PreTrainedModel:
    head = described_head(read_settings(description / CONFIG_NAME), str(description))
    if head.kind != "gated":
        model = new_reward_model(base, dtype, head=head, trust_remote_code=trust)
    elif described_head(read_settings(local_folder(base) / CONFIG_NAME), base).kind == "gated":
        model = load_reward_model(base, dtype, trust_remote_code=trust)
    else:
        model = new_gated_model(base, dtype, head=head, trust_remote_code=trust)
    match_embeddings(model, tokenizer)
    if head.kind == "label" and any(name.startswith("lm_head.") for name in trained):
        train_whole_head(model, base, dtype, trust_remote_code=trust)
    own = model.state_dict().keys()
    return _with_weights(model, {name: x for name, x in trained.items() if name in own or not name.startswith(BESIDE)})


def _with_weights(model: PreTrainedModel, trained: dict[str, Tensor]) -> PreTrainedModel:
    """What was frozen stays as the base has it."""
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    require(not unexpected, f"the checkpoint has weights that {type(model).__name__} has not: {unexpected[:1]}", "report this")
    return model


def _merged(
    base: str, trained: dict[str, Tensor], description: Path, config: PreTrainedConfig, adapter: Path, trust: bool
) -> PreTrainedModel:
    """The base with the adapters, which are written as the run writes them."""
    named = {OF_ADAPTER.sub("", name.removeprefix(PREFIX)): tensor for name, tensor in trained.items()}
    adapter.mkdir()
    kept = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in named.items() if not name.startswith(BESIDE)}
    save_file(kept, adapter / WEIGHTS, metadata={"format": "pt"})
    _copy_but(description, adapter, CONFIG_NAME, GENERATION_CONFIG_NAME)
    config.save_pretrained(adapter)
    return merge_adapters(base, str(adapter), trust_remote_code=trust)[0]


def _store_moments(config: PreTrainedConfig, checkpoint: Path) -> None:
    """Mean and std of a reward model's scores, of the evaluation at the checkpoint's step, if there was one."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    known = [row for row in state["log_history"] if row["step"] == state["global_step"] and "eval_score_mean" in row]
    for name in ("mean", "std"):
        vars(config).pop(name, None)
        if known:
            setattr(config, name, known[-1][f"eval_score_{name}"])
    if not known:
        log.info(
            "mean and std of its scores are not stored, since the run did not evaluate it at step %d", state["global_step"]
        )


def _copy_but(source: Path, target: Path, *names: str) -> None:
    for file in source.iterdir():
        if file.name not in names:
            shutil.copy(file, target)
