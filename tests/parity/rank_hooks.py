"""What is called in the processes of ranks before a command, to bend it or to look into it; and work that needs no command."""

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import tiny_models
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments

from denserl import distributed
from denserl.data.batching import DemonstrationCollator
from denserl.data.demonstrations import load_demonstrations
from denserl.errors import UserError
from denserl.ppo_utils.advantages import against_group, whiten
from denserl.segmentation import Segmenter
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.sft_trainer import SFTTrainer


def each(*changes: Callable[[], None]) -> None:
    """Make several changes."""
    for change in changes:
        change()


def gather_every_parameter() -> None:
    """Let ZeRO-3 part with all parameters; by itself it keeps those of up to 100 000 numbers whole, all of a tiny model."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    DeepSpeedZeroConfig.model_fields["param_persistence_threshold"].default = 0
    DeepSpeedZeroConfig.model_rebuild(force=True)


def small_chunks() -> None:
    """Logits of few positions at a time, so that ranks have different numbers of chunks."""
    from denserl.models import logprob

    logprob.LOGITS_PER_CHUNK = 320 * 3


def settled_dropout() -> None:
    """The two passes of a contrastive term differ by what stands where, and no more by chance, which follows the batches."""
    from denserl.rewards.objectives import contrast
    from denserl.trainer import reward_making

    contrast.dropout = lambda x, share: x * torch.linspace(0.5, 1.5, x[0, 0].numel()).view(x[0, 0].shape)
    reward_making.drop_attention = lambda model, share: None


def uneven_responses() -> None:
    """Responses of even numbers never end, those of odd numbers end at once: two ranks have all of one kind."""
    from denserl.rollouts.policy import PolicySampler

    sample = PolicySampler._decode

    def decode(self, model, rows, waiting, size, tokens):
        odd = torch.tensor([stream.spawn_key[-1] % 2 == 1 for _, stream in rows])
        yield from sample(self, model, rows, waiting, size, tokens)
        tokens[torch.isin(tokens, torch.tensor(self.stop_ids))] = self.pad_id + 5
        tokens[odd, 0] = self.stop_ids[0]

    PolicySampler._decode = decode


def count_gathers(notes: Path) -> None:
    """Note for each rollout: the longest response, parameters of the policy, weights gathered, and in how many copies."""
    from denserl.rollouts.policy import PolicySampler
    from denserl.trainer import ppo_models

    gathers, copies = Counted(torch.distributed.all_gather_into_tensor), Counted(ppo_models.update_copy)
    torch.distributed.all_gather_into_tensor, ppo_models.update_copy = gathers, copies
    sample = PolicySampler.__call__

    def noted(self, prompts, streams):
        before = gathers.calls, copies.calls
        rollouts = sample(self, prompts, streams)
        note = {
            "tokens": max(map(len, rollouts.responses)),
            "gathers": gathers.calls - before[0],
            "copies": copies.calls - before[1],
        }
        with open(notes.with_suffix(f".{distributed.rank()}"), "a") as file:
            file.write(json.dumps(note) + "\n")
        return rollouts

    PolicySampler.__call__ = noted


def note_shares(notes: Path) -> None:
    """Note how many numbers of the frozen language model a rank holds, and of how many."""
    from denserl.trainer import reference

    frozen_engine = reference.frozen_engine

    def noted(*args):
        engine = frozen_engine(*args)
        parameters = list(engine.module.parameters())
        note = [sum(p.ds_tensor.numel() for p in parameters), sum(p.ds_numel for p in parameters)]
        with open(notes.with_suffix(f".{distributed.rank()}"), "a") as file:
            file.write(json.dumps(note) + "\n")
        return engine

    reference.frozen_engine = noted


def keep_outputs(path: Path) -> None:
    """Keep what each model says of a few rows right before it is written."""
    from denserl.trainer import group_trainer, ppo_trainer, sft_trainer

    save_models, save_trained = ppo_trainer.save_models, sft_trainer.save_trained

    def keep(**models) -> None:
        found = {name: outputs(model) for name, model in models.items()}
        if distributed.rank() == 0:
            torch.save(found, path)

    def of_trainer(trainer, output_dir: str) -> None:
        keep(model=trainer.model)
        save_trained(trainer, output_dir)

    def of_ppo(config, models, *args) -> None:
        keep(model=models.current_policy(), critic=models.critic.module)
        save_models(config, models, *args)

    ppo_trainer.save_models, sft_trainer.save_trained, group_trainer.save_trained = of_ppo, of_trainer, of_trainer


def outputs(model: torch.nn.Module) -> Tensor:
    """The stock outputs for a few rows of unequal lengths: a classifier's score of each row, a language model's logits."""
    ids, mask = tiny_models.padded(tiny_models.random_rows([9, 3, 14, 6], seed=8, vocabulary=300))
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return (logits if logits.ndim == 2 else logits[mask.bool()]).float()


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kw):
        self.calls += 1
        return self.function(*args, **kw)


def evaluations(counts: list[int], folder: Path) -> list[dict[str, float]]:
    """What both trainers report of so many rows, before any training."""
    settings = {"use_cpu": True, "report_to": [], "remove_unused_columns": False, "output_dir": str(folder)}
    shared = {"args": TrainingArguments(**settings), "eval_tokens": 40}
    pairs = RewardTrainer(model=tiny_models.classifier("llama"), segmenter=Segmenter(1.0), pad_id=0, **shared)
    text = SFTTrainer(model=tiny_models.language_model("llama"), data_collator=DemonstrationCollator(0), **shared)
    return [trainer.evaluate(rows(count)) for count in counts for trainer, rows in ((pairs, some_pairs), (text, some_text))]


def shards() -> list[tuple[Tensor, Tensor, tuple[slice, slice]]]:
    """Two batches, each in two shards: of unequal size, and with nothing on the second rank's mask."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 9, generator=generator) * 2 + 5
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 6])[:, None]
    half_empty = mask * torch.tensor([[1], [1], [0], [0]])
    return [(x, mask, (slice(0, 3), slice(3, 4))), (x, half_empty, (slice(0, 2), slice(2, 4)))]


GROUPS = [0, 1, 0, 1]  # both of which the ranks share, in the first batch
EVERY_ROW = slice(0, 4)


def estimates(x: Tensor, mask: Tensor, rows: slice = EVERY_ROW) -> list[Tensor]:
    """Whatever is computed over all ranks, of the rows of one."""
    against = [against_group(x[rows], mask[rows], GROUPS[rows], loo, not loo) for loo in (True, False)]
    return [whiten(x[rows], mask[rows]), *against]


def estimated() -> list[list[Tensor]]:
    """The same of this rank's shard of each batch."""
    torch.distributed.init_process_group("gloo")
    return [estimates(x, mask, rows[distributed.rank()]) for x, mask, rows in shards()]


def waited(fails: bool) -> tuple[list, str]:
    """What ranks are told of work that takes rank 0 twice as long as their group waits; and how the group's barrier ends."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=0.5))

    def work() -> str:
        if distributed.rank() == 0:
            time.sleep(1)
            if fails:
                raise OSError("no room")
        return f"of {distributed.rank()}"

    try:
        told: list = distributed.in_own_time(work)
    except (OSError, UserError) as error:
        return [type(error).__name__, str(error)], ""
    time.sleep(1 - distributed.rank())
    try:
        distributed.barrier()
    except RuntimeError as error:
        return told, str(error)
    return told, ""


def looked_for(folder: Path) -> str:
    """What is said of a folder in which rank 1 sees nothing of rank 0's."""
    torch.distributed.init_process_group("gloo")
    distributed.check_shared(folder, "cache_dir")
    if distributed.rank() == 1:
        Path.exists = lambda path: False
    try:
        distributed.check_shared(folder, "cache_dir")
    except UserError as error:
        return str(error)
    return ""


def kept_rows(sources: list[str], caches: list[str]) -> tuple[list[dict], str, str]:
    """What each rank, the first of a host of its own, is given of its source; what ends it; and its cache folder."""
    torch.distributed.init_process_group("gloo")
    source, cache = sources[distributed.rank()], caches[distributed.rank()]
    os.environ["LOCAL_RANK"] = "0"
    os.chdir(Path(source).parent)
    try:
        rows = list(load_demonstrations([Path(source).name], cache_dir=cache))
    except UserError as error:
        return [], error.found, ""
    return rows, "", str(list(Path(cache).glob("rows-*")) and cache)


def some_pairs(count: int) -> Dataset:
    """Tokenised pairs of unequal lengths, with entropies on both sides of a threshold of 1."""
    columns = {"prompt_ids": lengths(count, 5), "chosen_ids": lengths(count, 7), "rejected_ids": lengths(count, 3)}
    entropy = {f"{side}_entropy": [[id % 3 for id in row] for row in columns[f"{side}_ids"]] for side in ("chosen", "rejected")}
    return Dataset.from_dict({**columns, **entropy, "margin": [0.0] * count})


def some_text(count: int) -> Dataset:
    """Tokenised text of unequal lengths."""
    return Dataset.from_dict({"input_ids": lengths(count, 7), "loss_start": [i % 2 for i in range(count)]})


def lengths(count: int, step: int) -> list[list[int]]:
    return tiny_models.random_rows([2 + step * i % 11 for i in range(count)], seed=step)
