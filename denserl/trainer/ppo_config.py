"""Options of PPO: the loop, its models, held-out rollouts."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, INPUT, MODEL, RESUMABLE, Only, RunConfig
from denserl.data.config import DataConfig, has_splits
from denserl.errors import require
from denserl.judging.config import JudgeConfig
from denserl.ppo_utils.config import WITHOUT_CRITIC, KLConfig, LossConfig, PaidConfig
from denserl.rewards.config import LabelColumnConfig
from denserl.rollouts.config import EngineConfig
from denserl.trainer.config import OptimisationConfig

HELD_OUT = Only(
    "without `eval_prompts`, or with `eval_every` 0",
    lambda c: c.eval_prompts and c.eval_every,
)


@dataclass(kw_only=True)
class PPOConfig(
    PaidConfig,
    LabelColumnConfig,
    KLConfig,
    EngineConfig,
    LossConfig,
    OptimisationConfig,
    JudgeConfig,
    DataConfig,
    RunConfig,
):
    """PPO against rewards of any source. --reward_level sets threshold and assignment, that the normaliser."""

    group: ClassVar[str] = "PPO"

    model: Annotated[str, MODEL, FIRST, RESUMABLE]
    """Policy to start from, and the reference: the SFT model, folder or hub name."""
    pair_opponent: Annotated[
        Literal["group", "reference"] | None,
        Only("with `samples_per_prompt` 1", lambda c: c.pair_opponent != "group" or c.samples_per_prompt > 1),
    ] = None
    """Of a reward model that compares two responses: pay the log-odds of being better than the answer of the reference model to
    the same prompt (reference, the default), or their mean against the other samples of the prompt (group)."""

    episodes: Annotated[float, Gt(0), Only("beside `iterations`", lambda c: not c.iterations)] = 1.0
    """Passes over the prompts."""
    iterations: Annotated[int | None, FIRST, Ge(1)] = None
    """Stop after this many rollout batches instead."""
    rollout_batch_size: Annotated[int, FIRST, Ge(1)] = 1024
    """Responses sampled per iteration, all ranks together."""
    train_batch_size: Annotated[int, Ge(1)] = 128
    """Responses per optimiser step, all ranks together."""
    micro_batch_size: Annotated[int, FIRST, Ge(1), RESUMABLE] = 4
    """Responses per forward on one rank."""
    samples_per_prompt: Annotated[int, Ge(1)] = 1
    """Responses sampled for each prompt."""
    ppo_epochs: Annotated[int, Ge(1)] = 1
    """Passes over each rollout batch."""
    critic_init: Annotated[Literal["sft", "reward_model"], WITHOUT_CRITIC] = "sft"
    """Backbone of the critic; sft gets a fresh head, reward_model (the first of an ensemble) keeps its own."""
    critic_warmup_iterations: Annotated[int, Ge(0), WITHOUT_CRITIC] = 0
    """Iterations at the start that train the critic alone; the policy, and its learning-rate schedule, begin after them."""
    ptx_data: Annotated[list[str] | None, INPUT, RESUMABLE] = None
    """Text or demonstrations for the pretraining loss."""
    ptx_coef: Annotated[float, Ge(0), Only("without `ptx_data`", lambda c: c.ptx_data)] = 0.05
    """Weight of the pretraining loss."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the policy, saved in ema/; 0 keeps none. The paper's release uses 0.992."""
    actor_lr: Annotated[float, FIRST, Ge(0)] = 5e-7
    """Peak learning rate of the policy."""
    critic_lr: Annotated[float, FIRST, Ge(0), WITHOUT_CRITIC] = 9e-6
    """Peak learning rate of the critic."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""

    eval_prompts: Annotated[list[str] | None, INPUT, RESUMABLE] = None
    """Held-out prompts to roll out."""
    eval_split: Annotated[
        str,
        RESUMABLE,
        Only("without a folder or hub dataset of held-out rows", lambda c: has_splits(c.eval_prompts)),
    ] = "test"
    """Split of eval_prompts when it is a hub dataset or a folder."""
    eval_limit: Annotated[int, Ge(1), RESUMABLE, HELD_OUT] = 256
    """At most this many held-out prompts."""
    eval_every: Annotated[int, Ge(0), RESUMABLE, Only("without `eval_prompts`", lambda c: c.eval_prompts)] = 5
    """Iterations between held-out rollouts; 0 none."""
    true_reward: Annotated[str | None, RESUMABLE, HELD_OUT] = None
    """module:function of (prompts, responses) -> true rewards of held-out rollouts, where they are known; only reported."""
    gold_reward_model: Annotated[str | None, MODEL, RESUMABLE, HELD_OUT] = None
    """Reward model that only judges held-out rollouts, at the level in its config, by this run's entropies."""
    judge_reward_model: Annotated[
        list[str] | None, MODEL, RESUMABLE, HELD_OUT, Only("beside `judge`", lambda c: not c.judge)
    ] = None
    """Reward model that judges in the place of a language model, by the probability that its scores make of two answers: folder
    or hub name; several are an ensemble."""
    eval_judge: Annotated[
        int,
        Ge(1),
        RESUMABLE,
        Only("without `judge` or `judge_reward_model`", lambda c: c.judge or c.judge_reward_model),
        Only(HELD_OUT.when, HELD_OUT.has_effect, of=("judge",)),
    ] = 1
    """Let the judge compare every so many held-out rollouts, and the last one, with answers of the reference model to the same
    prompts: a win rate (docs/judging.md)."""
    save_every: Annotated[int, Ge(0), RESUMABLE] = 5
    """Iterations between checkpoints; 0: none but on a stop request, or by `save_minutes`."""
    keep_checkpoints: Annotated[int, Ge(1), RESUMABLE] = 2
    """Checkpoints kept."""
    samples_logged: Annotated[int, Ge(0), RESUMABLE] = 4
    """Sample responses written per iteration."""

    def reads_splits(self) -> bool:
        return has_splits(self.data, self.ptx_data)

    def check(self) -> None:
        super().check()
        require(
            self.lora_dropout == 0,
            f"`lora_dropout` {self.lora_dropout:g}: old and new log-probabilities must be of the same policy",
            "leave `lora_dropout` at 0 in PPO",
        )
