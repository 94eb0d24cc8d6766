"""What train-sft and train-rm share: the start of a run, its TrainingArguments, LoRA, and writing the trained model."""

import logging
import warnings
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from denserl import distributed
from denserl.cli.common import OptimisationOptions, RunOptions, TrainingOptions, make_folder, quiet_libraries, require
from denserl.errors import UserError
from denserl.trainer.engine import clip_in_step, deepspeed_config, init_distributed, pick_device, whole_parameters
from denserl.trainer.trackers import MetricsFileCallback, ProgressLine, check_trackers

log = logging.getLogger(__name__)


def start(options: RunOptions) -> tuple[torch.device, str]:
    """Process group, seeds, output folder, checks that need no data; returns device and precision, `auto` resolved."""
    warnings.filterwarnings("ignore", message="OMP_NUM_THREADS/MKL_NUM_THREADS unset")
    quiet_libraries()
    device = pick_device(options.device)
    if isinstance(options, OptimisationOptions):
        check_trackers(options.report_to)
    dtype = options.dtype if options.dtype != "auto" else ("bf16" if device.type == "cuda" else "fp32")
    make_folder("output_dir", options.output_dir)
    init_distributed(device)
    if isinstance(options, TrainingOptions):
        accumulation_steps(options)
    if distributed.rank() > 0:
        logging.getLogger().setLevel(logging.ERROR)
    set_seed(options.seed)
    return device, dtype


def training_arguments(options: TrainingOptions, device: torch.device, dtype: str, rows: int) -> TrainingArguments:
    """The options as transformers.TrainingArguments, DeepSpeed included. UserError for sizes that do not fit together."""
    accumulation = accumulation_steps(options)
    require(
        rows >= options.micro_batch_size * distributed.world_size(),
        f"{rows} training rows for {distributed.world_size()} ranks of --micro_batch_size {options.micro_batch_size}",
        "give more data or a smaller --micro_batch_size",
    )
    evaluates, saves, best = options.eval_steps > 0, options.save_steps > 0, options.keep == "best"
    engine = deepspeed_config(
        zero_stage=options.zero_stage,
        dtype=dtype,
        micro_batch_size=options.micro_batch_size,
        accumulation=accumulation,
        world_size=distributed.world_size(),
        max_grad_norm=options.max_grad_norm,
        offload_optimizer=options.offload_optimizer,
    )
    return TrainingArguments(
        output_dir=options.output_dir,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=options.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": options.min_lr_ratio},
        warmup_steps=options.warmup_ratio,
        adam_beta1=options.adam_betas[0],
        adam_beta2=options.adam_betas[1],
        weight_decay=options.weight_decay,
        max_grad_norm=engine["gradient_clipping"],
        optim="adamw_torch",
        bf16=dtype == "bf16",
        use_cpu=device.type == "cpu",
        seed=options.seed,
        data_seed=options.seed,
        logging_steps=options.logging_steps,
        save_strategy="steps" if saves else "no",
        save_steps=options.save_steps or 1,
        save_total_limit=options.save_total_limit,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=options.eval_steps or None,
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if best else None,
        report_to=options.report_to,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        deepspeed=engine,
    )


def prepare_model(model, options, task: str):
    """Gradient checkpointing and LoRA adapters, where asked for. With adapters on a classifier the head is trained in full."""
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not options.lora_rank:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--lora_rank needs the package peft, which is not installed", "pip install 'denserl[lora]'") from error
    config = LoraConfig(
        task_type=task,
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_targets or "all-linear",
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )
    # Adapters keep the model's precision: DeepSpeed wants one for all.
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def accumulation_steps(options: TrainingOptions) -> int:
    """Forwards per optimiser step and rank. UserError for sizes, or for --keep best with steps, that do not fit together."""
    world = distributed.world_size()
    per_forward = options.micro_batch_size * world
    require(
        options.batch_size % per_forward == 0,
        f"--batch_size {options.batch_size} is no multiple of --micro_batch_size {options.micro_batch_size} x {world} ranks",
        f"use a multiple of {per_forward}",
    )
    require(
        options.keep == "last" or (options.save_steps and options.eval_steps and not options.save_steps % options.eval_steps),
        f"--keep best with --save_steps {options.save_steps}, --eval_steps {options.eval_steps}",
        "let --save_steps be a multiple of --eval_steps, both above 0",
    )
    return options.batch_size // per_forward


class ClipInStep(TrainerCallback):
    """Clips in the optimiser's step where DeepSpeed would not keep the gradient norm for the log."""

    def __init__(self, max_grad_norm: float):
        self.max_grad_norm = max_grad_norm

    def on_train_begin(self, args, state, control, optimizer=None, **kw):
        clip_in_step(optimizer.optimizer, self.max_grad_norm)


def add_callbacks(trainer, options: TrainingOptions) -> None:
    """Metrics go to metrics.jsonl and into the progress bar, instead of a printed dictionary at every log."""
    if not trainer.args.max_grad_norm:
        trainer.add_callback(ClipInStep(options.max_grad_norm))
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLine)
    trainer.add_callback(MetricsFileCallback(Path(options.output_dir)))


def checkpoint_to_resume(options: TrainingOptions) -> str | None:
    """The newest checkpoint of the output folder, when resuming is asked for. UserError when there is none."""
    if not options.resume:
        return None
    checkpoint = get_last_checkpoint(options.output_dir)
    require(checkpoint is not None, f"--resume: {options.output_dir} holds no checkpoint", "leave --resume out to start anew")
    log.info("going on from %s", checkpoint)
    return checkpoint


def save_trained(trainer, output_dir: str) -> None:
    """Write the trained model and tokenizer; adapters are kept in `adapter/` and merged into a whole model."""
    if trainer.args.should_save:
        trainer.processing_class.save_pretrained(output_dir)
    if not hasattr(trainer.model, "merge_and_unload"):
        trainer.save_model(output_dir)
        return
    with whole_parameters(trainer.model):
        if trainer.args.should_save:
            trainer.model.save_pretrained(str(Path(output_dir) / "adapter"))
            trainer.model.merge_and_unload().save_pretrained(output_dir)
