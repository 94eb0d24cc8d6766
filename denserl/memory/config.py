"""Options of the plan: which models, at which sizes, on which GPUs. The search for what fits is in search.py."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, MODEL, ModelSourceConfig, Only, Precision
from denserl.errors import require
from denserl.models.config import WITHOUT_ADAPTERS


@dataclass(kw_only=True)
class PlanConfig(ModelSourceConfig):
    """Print the memory each phase needs per GPU, and the first setting that fits. Reads no weights and needs no GPU."""

    model: Annotated[str, MODEL, FIRST]
    """Language model: folder or hub name, of which config.json is read."""
    reward_model: Annotated[list[str] | None, MODEL, FIRST] = None
    """Reward model of train-ppo, or all of an ensemble; default: one of the language model's shape, with a reward head."""
    gold_reward_model: Annotated[str | None, MODEL] = None
    """Reward model that judges held-out rollouts of train-ppo."""
    advantage: Literal["gae", "rloo", "grpo", "reinforce"] = "gae"
    """How train-ppo estimates advantages; gae alone has a critic."""
    critic_init: Annotated[
        Literal["sft", "reward_model"],
        Only("without a critic, which `advantage` gae alone has", lambda c: c.advantage == "gae"),
    ] = "sft"
    """Backbone of the critic of train-ppo."""
    rollout_engine: Literal["policy", "vllm"] = "policy"
    """What samples the responses of train-ppo: the policy, or servers of vLLM on GPUs that are not among these."""
    gpus: Annotated[int, FIRST, Ge(1)] = 1
    """GPUs, all hosts together."""
    gpu_memory: Annotated[float | None, FIRST, Gt(0)] = None
    """GiB of each; default: of the GPU in this machine."""
    dtype: Precision = "auto"
    """Precision of weights in forward and backward; auto is bf16."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention kernel."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: as in training on by default; --no-gradient_checkpointing plans without it
    as long as that fits."""
    offload_optimizer: bool = False
    """Keep optimiser state in CPU memory (ZeRO 1-3), even if it fits without."""
    lora_rank: Annotated[int, FIRST, Ge(0)] = 0
    """Train LoRA adapters of this rank instead of all weights; 0 trains all."""
    load_in_4bit: Annotated[bool, FIRST, WITHOUT_ADAPTERS] = False
    """Hold the weights under the adapters in 4 bits."""
    lora_targets: Annotated[list[str] | None, WITHOUT_ADAPTERS] = None
    """Modules that get adapters; default: all linear layers of the backbone."""
    micro_batch_size: Annotated[int, FIRST, Ge(1)] = 4
    """Rows per forward on one rank: demonstrations, pairs, or responses."""
    max_length: Annotated[int, FIRST, Ge(1)] = 2048
    """Longest sequence of train-sft and train-rm, prompt and response together, in tokens."""
    score_tokens: Annotated[int, Ge(1)] = 16384
    """Tokens per batch of train-rm where nothing is trained: reference entropies and evaluation."""
    contrastive: Literal["simcse", "swav"] | None = None
    """Contrastive term of train-rm, whose two passes are one forward of twice the rows."""
    meta_data: list[str] | None = None
    """Samples of a meta step of train-rm, which is then counted too; they are not read."""
    meta_samples: Annotated[int, Ge(2), Only("without `meta_data`", lambda c: c.meta_data)] = 4
    """Responses to a prompt that it compares."""
    max_prompt_length: Annotated[int, FIRST, Ge(1)] = 1024
    """Longest prompt of train-ppo."""
    max_new_tokens: Annotated[int, FIRST, Ge(1)] = 1024
    """Longest response of train-ppo."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Decay of the moving average of train-ppo's policy; 0 keeps none."""
    sample_batch_size: Annotated[
        int, FIRST, Ge(1), Only("with `rollout_engine` vllm", lambda c: c.rollout_engine == "policy")
    ] = 64
    """Prompts that train-ppo samples at once on one rank."""

    def check(self) -> None:
        super().check()
        require(self.max_length > 1, f"`max_length` {self.max_length} leaves no room for a response", "give at least 2")
