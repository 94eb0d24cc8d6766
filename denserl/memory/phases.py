"""What each phase of the training commands needs of a GPU's memory: which models are there, and what passes through them.

The formulas are in formulas.py, the counting of passes in meta_pass.py, the search for what fits in search.py.
"""

from functools import cache

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from denserl.memory import formulas
from denserl.memory.config import PlanConfig
from denserl.memory.formulas import Sharding, Size
from denserl.memory.meta_pass import cache_bytes_per_token, classifier_bytes, policy_bytes
from denserl.memory.search import Phase, Setting
from denserl.models.adapters import prepare_model
from denserl.models.config import AdapterConfig
from denserl.models.decoding import PROMPT_TOKENS
from denserl.models.dropout import disable_dropout
from denserl.models.four_bit import to_quantise
from denserl.models.loading import empty_policy, empty_reward_model

# policy, reward: trained, with adapters if any. critic, where there is one: trained whole. reference, and a scorer per reward
# model: only read.
POLICIES = ("policy", "reference")
WITH_ADAPTERS = {"policy": "CAUSAL_LM", "reward": "SEQ_CLS"}


class Planner:
    """Bytes per GPU of each phase in a setting. Models are built on the meta device, and each pass is counted once."""

    def __init__(self, options: PlanConfig, progress: bool = False):
        self.options = options
        self.counted = tqdm(desc="passes counted", unit="", leave=False, disable=not progress)
        self.dtype, self.width = ("fp32", 4) if options.dtype == "fp32" else ("bf16", 2)
        self.length = options.max_prompt_length + options.max_new_tokens
        scorers = [*(options.reward_model or [options.model]), *filter(None, [options.gold_reward_model])]
        self.scorers = {f"scorer {i}": path for i, path in enumerate(scorers)}
        self.samples = options.rollout_engine == "policy"
        self.critics = ["critic"] if options.advantage == "gae" else []
        self.trained = {"train-sft": ["policy"], "train-rm": ["reward"], "train-ppo": ["policy", *self.critics]}
        self.model, self.size, self.passing = cache(self._model), cache(self._size), cache(self._passing)

    def phases(self) -> list[Phase]:
        return [
            Phase("train-sft", "training", self.sft, "micro_batch_size"),
            Phase("train-rm", "reference entropies", self.entropies, "score_tokens"),
            *([Phase("train-rm", "meta step", self.meta_step, "micro_batch_size")] if self.options.meta_data else []),
            Phase("train-rm", "training", self.reward_training, "micro_batch_size"),
            Phase("train-rm", "evaluation", self.reward_evaluation, "score_tokens"),
            *([Phase("train-ppo", "rollout", self.rollout, "sample_batch_size")] if self.samples else []),
            Phase("train-ppo", "scoring", self.scoring, "micro_batch_size"),
            Phase("train-ppo", "update", self.update, "micro_batch_size"),
        ]

    def sft(self, setting: Setting) -> int:
        """One model; the loss may be on all tokens but the first."""
        length = self.options.max_length
        passing = self.passing("policy", setting.micro_batch_size, length, length - 1, setting.gradient_checkpointing)
        return self._training("policy", setting, passing)

    def entropies(self, setting: Setting) -> int:
        """The frozen SFT model, before anything else is there; at stage 3 each GPU has its share."""
        size, sharding, length = self.size("reference"), self.sharding(setting), self.options.max_length
        rows = max(1, setting.score_tokens // length)
        held = formulas.weights(size, sharding) + formulas.gathered_weights(size, sharding)
        return held + self.passing("reference", rows, length, length - 1)

    def meta_step(self, setting: Setting) -> int:
        """One model, and as many responses as a micro-batch of pairs has, in whole prompts; one at least."""
        size, sharding, many = self.size("reward"), self.sharding(setting), self.options.meta_samples
        rows = many * max(1, 2 * setting.micro_batch_size // many)
        passing = self.passing("reward", rows, self.options.max_length, 0, setting.gradient_checkpointing)
        held = formulas.at_rest(size, sharding) + formulas.dequantised(size, sharding)
        return held + formulas.meta_peak(size, sharding, passing)

    def reward_training(self, setting: Setting) -> int:
        """One model; a pair is two rows, whose common prompt is counted twice, and as many again in a second pass."""
        rows, length = (4 if self.options.contrastive else 2) * setting.micro_batch_size, self.options.max_length
        before = formulas.moved_weights(self.size("reward"), self.sharding(setting)) if self.options.meta_data else 0
        passing = self.passing("reward", rows, length, 0, setting.gradient_checkpointing)
        return before + self._training("reward", setting, passing)

    def reward_evaluation(self, setting: Setting) -> int:
        size, sharding, length = self.size("reward"), self.sharding(setting), self.options.max_length
        rows = max(2, setting.score_tokens // length)
        held = formulas.at_rest(size, sharding) + formulas.gathered_weights(size, sharding)
        return held + formulas.dequantised(size, sharding) + self.passing("reward", rows, length, 0)

    def rollout(self, setting: Setting) -> int:
        """All models at rest, the cache at its longest, and reading the prompts or drawing tokens, whichever takes more."""
        rows, policy, options = setting.sample_batch_size, self.model("reference", False), self.options
        kept = formulas.cache(cache_bytes_per_token(policy), rows, options.max_prompt_length, options.max_new_tokens)
        read = max(1, min(rows, PROMPT_TOKENS // options.max_prompt_length))
        reading = self.passing("reference", read, options.max_prompt_length, 1)
        reading += formulas.dequantised(self.size("policy"), self.sharding(setting))
        drawing = formulas.sampling_step(rows, policy.get_output_embeddings().out_features)
        return self._ppo_at_rest(setting) + kept + max(reading, drawing)

    def scoring(self, setting: Setting) -> int:
        """All models at rest, and the pass of one of them."""
        sharding = self.sharding(setting)
        responses = {"reference": self.options.max_new_tokens, **dict.fromkeys([*self.critics, *self.scorers], 0)}
        # With adapters, the policy without them is the reference.
        held = {"reference": formulas.dequantised(self.size("policy"), sharding)}
        return self._ppo_at_rest(setting) + max(
            formulas.gathered_weights(self.size(role), sharding)
            + held.get(role, 0)
            + self.passing(role, setting.micro_batch_size, self.length, response)
            for role, response in responses.items()
        )

    def update(self, setting: Setting) -> int:
        """All models at rest, critic or actor in training, and the other's gradients from micro-batches before."""
        sharding, checkpointing = self.sharding(setting), setting.gradient_checkpointing
        needs, trained = [], self.trained["train-ppo"]
        for role in trained:
            response = self.options.max_new_tokens if role in POLICIES else 0
            passing = self.passing(role, setting.micro_batch_size, self.length, response, checkpointing)
            kept = sum(formulas.between_micro_batches(self.size(other), sharding) for other in trained if other != role)
            needs.append(kept + formulas.training_peak(self.size(role), sharding, passing))
        return self._ppo_at_rest(setting) + max(needs)

    def host(self, command: str, setting: Setting) -> int:
        """Bytes of main memory that offloaded optimiser states take, all ranks together."""
        return sum(formulas.offloaded(self.size(role), self.sharding(setting)) for role in self.trained[command])

    def sharding(self, setting: Setting) -> Sharding:
        return Sharding(self.options.gpus, setting.zero_stage, self.width, setting.offload_optimizer)

    def _training(self, role: str, setting: Setting, passing: int) -> int:
        size, sharding = self.size(role), self.sharding(setting)
        return formulas.at_rest(size, sharding) + formulas.training_peak(size, sharding, passing)

    def _ppo_at_rest(self, setting: Setting) -> int:
        """What the models of train-ppo, and at stage 3 the copy that samples, hold all the time."""
        sharding = self.sharding(setting)
        trained = sum(formulas.at_rest(self.size(role), sharding) for role in self.trained["train-ppo"])
        # With adapters, the policy without them is the reference.
        read = (*([] if self.options.lora_rank else ["reference"]), *self.scorers)
        frozen = sum(formulas.weights(self.size(role), sharding) for role in read)
        average = formulas.moving_average(self.size("policy")) if self.options.ema_decay else 0
        copy = formulas.sampling_copy(self.size("policy"), sharding) if self.samples else 0
        return trained + frozen + average + copy

    def _empty(self, role: str) -> PreTrainedModel:
        options = self.options
        source = {
            "trust_remote_code": options.trust_remote_code,
            # Fused kernels keep the same, and need not be installed here.
            "attn_implementation": "eager" if options.attention == "eager" else "sdpa",
        }
        from_reward_model = role == "critic" and options.critic_init == "reward_model"
        path = self.scorers.get("scorer 0" if from_reward_model else role, options.model)
        return (empty_policy if role in POLICIES else empty_reward_model)(path, self.dtype, **source)

    def _model(self, role: str, checkpointing: bool) -> PreTrainedModel:
        model, options = self._empty(role), self.options
        if role == "critic":
            disable_dropout(model)
        config = AdapterConfig(gradient_checkpointing=None if checkpointing else False)
        if role in WITH_ADAPTERS:
            config.lora_rank, config.lora_targets = options.lora_rank, options.lora_targets
        return prepare_model(model, config, WITH_ADAPTERS.get(role, ""), "cuda")

    def _size(self, role: str) -> Size:
        size = Size.of(self.model(role, False))
        if not self.options.load_in_4bit or role not in WITH_ADAPTERS:
            return size
        return size._replace(four_bit=tuple(layer.weight.numel() for layer in to_quantise(self._empty(role))))

    def _passing(self, role: str, rows: int, length: int, response: int, checkpointing: bool | None = None) -> int:
        """Bytes of a pass. checkpointing: of a training pass; None for one without gradient. response: 0 for classifiers."""
        self.counted.update()
        model, train = self.model(role, bool(checkpointing)), checkpointing is not None
        if role in POLICIES:
            return policy_bytes(model, rows, length, response, train)
        return classifier_bytes(model, rows, length, train)
