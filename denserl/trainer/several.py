"""One command of several trainings of reward models: each an ordinary one in its own folder, and a file that tells of them.

It goes on wherever it was ended. What the trainings have to do with one another is in self_training.py and members.py.
"""

import dataclasses
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from denserl import distributed
from denserl.config import resumable_options
from denserl.data.templates import DATE
from denserl.errors import require
from denserl.files import replace_whole
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.members import MEMBERS_FILE
from denserl.trainer.checkpoint import check_settings, has_checkpoints
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_making import check_trunk
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.self_training_config import ROUNDS
from denserl.trainer.start import run_settings, start_run, template_of_run, with_defaults
from denserl.trainer.supervised import check_steps

Train = Callable[[RewardConfig], dict[str, float]]

# The files that tell of several trainings, and the field of each with a report of all that have ended.
RECORDS = {ROUNDS: "rounds", MEMBERS_FILE: "members"}


@dataclasses.dataclass
class Record:
    """What is known of the trainings so far, and kept in a file: `settings`, and the further fields of a subclass."""

    path: Path
    settings: dict

    def write(self) -> None:
        """The file, whole or not at all."""
        if distributed.rank() == 0:
            values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "path"}
            replace_whole(self.path, json.dumps(values, indent=2) + "\n")
        distributed.barrier()


Kind = TypeVar("Kind", bound=Record)


def train_once(config: RewardConfig) -> dict[str, float]:
    """One training, to its end."""
    return RewardTrainer.from_config(config).run()


def begin(config: RewardConfig, name: str, kind: type[Kind]) -> tuple[torch.device, str, Kind | None]:
    """Device, precision, and what an earlier run has left under the name, which is to go on; None at the start of one.

    Raises:
        UserError: options that do not go together; there is nothing to go on with, or what the folder holds was not to go on.
    """
    device, dtype = start_run(config)
    check_steps(config)
    check_trunk(config)
    folder = Path(config.output_dir)
    path = folder / name
    if config.resume:
        require(path.is_file(), f"`resume`: {folder} holds no {name}", "leave `resume` out to start anew")
        return device, dtype, kind(path, **json.loads(path.read_text(encoding="utf-8")))
    found = f"`output_dir` {folder} holds an earlier training"
    require(not has_begun(folder), found, "add `resume` to go on with it, or give another `output_dir`")
    return device, dtype, None


def has_begun(folder: Path) -> bool:
    """Whether a training in the folder, one or several by one command, has ended or has a checkpoint to go on from."""
    told = {field: folder / name for name, field in RECORDS.items() if (folder / name).is_file()}
    ended = any(json.loads(path.read_text(encoding="utf-8"))[field] for field, path in told.items())
    folders = [folder, *(folder.glob("*") if told else ())]
    return ended or any(has_checkpoints(each / "checkpoints") for each in folders)


def common_tokenizer(config: RewardConfig, before: Record | None) -> PreTrainedTokenizerBase:
    """The tokenizer of all trainings, whose chat template has the date of the first one."""
    template = template_of_run(config, None)
    if before is not None:
        template["default_date"] = before.settings[DATE] or template["default_date"]
    return load_tokenizer(config.model, template, **config.tokenizer_source())


def common_settings(
    config: RewardConfig, before: Record | None, tokenizer: PreTrainedTokenizerBase, dtype: str, contents: dict[str, Dataset]
) -> tuple[dict, RewardConfig]:
    """What a resumed run must agree with; and the config, with one date for the chat templates of all trainings.

    contents: rows that are learned from, by what they are called.

    Raises:
        UserError: the run that is resumed was of other settings.
    """
    parts = {name: part.remove_columns("place") for name, part in contents.items()}
    settings = run_settings(config, dtype, None, tokenizer, models=["model"], **parts)
    if before is not None:
        check_settings(with_defaults(before.settings, RewardConfig), settings, resumable_options(RewardConfig), before.path)
    return settings, dataclasses.replace(config, template_date=settings[DATE] or config.template_date)


def own_config(config: RewardConfig, folder: Path, **changes: Any) -> RewardConfig:
    """The config of one of the trainings, which goes on from a checkpoint where it has one."""
    resumed = has_checkpoints(folder / "checkpoints")
    changes |= {"output_dir": str(folder), "resume": resumed, "push_to_hub": None, "hub_public": False}
    return dataclasses.replace(config, **changes)


def evaluation_of(metrics: dict[str, float]) -> dict[str, float]:
    """What a training's metrics say of held-out rows."""
    return {name: value for name, value in metrics.items() if name.startswith("eval_")}


def let_go() -> None:
    """Give back what a training has left in the process: memory, and ways of loading that hold for ZeRO-3."""
    gc.collect()
    unset_hf_deepspeed_config()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
