"""What commands share: option groups, parsing, and the way a command starts and ends."""

import dataclasses
import difflib
import itertools
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

import tyro
import yaml

from denserl.cli.effects import check_effects
from denserl.errors import STOPPED_STATUS, Stopped, UserError
from denserl.terminal import make_output_inert, say, visible

Options = TypeVar("Options")
Level = Literal["segment", "token", "bandit"]
Aggregation = Literal["avg", "sum", "min", "last", "logsumexp"]
LEVEL_THRESHOLDS = {"token": 0.0, "bandit": 1000.0}


@dataclass(kw_only=True)
class RunOptions:
    """What every run has."""

    output_dir: str
    """Folder for what the run makes."""
    seed: int = 42
    """Seed of every random choice."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA where torch sees it."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of weights in forward and backward; auto is bf16 on CUDA, fp32 on CPU."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel; flash_attention_2 needs the extra denserl[flash]."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model folder or hub repository."""

    def tokenizer_source(self) -> dict:
        """The arguments that the loading of tokenizers takes."""
        return {"trust_remote_code": self.trust_remote_code}

    def model_source(self) -> dict:
        """The arguments that the loading of models takes."""
        return {"trust_remote_code": self.trust_remote_code, "attn_implementation": self.attention}


@dataclass(kw_only=True)
class DataOptions:
    """Where rows come from."""

    data: list[str]
    """Files (.json, .jsonl, .jsonl.gz, .parquet), folders, or names of hub datasets (NAME or NAME:CONFIG)."""
    data_weights: list[float] | None = None
    """Blend several sources in these proportions; default: all rows of each."""
    split: str = "train"
    """Split of hub datasets and folders."""
    every: int = 1
    """Use only every so many-th row of each source, after rows that its data set leaves out."""
    limit: int | None = None
    """Use at most this many rows."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be used stops the run, or is dropped and counted."""

    def source(self) -> dict:
        """The arguments that every loader of rows takes."""
        return {
            "sources": self.data,
            "weights": self.data_weights,
            "split": self.split,
            "limit": self.limit,
            "every": self.every,
            "on_bad_row": self.on_bad_row,
        }


@dataclass(kw_only=True)
class OptimisationOptions:
    """How weights are trained: AdamW, its schedule, DeepSpeed, adapters, resuming and trackers."""

    min_lr_ratio: float = 0.1
    """The cosine schedule ends at this share of the peak."""
    warmup_ratio: float = 0.03
    """Share of the steps with linear warm-up."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Betas of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped at this norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage."""
    offload_optimizer: bool = False
    """Keep optimiser state in CPU memory (ZeRO 1-3)."""
    lora_rank: int = 0
    """Train LoRA adapters of this rank instead of all weights; 0 trains all."""
    lora_alpha: float = 32.0
    """LoRA scaling."""
    lora_dropout: float = 0.0
    """LoRA dropout."""
    lora_targets: list[str] | None = None
    """Modules that get adapters; default: all linear layers of the backbone."""
    max_skipped_steps: int = 5
    """Stop after so many updates in a row that were not finite; each is skipped, and its batch written to skipped/."""
    resume: bool = False
    """Go on from the newest checkpoint of the output folder."""
    report_to: list[str] = dataclasses.field(default_factory=list)
    """Trackers beside metrics.jsonl, e.g. tensorboard wandb."""


@dataclass(kw_only=True)
class TrainingOptions(OptimisationOptions, DataOptions, RunOptions):
    """What the two trainings on top of transformers.Trainer share."""

    model: str
    """Model to start from: folder or hub name."""
    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 128
    """Rows per optimiser step, all ranks and accumulation together."""
    micro_batch_size: int = 4
    """Rows per forward on one rank."""
    lr: float = 1e-6
    """Peak learning rate."""
    max_length: int = 2048
    """Longest sequence, prompt and response together, in tokens."""
    save_steps: int = 256
    """Checkpoint every so many steps; 0: none but on a stop request."""
    save_total_limit: int = 2
    """Checkpoints kept."""
    eval_steps: int = 512
    """Evaluate every so many steps; 0 only at the end."""
    logging_steps: int = 10
    """Log every so many steps."""
    keep: Literal["last", "best"] = "last"
    """Which weights end up in the output folder; best needs save_steps and eval_steps to agree."""


def parse(options_class: type[Options], command: str, argv: list[str]) -> Options:
    """The options of a command from its arguments. `--config file.yaml` stands for the flags it lists; later flags win."""
    # The deepspeed launcher adds --local_rank, which the environment says as well.
    argv = [part for part in argv if not part.startswith("--local_rank=")]
    argv, settings = expand_config(argv), {"prog": f"denserl {command}", "use_underscores": True}
    check_names(options_class, f"denserl {command} --help", argv)
    if (shown := [visible(word) for word in argv]) != argv:
        tyro.cli(options_class, args=shown, **settings)  # complains without characters that act on a terminal
    options = tyro.cli(options_class, args=argv, **settings)
    check_ranges(options)
    check_effects(options)
    return options


def check_names(options_class: type, listing: str, argv: list[str]) -> None:
    """UserError for a flag that the command does not have, with the one that was probably meant. listing: what shows all."""
    known = [field.name for field in dataclasses.fields(options_class)]
    for word in argv:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        is_flag = word.startswith("--") and not name.startswith("tyro_") and name != "help"
        near = difflib.get_close_matches(name, known, n=1)
        require(
            not is_flag or name.removeprefix("no_") in known,
            f"there is no option --{name}" + (f"; did you mean --{near[0]}?" if near else ""),
            f"write --{near[0]}" if near else f"choose among those that {listing} lists",
        )


# Smallest and largest value that makes sense, by option name; with "open" the smallest itself does not.
AT_LEAST_ONE = (1, math.inf)
NOT_NEGATIVE = (0, math.inf)
ABOVE_ZERO = (0, math.inf, "open")
RANGES = {
    **dict.fromkeys(
        "batch_size micro_batch_size rollout_batch_size train_batch_size samples_per_prompt ppo_epochs sample_batch_size "
        "max_length max_prompt_length max_new_tokens penalise_longer_than iterations limit every pairs score_tokens eval_size "
        "eval_limit logging_steps max_skipped_steps save_total_limit keep_checkpoints kl_horizon hidden_size num_layers "
        "num_heads max_position_embeddings gpus bootstrap samples".split(),
        AT_LEAST_ONE,
    ),
    **dict.fromkeys(
        "save_steps eval_steps eval_every save_every samples_logged freeze_actor_steps lora_rank weight_decay centring "
        "ensemble_weight kl_coefficient ptx_coef penalty pos_reg entropy_threshold lr actor_lr critic_lr".split(),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        "epochs episodes max_grad_norm temperature tau kl_target reward_clip policy_clip value_clip "
        "lora_alpha reward_std scale gpu_memory reg_beta soft_label_scale".split(),
        ABOVE_ZERO,
    ),
    **dict.fromkeys("gamma lam min_lr_ratio warmup_ratio flip_frac".split(), (0, 1)),
    "top_p": (0, 1, "open"),
    **dict.fromkeys("ema_decay lora_dropout head_dropout".split(), (0, 0.9999999)),
    "label_smoothing": (0, 0.4999999),
    "reg_coef": (0, 0.99),
    "head_layers": (1, 64),
    "head_width": (1, 2**20),
    "seed": (0, 2**32 - 1),
    "smallest_group": (2, math.inf),
    "vocab_size": (260, 10_000_000),
    "reward_mean": (-math.inf, math.inf),
}


def check_ranges(options) -> None:
    """UserError for a number outside RANGES, or one that is not finite."""
    for name, value in dataclasses.asdict(options).items():
        if name not in RANGES or value is None:
            continue
        low, high, *is_open = RANGES[name]
        inside = math.isfinite(value) and (low < value if is_open else low <= value) and value <= high
        bounds = " and ".join([f"{'above' if is_open else 'at least'} {low:g}"] + [f"at most {high:g}"] * (high < math.inf))
        require(inside, f"--{name} is {value}; it must be {bounds}", f"leave --{name} out for its default")
    for beta in options.adam_betas if isinstance(options, OptimisationOptions) else ():
        require(0 <= beta < 1, f"--adam_betas has {beta}; each must be at least 0 and below 1", "leave --adam_betas out")


def launch(options_class: type[Options], command: str, run: Callable[[Options], object], argv: list[str] | None) -> None:
    """Parse, run, and turn a user's mistake into a message on stderr and exit status 2."""
    make_output_inert()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "filelock", "fsspec", "transformers", "datasets", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # CPU is a device that was chosen here, not a failure to find another.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    options = None
    # The exception that Python raises instead is lost where a library happens to be in a callback.
    before = signal.signal(signal.SIGINT, lambda *_: _interrupted(command))
    try:
        options = parse(options_class, command, sys.argv[1:] if argv is None else argv)
        run(options)
    except UserError as error:
        _end(command, str(error), 2, error.one_rank)
    except Stopped as stopped:
        again = "the same command with --resume" if hasattr(options, "resume") else "the same command"
        _end(command, f"{stopped}\n  to go on: {again}", STOPPED_STATUS)
    except Exception as error:
        from denserl.cli.shortages import shortage

        message = shortage(error, options) if options is not None else None
        if message is None:
            raise
        _end(command, str(message), 2, message.one_rank)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(command: str) -> NoReturn:
    # Not through sys.stderr, which the signal may have interrupted in the middle of a write.
    os.write(2, f"\ndenserl {command}: interrupted\n".encode())
    os._exit(128 + signal.SIGINT)


def _end(command: str, message: str, status: int, one_rank: bool = False) -> NoReturn:
    # Once per host, whose ranks find the same mistake, as another host's may not; or by the one rank that found it.
    if one_rank or os.environ.get("LOCAL_RANK", "0") == "0":
        rank = f" (rank {os.environ['RANK']})" if one_rank and "RANK" in os.environ else ""
        say(f"denserl {command}{rank}: {message}", sys.stderr)
    raise SystemExit(status) from None


def make_folder(flag: str, path: str) -> None:
    """Create a folder to write into. UserError when that cannot be done."""
    fix = "give a folder that can be written"
    require(bool(path), f"--{flag} is empty", fix)
    try:
        require(not Path(path).is_file(), f"--{flag} {path} is a file; expected a folder, or a new name", fix)
        Path(path).mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except (OSError, ValueError) as error:  # a name that no file system has
        raise UserError(f"--{flag} {path}: {error.strerror if isinstance(error, OSError) else error}", fix) from error
    require(writable, f"--{flag} {path}: not writable", fix)


def quiet_libraries() -> None:
    """No progress bars for reading and writing weights and tables; ours remain."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def require(condition: bool, found: str, fix: str) -> None:
    """UserError unless the condition holds."""
    if not condition:
        raise UserError(found, fix)


def level_threshold(level: str, threshold: float | None, segment_default: float = 1.75) -> float:
    """The entropy threshold of a reward level, unless one is given."""
    return LEVEL_THRESHOLDS.get(level, segment_default) if threshold is None else threshold


def expand_config(argv: list[str]) -> list[str]:
    """The arguments with `--config FILE` replaced by the flags that it lists, put first. UserError for a bad file."""
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" not in argv:
        return argv
    at = argv.index("--config")
    path = Path(argv[at + 1]) if at + 1 < len(argv) else None
    require(path is not None and path.is_file(), f"--config: {path} is no file", "give a YAML file of option: value lines")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no UTF-8, no such date, nested too deeply
        raise UserError(f"{path} is not YAML: {error}", "write option: value lines") from error
    require(isinstance(settings, dict), f"{path} holds a {type(settings).__name__}", "write option: value lines")
    again = "config" in settings or "--config" in argv[at + 2 :]
    require(not again, f"--config {path}: another --config in it or after it", "write all options into one file, or as flags")
    flags = [flag for name, value in settings.items() if value is not None for flag in as_flags(name, value)]
    # An option of several values would take words that stand without a flag for more of them.
    bare = len(list(itertools.takewhile(lambda word: not word.startswith("-"), argv)))
    return [*argv[:bare], *flags, *argv[bare:at], *argv[at + 2 :]]


def as_flags(name: str, value) -> list[str]:
    """One option as command-line words: a boolean as --name or --no-name, a list as several words."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
