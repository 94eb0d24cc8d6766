"""The models of a PPO run: actor and critic as DeepSpeed engines, the others frozen; what writes them at its end."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.batching import ResponseBatch, response_slots
from denserl.data.fingerprints import file_fingerprint
from denserl.models.adapters import prepare_layers, prepare_model, save_adapters
from denserl.models.dropout import disable_dropout
from denserl.models.kernels import use_liger_kernel
from denserl.models.loading import load_policy, local_folder, match_embeddings
from denserl.models.measured import check_steady
from denserl.models.merging import merge_trained
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.scoring import token_rewards
from denserl.models.tokenizers import check_same_tokenizer, load_tokenizer
from denserl.rewards.sources.base import ResponseScorer
from denserl.rewards.sources.build import Members, source_of
from denserl.rewards.sources.implicit import LogProbs
from denserl.rewards.sources.reading import choose_segmenter
from denserl.rollouts.base import Rollouts, Sampler, Stream
from denserl.trainer.engine import (
    deepspeed_config,
    frozen_engine,
    train_engine,
    trained_parameters,
    update_copy,
    whole_parameters,
)
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_data import Schedule
from denserl.trainer.reference import PolicyModule
from denserl.trainer.start import warn_of_shortage

log = logging.getLogger(__name__)


class Models(NamedTuple):
    """actor and critic: DeepSpeed engines, the critic None where nothing is estimated by one. reference: what a PolicyModule
    gives, by the policy before training.

    whole_reference: the policy before training as an ordinary model, for sampling, where it was asked for.
    """

    actor: nn.Module
    critic: nn.Module | None
    reference: Callable[..., tuple[Tensor, Tensor | None]]
    # The policy as it is now, an ordinary model (with its adapters, if any), for sampling and saving.
    current_policy: Callable[[], PreTrainedModel]
    # What the actor trains: under ZeRO-3 in shares.
    trained_policy: PreTrainedModel
    whole_reference: Callable[[], AbstractContextManager[PreTrainedModel]] | None = None

    @property
    def engines(self) -> dict[str, nn.Module]:
        """Those that are trained, by name."""
        return {"actor": self.actor, **({"critic": self.critic} if self.critic is not None else {})}


def load_models(
    config: PPOConfig,
    schedule: Schedule,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: str,
    others: Sequence[nn.Module] = (),
    samples_reference: bool = False,
) -> Models:
    """Policy, reference and critic that the config names, loaded and made ready.

    others: what is on the device beside them. samples_reference: whether the reference is to be sampled from.
    """
    policy = load_policy(config.model, dtype, **config.model_source(), **config.base_loading())
    # With adapters, the policy without them is the reference.
    frozen_models = [] if config.lora_rank else [load_policy(config.model, dtype, **config.model_source())]
    critics = [_new_critic(config, dtype)] if config.has_critic() else []
    for model in (policy, *critics, *frozen_models):
        match_embeddings(model, tokenizer)
        check_steady(model)
        disable_dropout(model)
    if config.use_liger_kernel:
        # As of the policy, from which it is not to differ before it is trained, by rounding either.
        for model in frozen_models:
            use_liger_kernel(model)
    # ZeRO-3 spreads the weights of the one that is read.
    copies = [deepcopy(model).eval() for model in frozen_models if samples_reference and config.zero_stage == 3]
    actor = prepare_model(policy, config, "CAUSAL_LM", device.type)
    for critic in critics:
        prepare_layers(critic, config, device.type)
    warn_of_shortage(config, dtype, device, [actor, *critics], [*frozen_models, *copies, *others])
    trained, frozen = _engine_configs(config, dtype)
    # A copy that nobody samples from is there to be saved.
    place = "cpu" if config.rollout_engine == "vllm" and not samples_reference else device
    whole = deepcopy(actor).eval().to(place) if config.zero_stage == 3 else actor
    # With adapters, the base model inside already runs them; the wrapper is needed for saving.
    inside = actor.get_base_model() if config.lora_rank else actor
    actor_steps = (schedule.iterations - config.critic_warmup_iterations) * schedule.steps_per_iteration
    engine = train_engine(PolicyModule(inside), trained, config, lr=config.actor_lr, total_steps=actor_steps)
    if config.lora_rank:
        reference = _without_adapters(engine, actor)
        sampled: Any = functools.partial(_adapters_off, whole)
    else:
        sampled = functools.partial(nullcontext, (copies or frozen_models)[0].to(device))
        reference = frozen_engine(PolicyModule(*frozen_models), frozen, device)
    judging = [
        train_engine(critic, trained, config, lr=config.critic_lr, total_steps=schedule.total_steps) for critic in critics
    ]
    return Models(
        actor=engine,
        critic=judging[0] if judging else None,
        reference=LastBatch(reference),
        current_policy=(lambda: whole) if whole is actor else (lambda: update_copy(actor, whole)),
        trained_policy=actor,
        whole_reference=sampled if samples_reference else None,
    )


def sample_reference(
    models: Models,
    config: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    make: Callable[..., Sampler],
    prompts: list[list[int]],
    streams: Sequence[Stream],
) -> Rollouts:
    """Responses of the policy before training, by the run's sampler. make: as `sampler` of `PPOTrainer.from_config`."""
    with models.whole_reference() as policy:
        return make(config, lambda: policy, tokenizer)(prompts, streams)


@contextlib.contextmanager
def _adapters_off(adapted: nn.Module) -> Iterator[nn.Module]:
    """The model without its adapters, which are switched on again."""
    with adapted.disable_adapter():
        yield adapted


def _without_adapters(engine: nn.Module, adapted: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """An engine's forward with the adapters of the model inside switched off."""

    def forward(*args: Any, **kw: Any) -> tuple[Tensor, Tensor | None]:
        with adapted.disable_adapter():
            return engine(*args, **kw)

    return forward


def freeze(members: Members | None, config: PPOConfig, device: torch.device, dtype: str) -> list[nn.Module]:
    """Reward models made ready to be read; none without any."""
    _, frozen = _engine_configs(config, dtype)
    for model in members.models if members else []:
        disable_dropout(model)
    return [frozen_engine(model, frozen, device) for model in (members.models if members else [])]


def load_implicit(config: PPOConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: str) -> list[nn.Module]:
    """The model of the implicit reward, and its reference unless that is of the very files of PPO's own, as PolicyModules."""
    if not config.implicit_reward:
        return []
    start = config.implicit_reference or config.model
    log.info("implicit reward: %g times the log-ratio of %s to %s", config.implicit_beta, config.implicit_reward, start)
    same = file_fingerprint(local_folder(start), dtype) == file_fingerprint(local_folder(config.model), dtype)
    found = []
    for path in [config.implicit_reward, *([] if same else [start])]:
        check_same_tokenizer(tokenizer, load_tokenizer(path, **config.tokenizer_source()), path)
        model = load_policy(path, dtype, **config.model_source())
        match_embeddings(model, tokenizer)
        disable_dropout(model)
        found.append(frozen_engine(PolicyModule(model), _engine_configs(config, dtype)[1], device))
    return found


def logprob_entropy(
    module: Callable[..., tuple[Tensor, Tensor | None]], batch: ResponseBatch, temperature: float, with_entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """(B, T) log-probabilities of a batch's response tokens by policy or reference, and entropies where they are wanted."""
    settings = {"temperature": temperature, "shared": batch.shared, "with_entropy": with_entropy}
    return module(*batch[:3], response_length=batch.response_mask.shape[1], **settings)


def state_values(critic: nn.Module, batch: ResponseBatch) -> Tensor:
    """(B, T) values of the states before each response token: the head at the token before it."""
    values = token_rewards(critic, batch.input_ids, batch.attention_mask, batch.shared)
    return response_slots(values, batch.response_start - 1, batch.response_mask.shape[1])


def logprobs_of(forward: Callable) -> LogProbs:
    """The log-probabilities at temperature 1 that a PolicyModule's forward gives."""
    return lambda batch: forward(*batch[:3], response_length=batch.response_mask.shape[1], shared=batch.shared)[0]


class LastBatch:
    """A frozen PolicyModule's forward that keeps what it said of the last batch, for whoever asks the same once more."""

    def __init__(self, forward: Callable[..., tuple[Tensor, Tensor | None]]):
        self.forward = forward
        self.asked: tuple[Tensor, float] | None = None

    def __call__(self, input_ids: Tensor, *args: Any, temperature: float = 1.0, **kw: Any) -> tuple[Tensor, Tensor | None]:
        if self.asked is None or self.asked[0] is not input_ids or self.asked[1] != temperature:
            self.said = self.forward(input_ids, *args, temperature=temperature, **kw)
            self.asked = (input_ids, temperature)
        return self.said


def gold_scorer(
    gold: Members, models: Sequence[nn.Module], reference: Callable, trusted: Sequence[str | None] = ()
) -> ResponseScorer:
    """The frozen gold reward model, read as it was trained, by the reference model's entropies.

    trusted: see `choose_segmenter`.
    """
    segmenter = choose_segmenter(gold.each, gold.paths, gold.tokenizer, trusted=trusted)
    source = source_of(gold, segmenter, models=models)
    return ResponseScorer(source, segmenter, functools.partial(_entropies, reference), gold.stored.agg_func)


def save_models(config: PPOConfig, models: Models, tokenizer: PreTrainedTokenizerBase, average: list[Tensor]) -> None:
    """Policy and tokenizer in the output folder, critic in critic/, the average in ema/; adapters are kept too, and merged."""
    folder, policy = Path(config.output_dir), models.current_policy()

    def write(model: PreTrainedModel, target: Path) -> None:
        if distributed.rank() == 0:
            if hasattr(model, "merge_and_unload"):
                save_adapters(model, target / "adapter")
                model = merge_trained(deepcopy(model), target / "adapter")
            model.save_pretrained(str(target))
            tokenizer.save_pretrained(str(target))

    write(policy, folder)
    if models.critic is not None:
        with whole_parameters(models.critic.module) as critic:
            write(critic, folder / "critic")
    if average:
        # The run is over: its weights, written above, make room for their average.
        for parameter, mean in zip(trained_parameters(policy), average, strict=True):
            parameter.data.copy_(mean)
        write(policy, folder / "ema")
    distributed.barrier()


def _engine_configs(config: PPOConfig, dtype: str) -> tuple[dict, dict]:
    """DeepSpeed's settings of the models that are trained, and of those that are only read."""
    accumulation = config.train_batch_size // distributed.world_size() // config.micro_batch_size
    trained = deepspeed_config(config, dtype, config.micro_batch_size, accumulation)
    return trained, {**trained, "zero_optimization": {"stage": config.zero_stage}}


def _entropies(reference: Callable, batch: ResponseBatch) -> Tensor:
    return reference(*batch[:3], response_length=batch.response_mask.shape[1], shared=batch.shared)[1]


def _new_critic(config: PPOConfig, dtype: str) -> PreTrainedModel:
    if config.critic_init == "sft":
        return new_reward_model(config.model, dtype, config.seed, **config.model_source())
    return load_reward_model(config.reward_model[0], dtype, **config.model_source())
