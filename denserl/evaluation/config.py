"""Options of best-of-n and of the suites."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, INPUT, MODEL, Config, Only, RunConfig
from denserl.data.config import DataConfig
from denserl.errors import require
from denserl.judging.config import JudgeConfig, is_url
from denserl.plugins import load_named
from denserl.rewards.config import ReadConfig, RewardModelConfig, ScorerConfig, ScoringConfig
from denserl.rollouts.config import SamplingConfig

ON_PROCESSBENCH = Only("but on processbench", lambda c: c.suite == "processbench")
ON_BON_ANSWERS = Only("but on bon_answers", lambda c: c.suite == "bon_answers")
RATED = ("rewardbench2", "bon_answers")  # suites of which a judge compares no answers
WORDS = {"length", "random"}  # in the place of reward models
# What only reward models have a use for.
OF_MODELS = (
    *("sft_model", "entropy_threshold", "segmenter", "read_at", "max_length", "score_tokens"),
    *("step_separator", "step_pattern", "max_steps", "skip_cut_step", "aggregate", "rank"),
)
OF_TEMPLATES = ("chat_template", "system_prompt", "template_date", "revision")
OF_PROXIES = (
    "sft_model",
    "gold_reward_model",
    "aggregate",
    "rank",
    "entropy_threshold",
    "segmenter",
    "read_at",
    "max_length",
    "score_tokens",
)


@dataclass(kw_only=True)
class SolutionConfig(Config):
    """How the steps of a solution make one score."""

    group: ClassVar[str] = "steps"

    aggregate: Literal["min", "mean", "last", "prod", "mean_logit"] | None = None
    """Score of a response by a model of steps: of the chances of its steps, or their mean logit. Default: as is stored."""


@dataclass(kw_only=True)
class RankConfig(Config):
    """How a model that compares responses two by two ranks several."""

    group: ClassVar[str] = "reward"

    rank: Literal["win_rate", "logit", "wins", "bt", "knockout"] | None = None
    """Rule by which a model that compares responses ranks more than two: mean probability of being better than the others
    (win_rate, the default) or its log-odds (logit), number of wins, Bradley-Terry scores (bt), or the winner of one meeting
    after the other (knockout)."""


@dataclass(kw_only=True)
class IntervalConfig(Config):
    """How intervals are found."""

    group: ClassVar[str] = "suite"

    bootstrap: Annotated[int, Ge(1)] = 1000
    """Times that questions are drawn anew, with all that was judged of them, for the 95 % intervals."""


@dataclass(kw_only=True)
class SuiteConfig(SolutionConfig, RankConfig, IntervalConfig):
    """What can be chosen in one suite or another."""

    group: ClassVar[str] = "suite"

    as_is: Annotated[bool, Only("but on pairs: published suites are always judged whole", lambda c: c.suite == "pairs")] = False
    """Judge pairs of equal answers, as ties, and empty answers too, which would be bad rows."""
    paper_compat: Annotated[bool, Only("but on mtbench", lambda c: c.suite == "mtbench")] = False
    """MT-Bench as in GRM's evaluation: a tie is a vote for the second model, and both turns are always judged."""
    step_threshold: Annotated[
        float,
        Interval(gt=0, lt=1),
        ON_PROCESSBENCH,
        Only("with `threshold_from`, which chooses it", lambda c: c.threshold_from is None),
        Only("on processbench, which judges each step", lambda c: c.suite != "processbench", of=("aggregate",)),
    ] = 0.5
    """Chance of being right below which a step is held for wrong."""
    threshold_from: Annotated[str | None, ON_PROCESSBENCH] = None
    """Split on which that threshold is chosen, for the highest F1 there, e.g. gsm8k."""
    choose: Annotated[Literal["best", "majority", "weighted"], ON_BON_ANSWERS] = "best"
    """Which answer counts: that of the highest score, of the commonest final answer, of that with the largest sum of scores."""
    final_answer: Annotated[str | None, ON_BON_ANSWERS] = None
    r"""module:function of a text -> its final answer, or None; default: as in \boxed{}, after ####, after "the answer is"."""
    strength_from: Annotated[
        str | None, INPUT, Only("but on pairs, in whose order the file is", lambda c: c.suite == "pairs")
    ] = None
    """Accuracy by strength of preference too: a file, or the output folder, of denserl strength for these pairs, or published
    annotations of that shape (docs/noisy_labels.md)."""

    def of_suite(self, name: str) -> dict[str, Any]:
        """The fields of a suite that options set."""
        if name == "processbench":
            return {"threshold": self.step_threshold, "threshold_from": self.threshold_from}
        own = {"final_answer": load_named(self.final_answer, "final_answer")} if self.final_answer else {}
        return {"choose": self.choose, **own} if name == "bon_answers" else {}


@dataclass(kw_only=True)
class JudgedConfig(JudgeConfig, SuiteConfig, ReadConfig, ScoringConfig):
    """What judges the answers of a suite: reward models, a word, or a judge."""

    group: ClassVar[str] = "suite"

    scorer: Annotated[
        list[str] | None,
        MODEL,
        FIRST,
        Only("with `scorer` length or random", lambda c: not c.words_of_scorer(), of=(*OF_MODELS, *OF_TEMPLATES)),
        Only("with `judge`, which is no reward model", lambda c: not c.judge, of=OF_MODELS),
        Only("where a server judges", lambda c: c.has_models(), of=OF_TEMPLATES),
        Only("on processbench, which judges steps", lambda c: c.suite != "processbench", of=("judge",)),
        Only("where a judge rates each answer", lambda c: c.suite not in RATED, of=("judge_orders",)),
    ] = None
    """Reward model: folder or hub name; several are an ensemble. Or a word: length (in characters), random. In its place a
    `judge` may be asked."""
    sft_model: Annotated[str | None, MODEL] = None
    """Model whose entropies cut the responses; default: the one in the reward model's config."""

    def members(self) -> list[str]:
        return self.scorer or []

    def has_models(self) -> bool:
        """Whether something is judged by a model that is read here, or by a word."""
        return not self.judge or not all(map(is_url, self.judge))

    def words_of_scorer(self) -> set[str]:
        """The words among the scorers."""
        return WORDS & {name.partition("@")[0] for name in self.scorer or []}

    def check(self) -> None:
        fix = "give a reward model, length or random as `scorer`, or a `judge`"
        require(self.scorer or self.judge, "neither `scorer` nor `judge` is given", fix)
        require(not (self.scorer and self.judge), "both `scorer` and `judge` are given", "leave one of them out")
        super().check()


@dataclass(kw_only=True)
class MeasureConfig(SolutionConfig, ReadConfig, ScorerConfig, DataConfig, RunConfig):
    """Measure how strong each preference is: mean and spread of the differences of scores that several reward models give it.

    Scores are kept in the output folder, so that the same command, or one with further models, goes on where it was ended.
    """

    group: ClassVar[str] = "strength"

    reward_model: Annotated[list[str], MODEL, FIRST]
    """Reward models of any level and head: folders or hub names, or the folder of several that were trained as members, each
    of which scores the pairs that it has not seen."""
    sft_model: Annotated[str | None, MODEL] = None
    """Model whose entropies cut the responses; default: the one in each reward model's config."""


@dataclass(kw_only=True)
class BestOfNConfig(SolutionConfig, RankConfig, SamplingConfig, RewardModelConfig, ReadConfig, ScoringConfig, DataConfig):
    """Sample responses to prompts, choose the best of n by a proxy reward, and see what they are worth, for every n at once."""

    group: ClassVar[str] = "sampling"

    model: Annotated[str, MODEL, FIRST]
    """Policy to sample from: folder or hub name."""
    reward_model: Annotated[
        list[str] | None, MODEL, FIRST, Only("without `reward_model`", lambda c: c.reward_model is not None, OF_PROXIES)
    ] = None
    """Trained reward model that chooses: folder or hub name. Several are an ensemble, each standardised by its own mean and
    std. Without it, continue_steps labels steps, or without any reward samples are drawn and no more."""
    gold_reward_model: Annotated[str | None, MODEL, FIRST] = None
    """Reward model that says what responses are worth: folder or hub name, of any tokenizer."""
    true_reward: Annotated[str | None, FIRST] = None
    """module:function of (prompts, responses) -> rewards that say it instead."""
    label_column: Annotated[str | None, Only("without `true_reward`", lambda c: c.true_reward)] = None
    """Column of the prompts' rows that says the right answer; `true_reward` is given its texts as a third argument."""
    sft_model: Annotated[str | None, MODEL] = None
    """Model whose entropies cut the responses for `reward_model`; default: the one in its config."""
    samples: Annotated[int, FIRST, Ge(1)] = 16
    """Responses to each prompt; n goes up to this."""
    samples_file: str | None = None
    """Where samples are kept, and taken from if they are there; default: samples.jsonl in the output folder."""
    resume: bool = False
    """Add the samples that are missing to a file that holds some."""
    temperature: Annotated[float, Gt(0)] = 0.7
    """Sampling temperature."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 0.95
    """Nucleus sampling."""
    continue_steps: Annotated[int, FIRST, Ge(0)] = 0
    """Complete each sample so many times from the end of each of its steps, and write its steps to steps.jsonl, each with the
    share of completions that true_reward calls right (docs/step_rows.md)."""
    step_labels: Annotated[Literal["soft", "hard"], Only("without `continue_steps`", lambda c: c.continue_steps)] = "soft"
    """soft: that share; hard: 1 where at least one completion is right, else 0."""
