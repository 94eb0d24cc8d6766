"""Options of answering a suite's questions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from denserl.config import FIRST, INPUT, MODEL, Only, RunConfig
from denserl.errors import require
from denserl.rollouts.config import DecodingConfig

SuiteName = Literal["alpacaeval", "arenahard", "mtbench", "prompts"]
LONGEST = {"alpacaeval": 2048, "arenahard": 4096, "mtbench": 1024, "prompts": 1024}  # new tokens of an answer
# Of sampling. MT-Bench's is that of FastChat (fastchat/llm_judge), by category.
TEMPERATURES = {"alpacaeval": 0.7, "arenahard": 0.0, "mtbench": 0.7, "prompts": 0.7}
BY_CATEGORY = {
    **dict.fromkeys(("stem", "humanities"), 0.1),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
}


@dataclass(kw_only=True)
class AnswerConfig(DecodingConfig, RunConfig):
    """Let a policy answer the questions of a suite, into files that the suite's own program reads.

    The same command goes on where it was ended, and adds samples where more are asked for.
    """

    group: ClassVar[str] = "sampling"

    suite: Annotated[SuiteName, FIRST]
    """What is answered: alpacaeval, arenahard, mtbench (both turns), or prompts of one's own."""
    model: Annotated[str, MODEL, FIRST]
    """Policy that answers: folder or hub name."""
    questions: Annotated[str | None, INPUT, FIRST] = None
    """File of the suite's questions, folder with its question.jsonl, or hub name (NAME or NAME:CONFIG). Answers to alpacaeval
    and prompts hold their questions, and serve too. Default: of alpacaeval, where they are published."""
    samples: Annotated[int, FIRST, Ge(1)] = 1
    """Answers to each question. The first ones are in the file NAME, the others in NAME-s1, NAME-s2, ...; of prompts all are
    in one."""
    name: str | None = None
    """What the policy is called in its files, which are called so too; default: the name of its folder, or on the hub."""
    shape: Annotated[Literal["newer", "v0.1"], Only("but on arenahard", lambda c: c.suite == "arenahard")] = "newer"
    """Of Arena-Hard's files: that of the repository since April 2025, or of version 0.1."""
    max_prompt_length: Annotated[int, Ge(1)] = 4096
    """A longer prompt loses tokens on its left, which a warning counts."""
    max_new_tokens: Annotated[int | None, FIRST, Ge(1)] = None
    """Longest answer of a turn; default: 2048 on alpacaeval, 4096 on arenahard, 1024 on mtbench and prompts."""
    temperature: Annotated[float | None, Ge(0)] = None
    """Sampling temperature; below 0.0001 the most likely tokens are taken. Default: 0.7 on alpacaeval and prompts, 0 on
    arenahard; on mtbench 0 for extraction, math, coding and reasoning, 0.1 for stem and humanities, else 0.7."""

    def longest(self) -> int:
        """Tokens of the longest answer."""
        return self.max_new_tokens or LONGEST[self.suite]

    def temperature_of(self, category: str) -> float:
        """The temperature at which questions of a category are answered."""
        if self.temperature is not None:
            return self.temperature
        return BY_CATEGORY.get(category, TEMPERATURES[self.suite]) if self.suite == "mtbench" else TEMPERATURES[self.suite]

    def called(self) -> str:
        """What the policy is called."""
        return self.name or (Path(self.model).resolve().name if Path(self.model).exists() else self.model.rpartition("/")[2])

    def check(self) -> None:
        super().check()
        name = self.called()
        fix = "give a `name` of letters, digits, dots, dashes and underscores"
        sound = name and not name.startswith(".") and Path(name).name == name and name.isprintable()
        require(sound, f"the policy is called {name!r}, which no file can be", fix)
