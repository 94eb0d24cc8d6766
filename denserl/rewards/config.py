"""Options of rewards: where they come from, how responses are cut, and what reward models are trained for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, MODEL, RESUMABLE, Config, DeviceConfig, Level, Only, RunConfig
from denserl.data.config import RatedDataConfig, StepDataConfig
from denserl.errors import UserError, require


def check_url(option: str, url: str, token_option: str) -> None:
    """UserError for what is no address of a server, or has a login in it, which would be written into files and logs.

    token_option: by which a token is given instead.
    """
    fix = f"give `{option}` http://HOST:PORT/PATH, and a token by `{token_option}`"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise UserError(f"`{option}` has what is no address of a server: {error}", fix) from error
    require(parts.username is None, f"`{option}` of {parts.hostname} has a login in it", fix)
    require(sound, f"`{option}` {url} is no address of a server", fix)


Aggregation = Literal["avg", "sum", "min", "last", "logsumexp"]
ReadAt = Literal["end_of_turn", "last_token"]


@dataclass(kw_only=True)
class EnsembleConfig(Config, ABC):
    """How several reward models are one."""

    group: ClassVar[str] = "reward"

    ensemble: Annotated[
        Literal["mean", "min", "mean_std"], Only("with a single reward model", lambda c: len(c.members()) > 1)
    ] = "mean"
    """Scores of an ensemble: the members' mean, their min, or mean_std, the mean less ensemble_weight times their std."""
    ensemble_weight: Annotated[float, Ge(0), Only("without `ensemble` mean_std", lambda c: c.ensemble == "mean_std")] = 1.0
    """Weight of the members' std in mean_std."""

    @abstractmethod
    def members(self) -> list[str]:
        """The reward models."""

    def combination(self) -> dict[str, Any]:
        """How their scores are one: `how` and `weight` of sources of rewards."""
        return {"how": self.ensemble, "weight": self.ensemble_weight}


@dataclass(kw_only=True)
class RewardModelConfig(EnsembleConfig):
    """Reward models, and how several are one."""

    reward_model: Annotated[list[str], MODEL, FIRST, RESUMABLE]
    """Trained reward model: folder or hub name. Several are an ensemble, each standardised by its own mean and std."""

    def members(self) -> list[str]:
        return self.reward_model or []


WITH_URL = Only("without `reward_url`", lambda c: c.reward_url)


@dataclass(kw_only=True)
class SourcesConfig(Config):
    """What gives rewards beside reward models, and how all are added."""

    group: ClassVar[str] = "reward sources"

    prefix_differences: Annotated[bool, Only("without `reward_model`", lambda c: c.reward_model)] = False
    """Pay what each token changes in the score of a reward model of whole responses: R(y_<=t) - R(y_<t), segment by segment."""
    implicit_reward: Annotated[str | None, MODEL, RESUMABLE] = None
    """Language model trained by DPO or the like, a folder or hub name: implicit_beta times its log-ratio to implicit_reference
    at every token, added up over segments (tokens, unless reward_level, entropy_threshold or segmenter say otherwise)."""
    implicit_reference: Annotated[
        str | None, MODEL, RESUMABLE, Only("without `implicit_reward`", lambda c: c.implicit_reward)
    ] = None
    """The model that the training of implicit_reward started from; default: `model`, which PPO starts from."""
    implicit_beta: Annotated[float, Gt(0), Only("without `implicit_reward`", lambda c: c.implicit_reward)] = 0.05
    """Beta of the implicit reward, that of its training."""
    reward_function: list[str] | None = None
    """module:function of (prompts, responses) -> one number each, or a list of (end character, number) each. Several are added
    (docs/reward_sources.md)."""
    reward_url: Annotated[list[str] | None, RESUMABLE] = None
    """Address of a server that answers rewards of prompts and responses (docs/reward_sources.md). Several are asked for a share
    each of every rank's responses, in order."""
    reward_url_batch: Annotated[int, Ge(1), RESUMABLE, WITH_URL] = 64
    """Responses of one request, at most."""
    reward_url_timeout: Annotated[float, Gt(0), RESUMABLE, WITH_URL] = 180.0
    """Seconds that an answer may take."""
    reward_url_tries: Annotated[int, Ge(1), RESUMABLE, WITH_URL] = 5
    """Tries of a request to a server that is away or busy, with growing waits, within tries x timeout seconds in all."""
    reward_url_token_env: Annotated[str | None, RESUMABLE, WITH_URL] = None
    """Environment variable with the token that requests carry (Authorization: Bearer); it is written nowhere."""
    reward_weights: Annotated[
        list[float] | None, Only("with a single source of rewards", lambda c: len(c.source_names()) > 1)
    ] = None
    """Weights of the sources: of reward_model, implicit_reward, each function, reward_url; default: 1 each."""
    outcome_function: str | None = None
    """module:function as reward_function, whose number is paid at the response's last token, on top of what weights add up."""
    outcome_weight: Annotated[float, Only("without `outcome_function`", lambda c: c.outcome_function)] = 1.0
    """What the outcome's number is multiplied by."""

    def source_names(self) -> list[str]:
        """What the sources of rewards are called in metrics, in the order of their weights; the outcome is not among them."""
        models = [name for name in ("reward_model", "implicit_reward") if getattr(self, name)]
        return [*models, *(self.reward_function or []), *(["reward_url"] if self.reward_url else [])]

    def check(self) -> None:
        super().check()
        for url in self.reward_url or []:
            check_url("reward_url", url, "reward_url_token_env")


@dataclass(kw_only=True)
class LabelColumnConfig(Config):
    """Right answers beside prompts."""

    group: ClassVar[str] = "reward sources"

    label_column: Annotated[
        str | None,
        Only(
            "without `reward_function`, `outcome_function`, `reward_url` or `true_reward`",
            lambda c: c.reward_function or c.outcome_function or c.reward_url or c.true_reward,
        ),
    ] = None
    """Column of the prompts' rows that says the right answer; functions are given its texts as a third argument, servers as
    `labels`."""


@dataclass(kw_only=True)
class StepConfig(Config):
    """How the text of a response is cut into steps (docs/process_rewards.md)."""

    group: ClassVar[str] = "steps"

    step_separator: list[str] | None = None
    r"""What stands between steps, of several any; \n is a line break. Default: as is stored, else a blank line, '\n\n'."""
    step_pattern: Annotated[
        str | None, Only("beside `step_separator`", lambda c: not (c.step_pattern and c.step_separator))
    ] = None
    """Regular expression of what stands between steps, in place of `step_separator`."""
    max_steps: Annotated[int | None, Ge(1)] = None
    """A response of more steps than this has the rest as one; rows of labelled steps keep theirs. Default: as is stored, else
    64."""
    skip_cut_step: bool = False
    """A step in which a response was cut off has no score; default: it has one, as any other."""


@dataclass(kw_only=True)
class ReadConfig(StepConfig):
    """How a reward model's scores are read, where another way is wanted than the one that is stored with it."""

    group: ClassVar[str] = "reward"

    entropy_threshold: Annotated[float | None, FIRST, Ge(0)] = None
    """Entropy (nats) above which a token opens a new segment; default: the one that is stored with the reward model."""
    segmenter: str | None = None
    """peak: cut at entropy peaks; step: cut the text into steps; module:function of (tokens, entropies) -> numbers of the
    tokens that open a segment. Default: as is stored with the reward model."""
    read_at: ReadAt | None = None
    """Where the one score of a response is read: at its end-of-turn token, as denserl trains, or at the last token that the
    chat template writes, as stock classifiers are. Default: as is stored with the reward model, else last_token."""


@dataclass(kw_only=True)
class ScorerConfig(DeviceConfig):
    """How responses are scored, by a model or by several whose mean counts."""

    group: ClassVar[str] = "reward"

    max_length: Annotated[int, Ge(1)] = 2048
    """Longest sequence that is scored, in tokens; a longer prompt loses tokens on the left so that the response stays."""
    score_tokens: Annotated[int, Ge(1)] = 16384
    """Padded tokens per batch where scores are computed."""

    def combination(self) -> dict[str, Any]:
        """As of `EnsembleConfig`, which a command inherits as well that offers a choice."""
        return {"how": "mean", "weight": 1.0}


@dataclass(kw_only=True)
class ScoringConfig(EnsembleConfig, ScorerConfig, RunConfig):
    """A run that scores whole responses."""


CONTRASTED = Only("without `contrastive`", lambda c: c.contrastive)
DISENTANGLED = Only("without `disentangle`", lambda c: c.disentangle)


@dataclass(kw_only=True)
class ObjectiveConfig(Config):
    """What a reward model is trained for."""

    group: ClassVar[str] = "objective"

    use_margin: bool = False
    """Subtract the rating difference inside the Bradley-Terry loss."""
    soft_label_scale: Annotated[float | None, Gt(0)] = None
    """Train on sigmoid(rating difference / scale) as the probability that the chosen response is the better; default: on 1."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    """Probability that a label is the wrong way round."""
    centring: Annotated[float, Ge(0)] = 0.0
    """Weight of the squared sum of both scores."""
    pos_reg: Annotated[float, Ge(0)] = 0.0
    """Weight of -log sigmoid(mean score of the chosen responses)."""
    reg_type: Literal["none", "sft", "sft_plain", "dpo", "dpo_noref"] = "none"
    """Text-generation term that keeps the trunk a language model (GRM): of the chosen response, or of the pair."""
    reg_coef: Annotated[float, Interval(ge=0, le=0.99), Only("without `reg_type`", lambda c: c.reg_type != "none")] = 0.01
    """Weight of that term; the Bradley-Terry loss has one minus it. 0: none, and no language-model head is run."""
    reg_beta: Annotated[
        float,
        Gt(0),
        Only("without `reg_type` sft, dpo or dpo_noref", lambda c: c.reg_type not in ("none", "sft_plain")),
    ] = 0.1
    """Scale of log-probabilities inside the term's log-sigmoid."""
    reg_logp: Annotated[Literal["sum", "mean"], Only("without `reg_type`", lambda c: c.reg_type != "none")] = "sum"
    """Log-probability of a response in that term: of all its tokens together, or divided by their number."""
    disentangle: Annotated[str | None, Only("with another `head_type` than linear", lambda c: c.head_type == "linear")] = None
    """Learn what goes with a covariate in an output of its own, which is not saved (ODIN): length, in tokens of the response,
    or NAME, whose numbers are columns chosen_NAME and rejected_NAME of the rows."""
    disentangle_coef: Annotated[float, Ge(0), DISENTANGLED] = 1.0
    """Weight of the quality's absolute correlation with the covariate less the other output's correlation with it."""
    disentangle_sum: Annotated[bool, DISENTANGLED] = False
    """Also the absolute correlation of the sum of both outputs, with that weight."""
    orthogonal_coef: Annotated[float, Ge(0), DISENTANGLED] = 1.0
    """Weight of the absolute product of both outputs' weights."""
    contrastive: Annotated[
        Literal["simcse", "swav"] | None,
        Only("with `freeze_trunk` or `head_type` gated", lambda c: not (c.freeze_trunk or c.head_type == "gated")),
    ] = None
    """Term that tells responses apart by their features in two random passes (docs/noisy_labels.md): each is found among all
    others (simcse), or its code among learned prototypes foretold by the other pass (swav)."""
    contrastive_on: Annotated[Literal["pair", "diff"], CONTRASTED] = "pair"
    """Its features: of both responses, or the difference of those of a pair, and its negative."""
    contrastive_coef: Annotated[float | None, Gt(0), CONTRASTED] = None
    """Its weight; default: simcse 1, swav 0.1 on pair and 0.5 on diff."""
    contrastive_tau: Annotated[float, Gt(0), Only("without `contrastive` simcse", lambda c: c.contrastive == "simcse")] = 0.05
    """Temperature of its softmax."""
    contrastive_dropout: Annotated[float, Interval(gt=0, lt=1), CONTRASTED] = 0.05
    """Dropout of the trunk's attention, and of the features that the term reads, in training alone."""
    prototypes: Annotated[int | None, Ge(2), Only("without `contrastive` swav", lambda c: c.contrastive == "swav")] = None
    """Learned prototypes, which are not saved; default: 50 on pair, 20 on diff."""
    objective: list[str] | None = None
    """module:Class of further objectives, with their options: my_objective:Centre,weight=0.1 (docs/extending.md)."""


WITHOUT_LABELS = Only("without `head_type` label", lambda c: c.head_type == "label")
OF_LAYERS = Only("without `head_type` mlp or gated", lambda c: c.head_type in ("mlp", "gated"))
WITHOUT_GATE = Only("without `head_type` gated", lambda c: c.head_type == "gated")


@dataclass(kw_only=True)
class HeadConfig(Config):
    """What turns a hidden state into a score."""

    group: ClassVar[str] = "head"

    head_type: Annotated[
        Literal["linear", "mlp", "label", "attributes", "gated"],
        Only(
            "with `head_type` gated, which trains the gate alone",
            lambda c: c.head_type != "gated",
            of=("freeze_trunk", "lora_rank", "reg_type"),
        ),
        Only("with `input` other than pairs", lambda c: c.head_type != "gated" or c.input == "pairs"),
    ] = "linear"
    """Reward head; linear makes a standard classifier, label a language model whose logits of two labels are the score;
    attributes a standard classifier of several labels, which are ratings; gated weighs the attributes of `model`, which rates
    some, by the prompt (docs/preference_models.md)."""
    labels: Annotated[list[str] | None, WITHOUT_LABELS] = None
    """The two labels, the better one first, each one token where it is the assistant's answer; default: + -. With `input` pair
    those of the response that stands first and of the other one, and maybe one of a tie; default: A B."""
    head_layers: Annotated[int | None, Interval(ge=1, le=64), OF_LAYERS] = None
    """Hidden layers of the mlp head, or of the gate; default: 1, of the gate 3."""
    head_width: Annotated[int, Interval(ge=1, le=2**20), OF_LAYERS] = 1024
    """Units in each of them."""
    head_dropout: Annotated[float | None, Interval(ge=0, lt=1), OF_LAYERS] = None
    """Dropout in training alone: before the mlp head, default 0.1, or behind each hidden layer of the gate, default 0.2."""
    debias: Annotated[str | None, WITHOUT_GATE] = None
    """An attribute that the others are freed of, and that is then left out of the score, such as verbosity."""
    debias_rho: Annotated[float, Interval(ge=-1, le=1), Only("without `debias`", lambda c: c.debias)] = 0.03
    """The rank correlation with it that each may keep, over the responses of the training pairs."""
    freeze_trunk: Annotated[bool, Only("with `freeze_trunk`", lambda c: not c.freeze_trunk, of=("lora_rank", "reg_type"))] = (
        False
    )
    """Train the reward head alone."""


@dataclass(kw_only=True)
class LevelConfig(StepConfig):
    """How a reward model that is trained reads responses; stored with it, and read there by every other command."""

    group: ClassVar[str] = "reward"

    reward_level: Annotated[Level, FIRST] = "segment"
    """Sets the entropy threshold: segment 1.75, token 0, bandit 1000."""
    entropy_threshold: Annotated[float | None, FIRST, Ge(0)] = None
    """Entropy (nats) above which a token opens a new segment; overrides the level's own."""
    segmenter: str | None = None
    """step: cut the text into steps; module:function of (tokens, entropies) -> numbers of the tokens that open a segment.
    Default: cut at entropy peaks."""
    agg_func: Aggregation = "avg"
    """How segment scores make the score of a response."""


OF_LABELS = Only("without `input` steps or response", lambda c: c.reads_steps())
OF_RATINGS = Only("without `input` ratings", lambda c: c.reads_ratings())
# What a fit in closed form has no use for.
OF_STEPWISE = (
    "epochs",
    "batch_size",
    "micro_batch_size",
    "lr",
    "min_lr_ratio",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "zero_stage",
    "lora_rank",
    "gradient_checkpointing",
    "freeze_trunk",
    "objective",
    "meta_data",
    "eval_steps",
    "save_steps",
    "save_minutes",
    "save_total_limit",
    "logging_steps",
    "keep",
    "resume",
    "max_skipped_steps",
)


@dataclass(kw_only=True)
class RatingsConfig(RatedDataConfig):
    """What is learned of responses whose attributes are rated."""

    group: ClassVar[str] = "rated attributes"

    attribute_weights: Annotated[list[float] | None, OF_RATINGS] = None
    """What each attribute weighs in the score; stored with the model. Default: the same each, 1 in all."""
    attribute_fit: Annotated[
        Literal["mse", "ridge"],
        OF_RATINGS,
        Only("with `attribute_fit` ridge", lambda c: c.attribute_fit != "ridge", of=OF_STEPWISE),
    ] = "mse"
    """By gradient steps, of which the squared error is the loss, or the head alone by ridge regression, in closed form."""

    def check_weights(self, names: list[str]) -> None:
        """UserError unless there is a weight for each of the attributes, or none at all."""
        weights = self.attribute_weights
        found = f"`attribute_weights` has {len(weights or [])} numbers for {len(names)} ratings: {', '.join(names)}"
        require(weights is None or len(weights) == len(names), found, "give one for each, in the same order")


ON_LABELS = Only("without `input` pair, steps or response", lambda c: c.reads_steps() or c.input == "pair")
OF_STEPS = Only("without `input` steps", lambda c: c.input == "steps")
OF_PAIR = Only("without `input` pair", lambda c: c.input == "pair")


@dataclass(kw_only=True)
class OrdersConfig(Config):
    """In which order two responses are read that stand in one text."""

    group: ClassVar[str] = "objective"

    both_orders: Annotated[bool, OF_PAIR] = False
    """Read each pair in both orders in one optimiser step, each with half the weight; default: in one, drawn once a pair."""
    symmetry: Annotated[float, Ge(0), Only("without `both_orders`", lambda c: c.both_orders)] = 0.0
    """Weight of the squared position bias, the mean of the log-odds that the first response is better in both orders."""


@dataclass(kw_only=True)
class StepLabelsConfig(StepDataConfig):
    """What is learned of solutions whose steps, or outcomes, are labelled."""

    group: ClassVar[str] = "labelled steps"

    context_signs: Annotated[Literal["none", "plus", "true"], OF_LABELS] = "none"
    """What stands in the context of a step: the solution up to its end; or, each step being a turn of the user, also an answer
    to every step before it: plus whatever it is labelled, or the true one, which gives the next label away."""
    label_ce: Annotated[Literal["restricted", "full"], ON_LABELS, WITHOUT_LABELS] = "restricted"
    """Cross-entropy of the labels alone, or among all tokens, which trains the whole head of the language model."""
    stop_at_first_error: Annotated[bool, OF_STEPS] = False
    """Leave out the labels after each solution's first wrong step, in training."""
    step_average: Annotated[Literal["steps", "solutions"], OF_STEPS] = "steps"
    """The loss is the mean over all labelled steps of an optimiser step, or over solutions of the means over theirs."""
