"""PPO against a reward model, with segment, token or bandit rewards."""

import dataclasses
import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from denserl.cli.common import (
    Aggregation,
    DataOptions,
    Level,
    OptimisationOptions,
    RunOptions,
    launch,
    level_threshold,
    require,
)
from denserl.cli.effects import assignment_kind, normalizer_kind
from denserl.cli.reward_models import RewardModelOptions, load_reward_models, require_common, true_reward_function

log = logging.getLogger(__name__)

Assignment = Literal[
    "difference_end",
    "difference",
    "score_last",
    "even",
    "even_mean",
    "repeat",
    "end",
    "mean_last",
    "logsumexp_last",
    "segment_normalization",
    "same_segment_last",
    "every_segment_last",
    "segment_last_avg",
    "segment_last_logsumexp",
]


@dataclass(kw_only=True)
class Options(RewardModelOptions, OptimisationOptions, DataOptions, RunOptions):
    """PPO against a reward model. --reward_level sets threshold and assignment, that the normaliser; each can be set alone."""

    model: str
    """Policy to start from, and the reference: the SFT model, folder or hub name."""

    reward_level: Level = "segment"
    """segment: threshold 1.75, difference_end; token: 0, difference_end; bandit: 1000, mean_last."""
    entropy_threshold: float | None = None
    """Entropy (nats) above which a token opens a segment; default: the level's own."""
    segment_method: Literal["peak"] = "peak"
    """How responses are cut."""
    agg_func: Aggregation | None = None
    """How segment rewards make the score of a response; default: as the reward model was trained, from its config."""
    assignment: Assignment | None = None
    """difference_end: what a segment changes in the response's score, at its last token; difference: split over all of them.
    even: its whole reward, as published; even_mean: that / number of segments; repeat, end: on each token, on the last.
    score_last: the response's score, at its last token; mean_last, logsumexp_last: as published. Default: the level's own."""
    normalizer: Literal["location", "scalar", "none"] | None = None
    """scalar: mean and std of responses' scores. location: lines in a segment's place, from param.json. none: as they are.
    Default: location for even, even_mean, repeat and end below the bandit level, scalar for all others."""
    model_type: str | None = None
    """Model family in param.json; default: the one in the reward model's config, on which those of an ensemble must agree."""
    fit_tag: str | None = None
    """Dataset tag of the fit in param.json; needed by the location normaliser."""
    params: str | None = None
    """The param.json to read; default: the one in the package."""
    reward_mean: float | None = None
    """Mean for the scalar normaliser; default: the reward model's config; of an ensemble, whose members are standardised, 0."""
    reward_std: float | None = None
    """Standard deviation for the scalar normaliser; default: the reward model's config; of an ensemble 1."""
    tau: float = 1.0
    """Temperature of logsumexp_last."""
    length_norm: bool = False
    """Also divide token rewards by the response length (token level only; not with what pays the response's score)."""
    penalise_unfinished: bool = False
    """A response without end-of-turn token gets -penalty on every token instead of its rewards."""
    penalise_longer_than: int | None = None
    """The same for a response of more tokens than this."""
    penalty: float = 0.05
    """The penalty of the two options above."""
    reward_clip: float = 10.0
    """Token rewards are clipped to +-this before the KL penalty."""

    kl_coefficient: float = 0.01
    """Weight of the KL penalty."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token KL estimate in the reward."""
    kl_target: float | None = None
    """Adapt the coefficient towards this KL per response."""
    kl_horizon: int = 10000
    """Responses over which the adaptive coefficient moves."""

    episodes: float = 1.0
    """Passes over the prompts."""
    iterations: int | None = None
    """Stop after this many rollout batches instead."""
    rollout_batch_size: int = 1024
    """Responses sampled per iteration, all ranks together."""
    train_batch_size: int = 128
    """Responses per optimiser step, all ranks together."""
    micro_batch_size: int = 4
    """Responses per forward on one rank."""
    samples_per_prompt: int = 1
    """Responses sampled for each prompt."""
    ppo_epochs: int = 1
    """Passes over each rollout batch."""
    max_prompt_length: int = 1024
    """A longer prompt loses tokens on its left."""
    max_new_tokens: int = 1024
    """Longest response."""
    temperature: float = 1.0
    """Sampling temperature; log-probabilities are of the same distribution."""
    top_p: float = 1.0
    """Nucleus sampling."""
    sample_batch_size: int = 64
    """Prompts per call of generate on one rank."""

    gamma: float = 1.0
    """Discount of GAE."""
    lam: float = 0.95
    """Lambda of GAE."""
    policy_clip: float = 0.2
    """Clip range of the ratio."""
    value_clip: float | None = None
    """Clip range of values; default 0.25, bandit 0.2."""
    average: Literal["sequence", "token_mean"] = "sequence"
    """Average losses over each response then over responses, or over all tokens."""
    critic_init: Literal["sft", "reward_model"] = "sft"
    """Backbone of the critic; sft gets a fresh head, reward_model (the first of an ensemble) keeps its own."""
    freeze_actor_steps: int = 0
    """Optimiser steps at the start that train the critic alone."""
    ptx_data: list[str] | None = None
    """Text or demonstrations for the pretraining loss."""
    ptx_coef: float = 0.05
    """Weight of the pretraining loss."""
    ema_decay: float = 0.0
    """Decay of the moving average of the policy, saved in ema/; 0 keeps none. The reference uses 0.992."""

    actor_lr: float = 5e-7
    """Peak learning rate of the policy."""
    critic_lr: float = 9e-6
    """Peak learning rate of the critic."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""

    eval_prompts: list[str] | None = None
    """Held-out prompts to roll out."""
    eval_split: str = "test"
    """Split of eval_prompts when it is a hub dataset or a folder."""
    eval_limit: int = 256
    """At most this many held-out prompts."""
    eval_every: int = 5
    """Iterations between held-out rollouts; 0 none."""
    true_reward: str | None = None
    """module:function of (prompts, responses) -> true rewards of held-out rollouts, where they are known; only reported."""
    gold_reward_model: str | None = None
    """Reward model that only judges held-out rollouts, at the level in its config, by this run's entropies."""
    save_every: int = 5
    """Iterations between checkpoints; 0 none."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    samples_logged: int = 4
    """Sample responses written per iteration."""


def run(options: Options) -> None:
    """Load everything, run the loop, save."""
    from denserl import distributed
    from denserl.cli.training import checkpoint_to_resume, run_settings, start
    from denserl.models.loading import load_policy, load_tokenizer
    from denserl.trainer.checkpoint import read_state
    from denserl.trainer.trackers import Trackers

    require(
        options.lora_dropout == 0,
        f"--lora_dropout {options.lora_dropout:g}: old and new log-probabilities must be of the same policy",
        "leave --lora_dropout at 0 in PPO",
    )
    device, dtype = start(options)
    check_sizes(options)
    checkpoint = checkpoint_to_resume(options)
    true_reward = true_reward_function(options.true_reward) if options.true_reward else None
    tokenizer = load_tokenizer(options.model, **options.tokenizer_source())
    reward_models = load_reward_models(options.reward_model, dtype, options, tokenizer)
    gold = options.gold_reward_model and load_reward_models([options.gold_reward_model], dtype, options, tokenizer)[0]
    dense_reward = make_dense_reward(options, [model.config for model in reward_models])
    prompts, held_out = _prompts(options, tokenizer)
    config = make_config(options, len(prompts))
    text = {"ptx": _ptx_rows(options, tokenizer)} if options.ptx_data else {}
    # As they are resolved: the same choice may be made by a flag or by the reward model.
    models, rewards = ["model", "reward_model"], {"rewards": str(dense_reward), "agg_func": dense_reward.agg_func}
    settings = run_settings(options, dtype, checkpoint, models=models, others=rewards, prompts=prompts, **text)
    policy = load_policy(options.model, dtype, **options.model_source())
    models, current_policy = make_models(options, config, tokenizer, policy, reward_models, device, dtype, gold)
    parts = {"prompts": prompts, "eval_prompts": held_out, "true_reward": true_reward, "settings": settings}
    parts["ptx_batches"] = _ptx_batches(options, text["ptx"], tokenizer.pad_token_id) if text else None
    trainer = make_trainer(options, config, tokenizer, models, dense_reward, current_policy, **parts, device=device)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    sizes = read_state(checkpoint)["files"] if checkpoint is not None else {}
    trainer.trackers = Trackers(Path(options.output_dir), options.report_to, dataclasses.asdict(options), sizes)
    trainer.train()
    trainer.trackers.finish()
    save(trainer, current_policy, options)
    if distributed.rank() == 0:
        plot_judgements(Path(options.output_dir))


def plot_judgements(folder: Path) -> None:
    """over_optimisation.png from metrics.jsonl: what PPO maximises, and gold and true rewards that it does not, against KL."""
    from denserl.evaluation.plots import Curve, plot_side_by_side
    from denserl.trainer.trackers import read_metrics

    rows = read_metrics(folder / "metrics.jsonl")
    keys = {"reward": "reward that is trained on", "gold_reward": "gold reward", "true_reward": "true reward"}
    panels = {}
    for key, label in keys.items():
        # A number that was not finite is None there.
        points = [(row.get("eval_kl"), row.get(f"eval_{key}")) for row in rows]
        points = [point for point in points if None not in point]
        if points:
            panels[label] = {key: Curve(*map(list, zip(*points, strict=True)))}
    if len(panels) > 1:
        plot_side_by_side(panels, folder / "over_optimisation.png", xlabel="KL of held-out rollouts (nats)")


def _prompts(options: Options, tokenizer):
    """Tokenised prompts to train on, and held-out ones or None."""
    from denserl.data.prompts import load_prompts, tokenize_prompts

    limits = {"max_prompt_length": options.max_prompt_length, "on_bad_row": options.on_bad_row}
    prompts = tokenize_prompts(load_prompts(**options.source(), seed=options.seed), tokenizer, **limits)
    if not options.eval_prompts:
        return prompts, None
    source = {"split": options.eval_split, "limit": options.eval_limit, "on_bad_row": options.on_bad_row}
    return prompts, tokenize_prompts(load_prompts(options.eval_prompts, **source), tokenizer, **limits)


def make_trainer(options: Options, config, tokenizer, models, dense_reward, current_policy, **parts):
    """The PPO trainer with its sampler. parts: what PPOTrainer takes by name, but for the tokenizer and the output folder."""
    from denserl.ppo_utils.kl import KLCoefficient
    from denserl.trainer.ppo_trainer import PPOTrainer

    return PPOTrainer(
        config,
        models,
        dense_reward,
        KLCoefficient(options.kl_coefficient, options.kl_target, options.kl_horizon),
        make_sampler(options, current_policy, tokenizer),
        tokenizer=tokenizer,
        output_dir=Path(options.output_dir),
        **parts,
    )


def make_sampler(options, current_policy: Callable, tokenizer):
    """The sampler of a policy, with the sampling settings of a command's options."""
    from denserl.data.chat import stop_ids
    from denserl.trainer.rollout import PolicySampler

    return PolicySampler(
        current_policy,
        stop_ids(tokenizer, current_policy().generation_config),
        tokenizer.pad_token_id,
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.sample_batch_size,
    )


def make_dense_reward(options: Options, reward_configs: list):
    """The way from scores to token rewards that the level and the overriding flags ask for; of the reward models' configs."""
    from denserl.models.loading import stored_settings
    from denserl.ppo_utils.assignment import OF_SCORE, SHARE, canonical_kind
    from denserl.ppo_utils.dense_reward import DenseReward
    from denserl.rewards.ensemble import common_settings

    threshold = level_threshold(options.reward_level, options.entropy_threshold)
    require(
        not options.length_norm or threshold == 0,
        f"--length_norm at threshold {threshold:g}; it is defined for the token level only",
        "add --reward_level token, or leave --length_norm out",
    )
    assignment = assignment_kind(options.reward_level, options.assignment)
    require(
        not options.length_norm or canonical_kind(assignment) not in (*OF_SCORE, *SHARE),
        f"--length_norm with --assignment {assignment}, which pays the response's score whatever its length",
        "leave --length_norm out, or pay as published, --assignment even --fit_tag TAG",
    )
    for path, config in zip(options.reward_model, reward_configs, strict=True):
        trained = stored_settings(config, path).entropy_threshold
        if trained not in (None, threshold):
            log.warning("%s was trained at entropy threshold %g; rewards are read at %g", path, trained, threshold)
    stored = common_settings(reward_configs, options.reward_model)
    agg_func = options.agg_func or stored.agg_func
    if agg_func != stored.agg_func:
        names = ", ".join(options.reward_model)
        log.warning("%s: trained with aggregation %s; rewards are aggregated with %s", names, stored.agg_func, agg_func)
    return DenseReward(
        threshold=threshold,
        assignment=assignment,
        normalizer=_normalizer(options, assignment, agg_func, threshold, stored),
        agg_func=agg_func,
        tau=options.tau,
        length_norm=options.length_norm,
        penalise_unfinished=options.penalise_unfinished,
        penalise_longer_than=options.penalise_longer_than,
        penalty=options.penalty,
    )


def _normalizer(options: Options, assignment: str, agg_func: str, threshold: float, stored):
    from denserl.ppo_utils.assignment import OF_SCORE
    from denserl.ppo_utils.normalizer import LocationNormalizer, ScalarNormalizer
    from denserl.rewards.aggregation import SHIFTED_WHOLE
    from denserl.segmentation import BANDIT_THRESHOLD

    kind, names = normalizer_kind(options.reward_level, assignment, options.normalizer), ", ".join(options.reward_model)
    if kind == "none":
        return None
    if kind == "scalar":
        require(
            agg_func in SHIFTED_WHOLE or assignment in OF_SCORE or threshold >= BANDIT_THRESHOLD,
            f"--assignment {assignment} with the scalar normaliser: its mean and std are of whole responses' scores, and do "
            f"not normalise single segments of the aggregation {agg_func}",
            "use --assignment difference_end, difference or score_last, or --normalizer none or location",
        )
        given = options.reward_mean is not None and options.reward_std is not None
        require(
            given or agg_func == stored.agg_func,
            f"{names}: the stored mean and std are of scores by the aggregation {stored.agg_func}; rewards are aggregated with "
            f"{agg_func}",
            "leave --agg_func out, or add --reward_mean and --reward_std",
        )
        mean = options.reward_mean if options.reward_mean is not None else stored.mean
        std = options.reward_std if options.reward_std is not None else stored.std
        as_published = "" if threshold >= BANDIT_THRESHOLD else "; or pay as published, --assignment even --fit_tag TAG"
        require(
            mean is not None and std is not None and std > 0,
            f"{names}: the scalar normaliser needs a mean and a std > 0; its config has mean {mean}, std {std}",
            f"add --reward_mean and --reward_std, or train it with denserl train-rm, which stores them{as_published}",
        )
        return ScalarNormalizer(mean, std)
    model_type = options.model_type or stored.model_type
    require_common("model_type", "model type", model_type, options.reward_model)
    require(
        options.fit_tag is not None,
        "the location normaliser needs the dataset tag of its fit",
        "add --fit_tag TAG (as given to denserl fit-normalizer --dataset_tag), or --normalizer none",
    )
    return LocationNormalizer.load(model_type, options.fit_tag, options.segment_method, agg_func, threshold, options.params)


def check_sizes(options: Options) -> None:
    """UserError for batch sizes that do not divide."""
    from denserl import distributed

    world = distributed.world_size()
    rollout, train = ("rollout_batch_size", options.rollout_batch_size), ("train_batch_size", options.train_batch_size)
    micro, samples = ("micro_batch_size", options.micro_batch_size), ("samples_per_prompt", options.samples_per_prompt)
    for (larger, big), (smaller, small), factor in ((rollout, train, 1), (train, micro, world), (rollout, samples, 1)):
        require(
            big % (small * factor) == 0,
            f"--{larger} {big} is no multiple of --{smaller} {small}" + (f" x {world} ranks" if factor > 1 else ""),
            f"use a multiple of {small * factor}",
        )


def make_config(options: Options, prompts: int):
    """The numbers of the loop. UserError for too few prompts."""
    from denserl.trainer.ppo_trainer import PPOConfig

    per_iteration = options.rollout_batch_size // options.samples_per_prompt
    iterations = options.iterations or int(options.episodes * prompts / per_iteration)
    require(
        iterations > 0,
        f"{prompts} prompts x {options.episodes:g} episodes fill no rollout batch of {per_iteration} prompts",
        "give more prompts, more --episodes, or a smaller --rollout_batch_size",
    )
    bandit = options.reward_level == "bandit"
    return PPOConfig(
        iterations=iterations,
        rollout_batch=options.rollout_batch_size,
        train_batch=options.train_batch_size,
        micro_batch=options.micro_batch_size,
        samples_per_prompt=options.samples_per_prompt,
        ppo_epochs=options.ppo_epochs,
        gamma=options.gamma,
        lam=options.lam,
        policy_clip=options.policy_clip,
        value_clip=options.value_clip if options.value_clip is not None else (0.2 if bandit else 0.25),
        average=options.average,
        reward_clip=options.reward_clip,
        kl_estimator=options.kl_estimator,
        temperature=options.temperature,
        ptx_coef=options.ptx_coef,
        ema_decay=options.ema_decay,
        freeze_actor_steps=options.freeze_actor_steps,
        eval_every=options.eval_every,
        save_every=options.save_every,
        keep_checkpoints=options.keep_checkpoints,
        max_skipped_steps=options.max_skipped_steps,
        samples_logged=options.samples_logged,
        seed=options.seed,
    )


def make_models(options: Options, config, tokenizer, policy, reward_models: list, device, dtype: str, gold=None):
    """Actor and critic as DeepSpeed engines, the others frozen; and a function that gives the current policy.

    That one is an ordinary model (with its adapters, if any), for sampling and saving. gold: the gold reward model, or None.
    """
    from denserl.cli.training import prepare_model
    from denserl.models.loading import disable_dropout, load_policy, match_embeddings
    from denserl.rewards.ensemble import RewardSource, stored_moments
    from denserl.trainer.engine import frozen_engine, train_engine, update_copy
    from denserl.trainer.ppo_trainer import Models, PolicyModule

    reference = load_policy(options.model, dtype, **options.model_source())
    critic = _new_critic(options, dtype)
    for model in (policy, reference, critic, *reward_models):
        match_embeddings(model, tokenizer)
        disable_dropout(model)
    actor = prepare_model(policy, options, "CAUSAL_LM")
    if options.gradient_checkpointing:
        critic.gradient_checkpointing_enable({"use_reentrant": False})
    settings = _engine_settings(options, config, dtype)

    def trained(module, lr: float, steps: int):
        return train_engine(
            module,
            settings,
            lr=lr,
            betas=options.adam_betas,
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
            warmup_steps=round(options.warmup_ratio * steps),
            total_steps=steps,
            min_lr_ratio=options.min_lr_ratio,
        )

    frozen = {**settings, "zero_optimization": {"stage": options.zero_stage}}
    moments = stored_moments([model.config for model in reward_models], options.reward_model)
    scorers = [frozen_engine(model, frozen, device) for model in reward_models]
    reference = frozen_engine(PolicyModule(reference), frozen, device)
    gold_scorer = None
    if gold is not None:
        match_embeddings(gold, tokenizer)
        gold_scorer = _gold_scorer(options, gold.config, frozen_engine(gold, frozen, device), reference)
    whole = deepcopy(actor).eval().to(device) if options.zero_stage == 3 else actor
    # With adapters, the base model inside already runs them; the wrapper is needed for saving.
    inside = actor.get_base_model() if options.lora_rank else actor
    models = Models(
        actor=trained(PolicyModule(inside), options.actor_lr, max(config.total_steps - config.freeze_actor_steps, 1)),
        critic=trained(critic, options.critic_lr, config.total_steps),
        reference=reference,
        scores=RewardSource(scorers, moments, options.ensemble, options.ensemble_weight),
        gold=gold_scorer,
    )
    return models, lambda: whole if whole is actor else update_copy(actor, whole)


def _gold_scorer(options: Options, config, model, reference):
    """The frozen gold reward model at the level in its config; one without a threshold gives one score per response."""
    from denserl.rewards.ensemble import ResponseScorer, RewardSource, common_settings
    from denserl.segmentation import BANDIT_THRESHOLD

    stored = common_settings([config], [options.gold_reward_model])
    threshold = BANDIT_THRESHOLD if stored.entropy_threshold is None else stored.entropy_threshold

    def entropies(batch):
        return reference(*batch[:3], response_length=batch.response_mask.shape[1], shared=batch.shared)[1]

    return ResponseScorer(RewardSource([model]), threshold, entropies, stored.agg_func)


def _new_critic(options: Options, dtype: str):
    from denserl.models.loading import load_reward_model, new_reward_model

    if options.critic_init == "sft":
        return new_reward_model(options.model, dtype, options.seed, **options.model_source())
    return load_reward_model(options.reward_model[0], dtype, **options.model_source())


def _engine_settings(options: Options, config, dtype: str) -> dict:
    from denserl import distributed
    from denserl.trainer.engine import deepspeed_config

    world = distributed.world_size()
    return deepspeed_config(
        zero_stage=options.zero_stage,
        dtype=dtype,
        micro_batch_size=config.micro_batch,
        accumulation=config.train_batch // world // config.micro_batch,
        world_size=world,
        max_grad_norm=options.max_grad_norm,
        offload_optimizer=options.offload_optimizer,
    )


def save(trainer, current_policy, options: Options) -> None:
    """Policy and tokenizer in the output folder, critic in critic/, the average in ema/; adapters are kept too, and merged."""
    from denserl import distributed
    from denserl.trainer.engine import trained_parameters, whole_parameters

    folder, policy = Path(options.output_dir), current_policy()

    def write(model, target: Path) -> None:
        if distributed.rank() == 0:
            if hasattr(model, "merge_and_unload"):
                model.save_pretrained(str(target / "adapter"))
                model = deepcopy(model).merge_and_unload()
            model.save_pretrained(str(target))
            trainer.tokenizer.save_pretrained(str(target))

    write(policy, folder)
    with whole_parameters(trainer.models.critic.module) as critic:
        write(critic, folder / "critic")
    if trainer.ema:
        # The run is over: its weights, written above, make room for their average.
        for parameter, average in zip(trained_parameters(policy), trainer.ema, strict=True):
            parameter.data.copy_(average)
        write(policy, folder / "ema")
    distributed.barrier()
    log.info("policy written to %s", folder)


def _ptx_rows(options: Options, tokenizer):
    """Tokenised text for the pretraining loss."""
    from denserl.data.demonstrations import load_demonstrations, tokenize_demonstrations

    rows = load_demonstrations(options.ptx_data, split=options.split, on_bad_row=options.on_bad_row, seed=options.seed)
    length = options.max_prompt_length + options.max_new_tokens
    return tokenize_demonstrations(rows, tokenizer, max_length=length, on_bad_row=options.on_bad_row)


def _ptx_batches(options: Options, rows, pad_id: int) -> Callable[[int], list]:
    """Optimiser step -> this rank's micro-batches of an endless stream of text, in an order set by the seed."""
    from denserl import distributed
    from denserl.data.batching import DemonstrationCollator, ResponseBatch
    from denserl.trainer.rollout import prompt_rows

    collate, size, micro = DemonstrationCollator(pad_id), options.train_batch_size, options.micro_batch_size

    def batches(step: int) -> list[ResponseBatch]:
        mine = prompt_rows(step * size, size, len(rows), options.seed)[distributed.rank() :: distributed.world_size()]
        parts = [[rows[i] for i in mine[first : first + micro]] for first in range(0, len(mine), micro)]
        return [ResponseBatch.of(collate(part)) for part in parts]

    return batches


def main(argv: list[str] | None = None) -> None:
    launch(Options, "train-ppo", run, argv)


if __name__ == "__main__":
    main()
