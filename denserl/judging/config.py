"""Options of judges that are asked in words: which ones, how, how often, and where their answers are kept."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, INPUT, MODEL, RESUMABLE, DeviceConfig, Only
from denserl.errors import require
from denserl.rewards.config import check_url

STORE = "judge_answers.jsonl"  # in the output folder
WITH_JUDGE = Only("without `judge`", lambda c: c.judge)
OF_SERVERS = Only("where no `judge` is the address of a server", lambda c: any(map(is_url, c.judge or [])))
OF_TEXTS = Only("with `judge_verdict` logprob, which one token gives", lambda c: c.judge_verdict != "logprob")
# What a judge is asked for, a verdict in words or the log-probabilities of one.
VerdictKind = Literal["text", "logprob"]


def is_url(judge: str) -> bool:
    """Whether a judge is named by the address of a server, and not as a folder or hub name."""
    return re.match(r"https?:", judge, re.IGNORECASE) is not None


@dataclass(kw_only=True)
class AskingConfig(DeviceConfig):
    """Judges, and how they are asked. In which orders is each command's own choice; those of this machine run as any model."""

    group: ClassVar[str] = "judge"

    judge: Annotated[list[str] | None, MODEL, FIRST, RESUMABLE] = None
    """Language model that judges: folder or hub name, or the address of an OpenAI-compatible server (http://HOST:PORT/v1).
    Several vote."""
    judge_model: Annotated[list[str] | None, WITH_JUDGE, OF_SERVERS] = None
    """Model that a server is asked for; of several servers one each. Default: the one that it serves."""
    judge_template: Annotated[str | None, INPUT, WITH_JUDGE] = None
    """What the judge is shown: the name of a template that comes with denserl, or a file (docs/judging.md). Default: the
    suite's own."""
    judge_votes: Annotated[int, Ge(1), WITH_JUDGE, OF_TEXTS] = 1
    """Answers that each judge gives to each question, of which the majority decides; no more are asked once it is certain."""
    judge_verdict: Annotated[VerdictKind, WITH_JUDGE] = "text"
    """What is read: the verdict in the judge's text, or of one token the log-probabilities of either verdict."""
    judge_temperature: Annotated[float | None, Interval(ge=0, le=2), WITH_JUDGE, OF_TEXTS] = None
    """Sampling temperature of the judge; 0 takes the most likely token. Default: the suite's own, else 0, or 1 with several
    votes."""
    judge_max_new_tokens: Annotated[int | None, Ge(1), WITH_JUDGE, OF_TEXTS] = None
    """Longest answer of the judge, in tokens. Default: the suite's own, else 2048."""
    judge_store: Annotated[str | None, RESUMABLE, WITH_JUDGE] = None
    """File in which the judge's answers are kept and found again, also by other commands. Default: judge_answers.jsonl in the
    output folder."""
    judge_limit: Annotated[int | None, Ge(0), RESUMABLE, WITH_JUDGE] = None
    """Ask nothing where more answers than this are missing in the store."""
    judge_concurrency: Annotated[int, Ge(1), RESUMABLE, WITH_JUDGE] = 8
    """Answers under way at a time, of each judge."""
    judge_key_env: Annotated[str | None, RESUMABLE, WITH_JUDGE, OF_SERVERS] = None
    """Environment variable with the key that servers are shown (Authorization: Bearer); it is written nowhere."""
    judge_timeout: Annotated[float, Gt(0), RESUMABLE, WITH_JUDGE, OF_SERVERS] = 600.0
    """Seconds that an answer of a server may take."""
    judge_tries: Annotated[int, Ge(1), RESUMABLE, WITH_JUDGE, OF_SERVERS] = 8
    """Tries of a request to a server that is away or busy, with growing waits, within tries x timeout seconds in all."""

    def check(self) -> None:
        super().check()
        servers = [judge for judge in self.judge or [] if is_url(judge)]
        for url in servers:
            check_url("judge", url, "judge_key_env")
        names = self.judge_model or []
        found = f"`judge_model` has {len(names)} names for {len(servers)} servers"
        require(len(names) in (0, len(servers)), found, "give one for each server, in their order, or none")
        one = self.judge_votes > 1 and self.judge_temperature == 0
        require(not one, "`judge_votes` has no effect with `judge_temperature` 0: all are equal", "leave one of them out")


@dataclass(kw_only=True)
class JudgeConfig(AskingConfig):
    """Judges of two answers."""

    group: ClassVar[str] = "judge"

    judge_orders: Annotated[Literal["both", "one"], WITH_JUDGE] = "both"
    """Show two answers in both orders, and call a judge's change of mind a tie, or in one, drawn once for each question."""
