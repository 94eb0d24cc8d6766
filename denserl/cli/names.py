"""Names of options: unknown ones are met with the one that was meant, also by users of other libraries."""

import difflib
import typing

from tyro.conf import Positional

from denserl.config import Config, options_of
from denserl.errors import UserError

# What other libraries call an option -> what it is called here; the first that the command has.
OTHER_NAMES = {
    "learning_rate": ("lr", "actor_lr"),
    "actor_learning_rate": ("actor_lr",),
    "critic_learning_rate": ("critic_lr",),
    "per_device_train_batch_size": ("micro_batch_size",),
    "per_device_eval_batch_size": ("score_tokens", "micro_batch_size"),
    "gradient_accumulation_steps": ("batch_size", "train_batch_size"),
    "micro_train_batch_size": ("micro_batch_size",),
    "num_train_epochs": ("epochs", "episodes"),
    "max_epochs": ("epochs", "ppo_epochs"),
    "num_ppo_epochs": ("ppo_epochs",),
    "total_episodes": ("episodes",),
    "num_episodes": ("episodes",),
    "output": ("output_dir",),
    "save_path": ("output_dir",),
    "logging_dir": ("output_dir",),
    "model_name_or_path": ("model",),
    "model_name": ("model",),
    "pretrain": ("model",),
    "sft_model_path": ("model",),
    "tokenizer_name": ("model",),
    "reward_model_path": ("reward_model",),
    "reward_pretrain": ("reward_model",),
    "reward_funcs": ("reward_function",),
    "dataset": ("data",),
    "dataset_name": ("data",),
    "train_file": ("data",),
    "prompt_data": ("data",),
    "eval_dataset": ("eval_data", "eval_prompts"),
    "max_samples": ("limit",),
    "max_seq_length": ("max_length",),
    "max_seq_len": ("max_length",),
    "max_len": ("max_length",),
    "prompt_max_len": ("max_prompt_length",),
    "generate_max_len": ("max_new_tokens",),
    "response_length": ("max_new_tokens",),
    "max_completion_length": ("max_new_tokens",),
    "num_generations": ("samples_per_prompt", "samples"),
    "n_samples_per_prompt": ("samples_per_prompt", "samples"),
    "init_kl_coef": ("kl_coefficient",),
    "kl_coef": ("kl_coefficient",),
    "beta": ("kl_coefficient", "reg_beta"),
    "cliprange": ("policy_clip",),
    "cliprange_value": ("value_clip",),
    "eps_clip": ("policy_clip",),
    "clip_ratio_c": ("dual_clip",),
    "vf_coef": ("value_coef",),
    "freezing_actor_steps": ("critic_warmup_iterations",),
    "critic_warmup": ("critic_warmup_iterations",),
    "whiten_advantages": ("advantage_norm",),
    "adv_estimator": ("advantage",),
    "advantage_estimator": ("advantage",),
    "norm_adv_by_std_in_grpo": ("group_std",),
    "scale_rewards": ("group_std",),
    "use_kl_loss": ("kl_in",),
    "kl_loss_coef": ("kl_coefficient",),
    "entropy_coeff": ("entropy_coef",),
    "loss_agg_mode": ("average",),
    "lr_scheduler": ("lr_schedule",),
    "lr_scheduler_type": ("lr_schedule",),
    "lambd": ("lam",),
    "gae_lambda": ("lam",),
    "missing_eos_penalty": ("penalise_unfinished",),
    "rollout_batch": ("rollout_batch_size",),
    "bf16": ("dtype",),
    "fp16": ("dtype",),
    "torch_dtype": ("dtype",),
    "attn_implementation": ("attention",),
    "flash_attn": ("attention",),
    "deepspeed": ("zero_stage",),
    "use_peft": ("lora_rank",),
    "lora_r": ("lora_rank",),
    "target_modules": ("lora_targets",),
    "lora_target_modules": ("lora_targets",),
    "warmup_steps": ("warmup_ratio",),
    "max_norm": ("max_grad_norm",),
    "eval_strategy": ("eval_steps",),
    "resume_from_checkpoint": ("resume",),
    "load_checkpoint": ("resume",),
    "center_rewards_coefficient": ("centring",),
    # Of the version before.
    "params": ("fit",),
    "fit_tag": ("fit",),
    "dataset_tag": ("fit",),
    "segment_method": ("segmenter",),
    "freeze_actor_steps": ("critic_warmup_iterations",),
}
(AS_A_WORD,) = typing.get_args(Positional[str])[1:]  # the mark of what is given without a flag
# Options of the version before in whose place there is nothing.
NO_LONGER = {"model_type": "the fit of a reward model is found beside it"}


def check_names(options_class: type[Config], listing: str, argv: list[str]) -> None:
    """UserError for a flag that the command does not have, with the one that was probably meant, or a word without one.

    listing: what shows all.
    """
    named_by_place = any(AS_A_WORD in option.marks for option in options_of(options_class))
    if argv and not argv[0].startswith("-") and not named_by_place:
        flag = "--data" if "data" in [option.flag for option in options_of(options_class)] else "one of its options"
        raise UserError(f"{argv[0]!r} stands behind no option", f"write {flag} before it; {listing} lists all")
    for word in argv:
        name = flag_name(word)
        if word.startswith("--") and not name.startswith("tyro_") and name != "help":
            check_name(options_class, listing, name)


def flag_name(word: str) -> str:
    """The option that a word names as --NAME or --NAME=VALUE, with underscores."""
    return word.removeprefix("--").partition("=")[0].replace("-", "_")


def check_name(options_class: type[Config], listing: str, name: str, place: str = "") -> None:
    """UserError unless the command has an option of this name. place: where it was found, if not among the flags."""
    known = [option.flag for option in options_of(options_class)]
    if name.removeprefix("no_") in known:
        return
    near = [other for other in OTHER_NAMES.get(name, ()) if other in known] or difflib.get_close_matches(name, known, n=1)
    shown = f"{place}: there is no option {name}" if place else f"there is no option --{name}"
    if name in NO_LONGER:
        raise UserError(f"{shown} any more; {NO_LONGER[name]}", f"leave {name if place else f'--{name}'} out")
    flag = near and (near[0] if place else f"--{near[0]}")
    raise UserError(
        shown + (f"; did you mean {flag}?" if near else ""),
        f"write {flag}" if near else f"choose among those that {listing} lists",
    )
