"""Options by which policies are judged."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from denserl.config import FIRST, INPUT, MODEL, Only
from denserl.errors import require
from denserl.evaluation.config import IntervalConfig, SolutionConfig
from denserl.judging.config import AskingConfig, VerdictKind, is_url
from denserl.rewards.config import ReadConfig, ScoringConfig

ON_ALPACAEVAL = Only("but on alpacaeval", lambda c: c.suite == "alpacaeval")
ON_ARENAHARD = Only("but on arenahard", lambda c: c.suite == "arenahard")
ON_MTBENCH = Only("but on mtbench", lambda c: c.suite == "mtbench")
WITH_JUDGE = Only("without `judge`", lambda c: c.judge)
# What reward models alone are read by.
OF_REWARD_MODELS = Only(
    "without `judge_reward_model`",
    lambda c: c.judge_reward_model,
    of=(
        *("hard", "sft_model", "entropy_threshold", "segmenter", "read_at", "max_length", "score_tokens"),
        *("step_separator", "step_pattern", "max_steps", "skip_cut_step", "aggregate"),
    ),
)
OF_MODELS = Only(
    "where no model of this machine judges",
    lambda c: c.judge_reward_model or not all(map(is_url, c.judge or [])),
    of=("chat_template", "system_prompt", "template_date", "attention", "trust_remote_code"),
)


@dataclass(kw_only=True)
class PolicyJudgingConfig(AskingConfig, SolutionConfig, ReadConfig, ScoringConfig, IntervalConfig):
    """Judge the answers of policies as the published suites do: win rates against a baseline, or grades, with intervals."""

    group: ClassVar[str] = "suite"

    suite: Literal["alpacaeval", "arenahard", "mtbench", "prompts"]
    answers: list[str]
    baseline: Annotated[str | None, INPUT, FIRST] = None
    """Answers that those of the policies are held against: a file, or the folder of denserl answer. MT-Bench's single grades
    need none."""
    questions: Annotated[str | None, INPUT, FIRST] = None
    """File, folder or hub name (NAME or NAME:CONFIG) of the questions; default: those of the baseline's file, where it holds
    them (alpacaeval, prompts)."""
    references: Annotated[str | None, INPUT, ON_MTBENCH] = None
    """Right answers that the judge is shown, in the shape of a policy's answers; default: those in the questions' rows."""
    annotations: Annotated[list[str] | None, INPUT, FIRST] = None
    """Judgements that were given before, in the original's files, in the place of a judge."""
    judge_reward_model: Annotated[list[str] | None, MODEL, FIRST, OF_REWARD_MODELS, OF_MODELS] = None
    """Reward model in the place of a judge, folder or hub name: a stand-in, whose numbers have names of their own. Several are
    an ensemble."""
    hard: bool = False
    """Of a reward model's two scores only the higher one counts, as a win; default: how sure it is, the sigmoid of their
    difference."""
    sft_model: Annotated[str | None, MODEL] = None
    """Model whose entropies cut the responses for a reward model; default: the one in its config."""
    judge_verdict: VerdictKind | None = None
    """What is read: the verdict in the judge's text, or of one token the log-probabilities of either verdict. Default: logprob
    on alpacaeval, else text. On alpacaeval, text gives what is called an unweighted win rate."""
    judge_orders: Annotated[Literal["suite", "both"], WITH_JUDGE, ON_ALPACAEVAL] = "suite"
    """Show two answers in the order that the suite draws for each question, or in both; the other suites always do the
    latter."""
    mode: Annotated[Literal["single", "pair"] | None, ON_MTBENCH] = None
    """MT-Bench's grades of each answer (single, the default), or comparisons with a baseline (pair)."""
    parse: Annotated[Literal["original", "strict"], WITH_JUDGE] = "original"
    """How a judge's text is read: as the suite's own program does, or by the last mark alone (docs/judging.md). The other way
    is told beside it, and on how many verdicts they differ."""
    style_control: Annotated[bool, ON_ARENAHARD] = False
    """Arena-Hard's numbers with length and markup of answers taken out, too."""
    shape: Annotated[Literal["newer", "v0.1"], ON_ARENAHARD] = "newer"
    """Shape of the judgments that are written."""
    lc_files: Annotated[str | None, INPUT, ON_ALPACAEVAL] = None
    """Folder with AlpacaEval's df_gamed.csv, from which win rates at equal lengths are made as published; without it they are
    made in a way of our own (docs/judging.md)."""
    allow_missing: bool = False
    """Judge incomplete answers; a second number then counts the missing ones as lost."""

    def __post_init__(self):
        super().__post_init__()
        if self.judge_verdict is None and self.judge:
            self.judge_verdict = "logprob" if self.suite == "alpacaeval" else "text"

    @property
    def judged_mode(self) -> Literal["single", "pair"]:
        """MT-Bench grades single answers, where nothing else is said; the others compare."""
        return self.mode or ("single" if self.suite == "mtbench" else "pair")

    def members(self) -> list[str]:
        return self.judge_reward_model or []

    def check(self) -> None:
        require(self.answers, "no file of answers is given", "name the policies' answers behind the suite")
        ways = [name for name in ("judge", "annotations", "judge_reward_model") if getattr(self, name)]
        found = f"{', '.join(f'`{name}`' for name in ways) or 'nothing'} says who judges"
        require(len(ways) == 1, found, "give one of `judge`, `annotations` and `judge_reward_model`")
        super().check()
        self._check_verdict()
        pair = self.judged_mode == "pair"
        require(self.baseline or not pair, "`baseline` is missing: the answers are compared with it", "give a file of answers")
        require(pair or not self.baseline, "`baseline` has no effect on single grades", "leave it out, or give `mode` pair")
        single = "`judge_reward_model` compares answers, and `mode` is single"
        require(pair or not self.judge_reward_model, single, "give `mode` pair, and `baseline`")
        wants = self.questions or self.suite in ("alpacaeval", "prompts")
        require(wants, f"`questions` is missing: answers to {self.suite} do not hold them", "give the suite's question.jsonl")
        require(self.suite != "prompts" or not self.annotations, "`annotations`: prompts has none", "give `judge`")

    def _check_verdict(self) -> None:
        logprob = self.judge_verdict == "logprob"
        fix = "leave `judge_verdict` out"
        require(self.judge or self.judge_verdict is None, "`judge_verdict` has no effect without `judge`", fix)
        possible = self.suite in ("alpacaeval", "prompts")
        require(possible or not logprob, f"`judge_verdict` logprob: {self.suite} reads texts", fix)
