"""The start of a run: process group, seeds, output folder, the checkpoint to go on from, what checkpoints remember."""

import dataclasses
import json
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from denserl import distributed
from denserl.config import DeviceConfig, RunConfig, options_of, resumable_options
from denserl.data.fingerprints import file_fingerprint, rows_fingerprint, rows_fingerprint_of_text
from denserl.data.templates import DATE, SYSTEM_PROMPT, fingerprint, template_settings, today
from denserl.errors import require
from denserl.files import make_folder
from denserl.memory.formulas import Sharding, Size
from denserl.memory.shortage import shortage
from denserl.models.four_bit import check_four_bit
from denserl.models.kernels import check_liger
from denserl.models.loading import local_folder
from denserl.models.publishing import check_sharing
from denserl.models.tokenizers import load_tokenizer
from denserl.terminal import quiet_libraries
from denserl.trainer.checkpoint import check_settings, clear_leftovers, has_checkpoints, newest_checkpoint, read_state
from denserl.trainer.config import OptimisationConfig
from denserl.trainer.engine import init_distributed, pick_device
from denserl.trainer.tracker_runs import chosen_trackers

log = logging.getLogger(__name__)

# Options that are there no more; what they set is among the settings of the rewards.
OF_THE_VERSION_BEFORE = {"model_type", "fit_tag", "params", "segment_method"}


def start_run(config: RunConfig) -> tuple[torch.device, str]:
    """Process group, seeds, output folder, checks that need no data; returns device and precision, `auto` resolved."""
    config.check()
    warnings.filterwarnings("ignore", message="OMP_NUM_THREADS/MKL_NUM_THREADS unset")
    warnings.filterwarnings("ignore", message=".*will be removed in v6", category=FutureWarning)
    quiet_libraries()
    device, dtype = device_and_precision(config)
    if isinstance(config, OptimisationConfig):
        chosen_trackers(config.report_to)
        check_sharing(config)
        if config.use_liger_kernel:
            check_liger(device.type)
        if config.load_in_4bit:
            check_four_bit()
    make_folder("output_dir", config.output_dir)
    init_distributed(device)
    if distributed.rank() > 0:
        logging.getLogger().setLevel(logging.ERROR)
    set_seed(config.seed)
    return device, dtype


def device_and_precision(config: DeviceConfig) -> tuple[torch.device, str]:
    """What `auto` stands for here. UserError for a device that is not there."""
    device = pick_device(config.device)
    return device, config.dtype if config.dtype != "auto" else ("bf16" if device.type == "cuda" else "fp32")


def warn_of_shortage(
    config: OptimisationConfig, dtype: str, device: torch.device, trained: Sequence[nn.Module], frozen: Sequence[nn.Module] = ()
) -> None:
    """Log where the models, as they are trained, need more than the GPU has (denserl/memory/shortage.py)."""
    if device.type != "cuda":
        return
    memory = torch.cuda.get_device_properties(device).total_memory
    sharding = Sharding(distributed.world_size(), config.zero_stage, 4 if dtype == "fp32" else 2, config.offload_optimizer)
    if said := shortage([Size.of(model) for model in trained], [Size.of(model) for model in frozen], sharding, memory):
        log.warning("%s", said)


def checkpoint_to_resume(config: OptimisationConfig, output_dir: str) -> Path | None:
    """The newest whole checkpoint of the output folder, when resuming is asked for.

    Raises:
        UserError: there is none, or there are some and resuming was not asked for.
    """
    folder = Path(output_dir) / "checkpoints"
    if not config.resume:
        require(
            not has_checkpoints(folder),
            f"`output_dir` {output_dir} holds checkpoints of an earlier run",
            "add `resume` to go on from the newest, or give another `output_dir`",
        )
        return None
    newest = newest_checkpoint(folder)
    clear_leftovers(folder)
    if distributed.rank() == 0:
        # What a kill left of final weights, under the name that safetensors gives a file until it is whole.
        for left in Path(output_dir).rglob(".tmp??????"):
            left.unlink()
    require(newest is not None, f"`resume`: {output_dir} holds no checkpoint", "leave `resume` out to start anew")
    log.info("going on from %s", newest)
    return newest


def template_of_run(config: RunConfig, checkpoint: Path | None, model: str | None = None) -> dict[str, Any]:
    """What the run's chat template is to be (see `data.templates.set_template`): its date is one for the run. Collective.

    model: one whose system prompt and date are taken over where nothing else is said.
    """
    saved = read_state(checkpoint)["settings"].get(DATE) if checkpoint else None
    its = template_settings(load_tokenizer(model, **config.tokenizer_source())) if model else {}
    # At midnight ranks could be of two minds.
    date = distributed.gather_objects(saved or its.get(DATE) or today())[0]
    if its.get(SYSTEM_PROMPT) and config.system_prompt is None:
        log.info("system prompt: that of %s, unless the policy has one of its own", model)
    return {**config.template(), "default_date": date, "default_prompt": its.get(SYSTEM_PROMPT)}


def run_settings(
    config: RunConfig,
    dtype: str,
    checkpoint: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    models: Sequence[str],
    others: dict | None = None,
    **rows: Dataset,
) -> dict:
    """What checkpoints remember of a run: options, ranks, precision, fingerprints of weights and of data. Collective.

    Weights, rows and a chat template are compared by content instead of by path; precision, system prompt and date as they
    are resolved.

    Args:
        checkpoint: the one to resume from, whose settings must agree with these in all but what may change (RESUMABLE).
        models: names of the options that name a model, or several.
        others: further settings, name -> value.
        rows: name -> tokenised data that is trained on.

    Raises:
        UserError: a setting that must not change has changed.
    """
    settings = {**dataclasses.asdict(config), "ranks": distributed.world_size(), "precision": dtype, **(others or {})}
    # How the command was called this time is no setting of the run.
    del settings["resume"]
    settings |= {**template_settings(tokenizer), "chat_template": fingerprint(config.chat_template)}
    contents = None
    if distributed.rank() == 0:
        named = {name: settings[name] for name in models if settings[name]}
        paths = {name: [value] if isinstance(value, str) else value for name, value in named.items()}
        contents = {
            f"weights of {name}": " ".join(file_fingerprint(local_folder(path), dtype)[:16] for path in paths[name])
            for name in paths
        }
        before = read_state(checkpoint)["settings"] if checkpoint else {}
        contents |= {(name := f"content of {of}"): _content(part, before.get(name)) for of, part in rows.items()}
    # As JSON has it, so that it equals what is read back from a checkpoint.
    settings = json.loads(json.dumps(settings | distributed.gather_objects(contents)[0]))
    if checkpoint is not None:
        saved = with_defaults(as_saved_now(read_state(checkpoint)["settings"]), type(config))
        check_settings(saved, settings, resumable_options(type(config)), checkpoint)
    return settings


def _content(rows: Dataset, saved: str | None) -> str:
    """A hash of rows, of the kind that a checkpoint holds: of 16 digits where version 0.1 wrote it."""
    return rows_fingerprint_of_text(rows)[:16] if saved is not None and len(saved) == 16 else rows_fingerprint(rows)[:32]


def with_defaults(settings: dict, config: type[RunConfig]) -> dict:
    """Settings of a checkpoint, with the options that there were not when it was written: they did what they do by default."""
    known = {option.name: option.default for option in options_of(config) if option.default is not dataclasses.MISSING}
    del known["resume"]
    return json.loads(json.dumps(known)) | settings


def as_saved_now(settings: dict) -> dict:
    """Settings of a checkpoint that version 0.1 wrote, as this version would have written them."""
    settings = {name: value for name, value in settings.items() if name not in OF_THE_VERSION_BEFORE}
    one_source = re.fullmatch(
        r"DenseReward\(threshold=(?P<threshold>[^,]+), (?P<way>.*), tau=(?P<tau>[^,]+), length_norm=(?P<length_norm>\w+), .*\)",
        settings.get("rewards", ""),
    )
    if not one_source:
        return settings
    way = "DenseReward({way}, agg_func={agg_func!r}, tau={tau}, length_norm={length_norm})"
    source = {
        "threshold": float(one_source["threshold"]),
        "segmenter": "peak",
        "rewards": way.format(**one_source.groupdict(), agg_func=settings["agg_func"]),
        "weight": 1.0,
    }
    source = {f"{what} of reward_model": value for what, value in source.items()}
    return {name: value for name, value in settings.items() if name != "rewards"} | source
