"""Options of every training: optimiser, DeepSpeed, checkpoints; and of those on top of transformers.Trainer."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, INPUT, MODEL, RESUMABLE, Config, Only, RunConfig
from denserl.data.config import DataConfig, has_splits
from denserl.errors import require
from denserl.models.config import AdapterConfig, SharingConfig


@dataclass(kw_only=True)
class TrackingConfig(Config):
    """What a training goes on from, and writes beside its own files."""

    group: ClassVar[str] = "checkpoints and logs"

    resume: bool = False
    """Go on from the newest checkpoint of the output folder."""
    report_to: Annotated[list[str], RESUMABLE] = field(default_factory=list)
    """Trackers beside metrics.jsonl, e.g. tensorboard wandb; all: every one that is installed; none: none, the default."""
    save_minutes: Annotated[float | None, Gt(0), RESUMABLE] = None
    """Checkpoint too when so many minutes have gone by since the last one, at the end of the step, in PPO of the iteration."""
    max_skipped_steps: Annotated[int, Ge(1), RESUMABLE] = 5
    """Stop after so many updates in a row that were not finite; each is skipped, and its batch written to skipped/."""


@dataclass(kw_only=True)
class OptimisationConfig(TrackingConfig, AdapterConfig, SharingConfig):
    """How weights are trained: AdamW, its schedule, DeepSpeed."""

    group: ClassVar[str] = "optimisation"

    lr_schedule: Literal["cosine", "inverse_sqrt"] = "cosine"
    """How learning rates fall from their peak after a warm-up of W steps: along a cosine to `min_lr_ratio` of it, or with the
    root of W / step, and then the warm-up begins at a tenth of the peak."""
    min_lr_ratio: Annotated[
        float, Interval(ge=0, le=1), Only("without `lr_schedule` cosine", lambda c: c.lr_schedule == "cosine")
    ] = 0.1
    """The cosine schedule ends at this share of the peak."""
    warmup_ratio: Annotated[float, Interval(ge=0, lt=1)] = 0.03
    """Share of the steps with linear warm-up."""
    adam_betas: Annotated[tuple[float, float], Interval(ge=0, lt=1)] = (0.9, 0.95)
    """Betas of AdamW."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    """Gradients are clipped at this norm."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage."""
    offload_optimizer: Annotated[bool, Only("with `zero_stage` 0", lambda c: c.zero_stage)] = False
    """Keep optimiser state in CPU memory (ZeRO 1-3)."""

    def check(self) -> None:
        super().check()
        require(
            not (self.load_in_4bit and self.zero_stage == 3),
            "`load_in_4bit` with `zero_stage` 3, which spreads weights over ranks: those in 4 bits are whole on each",
            "use `zero_stage` 2; each GPU holds about 0.52 bytes of a weight",
        )


@dataclass(kw_only=True)
class SupervisedConfig(OptimisationConfig, DataConfig, RunConfig):
    """What the two trainings on top of transformers.Trainer share."""

    group: ClassVar[str] = "training"

    model: Annotated[str, MODEL, FIRST, RESUMABLE]
    """Model to start from: folder or hub name."""
    epochs: Annotated[float, FIRST, Gt(0)] = 1.0
    """Passes over the data."""
    batch_size: Annotated[int, FIRST, Ge(1)] = 128
    """Rows per optimiser step, all ranks and accumulation together."""
    micro_batch_size: Annotated[int, FIRST, Ge(1), RESUMABLE] = 4
    """Rows per forward on one rank."""
    lr: Annotated[float, FIRST, Ge(0)] = 1e-6
    """Peak learning rate."""
    max_length: Annotated[int, FIRST, Ge(1)] = 2048
    """Longest sequence, prompt and response together, in tokens."""
    eval_data: Annotated[list[str] | None, INPUT, FIRST, RESUMABLE] = None
    """Held-out rows; without them nothing is evaluated."""
    eval_split: Annotated[
        str,
        RESUMABLE,
        Only("without a folder or hub dataset of held-out rows", lambda c: has_splits(c.eval_data)),
    ] = "test"
    """Split of eval_data when it is a hub dataset or a folder."""
    eval_steps: Annotated[int, Ge(0), RESUMABLE] = 512
    """Evaluate every so many steps; 0 only at the end."""
    save_steps: Annotated[int, Ge(0), RESUMABLE] = 256
    """Checkpoint every so many steps; 0: none but on a stop request, or by `save_minutes`."""
    save_total_limit: Annotated[int, Ge(1), RESUMABLE] = 2
    """Checkpoints kept."""
    logging_steps: Annotated[int, Ge(1), RESUMABLE] = 10
    """Log every so many steps."""
    keep: Annotated[Literal["last", "best"], RESUMABLE] = "last"
    """Which weights end up in the output folder; best needs save_steps and eval_steps to agree."""


WITHOUT_STREAMING = Only("without `streaming`", lambda c: c.streaming)


@dataclass(kw_only=True)
class SFTConfig(SupervisedConfig):
    """Fine-tune a language model on demonstrations (loss on the response) or plain text (loss on every token)."""

    lr: Annotated[float, FIRST, Ge(0)] = 2e-5
    """Peak learning rate."""
    streaming: Annotated[
        bool,
        Only("with `streaming`", lambda c: not c.streaming, of=("epochs", "data_weights", "limit", "every")),
    ] = False
    """Read the data while training, window by window, where it does not fit the disk (docs/data.md); needs `max_steps`."""
    max_steps: Annotated[int | None, Ge(1), WITHOUT_STREAMING] = None
    """Optimiser steps to take."""
    stream_window: Annotated[int, Ge(1), WITHOUT_STREAMING] = 65536
    """Rows of a window, which are shuffled among one another; about two windows are on the disk at a time."""
    eval_steps: Annotated[int, Ge(0), RESUMABLE, Only("without `eval_data`", lambda c: c.eval_data)] = 512
    """Evaluate every so many steps; 0 only at the end."""

    def check(self) -> None:
        super().check()
        if self.streaming:
            require(self.max_steps is not None, "`streaming`: how long a stream is, is not known", "give `max_steps`")
            several = "`streaming` with several sources, which are blended by their sizes"
            require(len(self.data) == 1, several, "give one, such as a folder")
