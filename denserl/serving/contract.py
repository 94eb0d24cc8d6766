"""What requests hold and what they are answered with: this package's own contract, and OpenRLHF's of remote reward models.

OpenRLHF's client (openrlhf/utils/agent.py of 0.11) posts `query`, `prompts` and `labels`, lists of one length of texts that the
chat template has written, and reads `rewards`, `scores` and `extra_logs`, whose numbers go into tensors one row at a time.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import pydantic
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import expit

from denserl.data.bad_rows import BadRow
from denserl.data.messages import as_messages
from denserl.serving.rows import Rendered, Row, Scored
from denserl.terminal import visible

LONGEST_REASON = 500  # characters; a reason may quote what came


class Refused(Exception):
    """A request that is answered with an error. status: of HTTP."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status
        self.reason = visible(reason[:LONGEST_REASON], kept="") + ("..." if len(reason) > LONGEST_REASON else "")


Prompt = str | list[dict[str, Any]]
Labels = Annotated[list[Any] | None, Field(description="right answers, for a function that is given them; empty: none")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RewardsRequest(_Request):
    """Responses to prompts, in the same order."""

    prompts: Annotated[list[Prompt], Field(description="a user's turn as text, or messages with role and content")]
    responses: Annotated[list[str], Field(description="texts, without what closes the turn")]
    ended: Annotated[list[bool] | None, Field(description="false: cut off before its end; default: all ended")] = None
    labels: Labels = None

    def rows(self, detailed: bool = True) -> list[Row]:
        """BadRow for lists of other lengths, and for prompts that are no messages."""
        count = _count(prompts=self.prompts, responses=self.responses, ended=self.ended, labels=self.labels)
        columns = (self.prompts, self.responses, self.ended or [True] * count, _told_labels(self.labels, count))
        return [
            Row(as_messages(prompt, f"prompts[{i}]"), response, ended, label, detailed)
            for i, (prompt, response, ended, label) in enumerate(zip(*columns, strict=True))
        ]


class QueryRequest(_Request):
    """OpenRLHF's request, with `responses` and `messages` besides, as train-ppo sends it."""

    query: Annotated[list[str], Field(description="prompt and response, as a chat template writes them")]
    prompts: Annotated[list[str] | None, Field(description="what each query begins with")] = None
    labels: Labels = None
    responses: Annotated[list[str] | None, Field(description="the responses as texts")] = None
    messages: Annotated[list[Prompt] | None, Field(description="the prompts as messages")] = None

    def rows(self, detailed: bool = True) -> list[Rendered]:
        """A response is what follows the prompt in the query. BadRow as above."""
        if self.prompts is None:
            raise BadRow("'prompts' is missing: where a response begins in 'query' is not known without it")
        columns = {"prompts": self.prompts, "labels": self.labels, "responses": self.responses, "messages": self.messages}
        count = _count(query=self.query, **columns)
        responses, messages = self.responses or [None] * count, self.messages or [None] * count
        rows = zip(self.query, self.prompts, responses, messages, _told_labels(self.labels, count), strict=True)
        return [
            Rendered(prompt, query, response, None if talk is None else as_messages(talk, f"messages[{i}]"), label, detailed)
            for i, (query, prompt, response, talk, label) in enumerate(rows)
        ]


AnyRequest = RewardsRequest | QueryRequest


def parse(kind: type[AnyRequest], body: bytes) -> AnyRequest:
    """The request that a body holds. Refused where it is no JSON (400), or not as the contract has it (422)."""
    try:
        found = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:  # too deep, too long a number, half a character, NaN
        raise Refused(400, f"the body is no JSON: {error}") from error
    try:
        return kind.model_validate(found)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f" {part}" for part in first["loc"]).strip()
        raise Refused(422, f"{place or 'the body'}: {first['msg']}") from error


def answer_rewards(scored: Sequence[Scored], logits: bool) -> dict[str, Any]:
    """For each response its score, those of its segments, and those of its tokens where the source scores tokens."""
    return {"rewards": [_told(row, logits) for row in scored]}


def answer_query(scored: Sequence[Scored], by_segment: bool) -> dict[str, Any]:
    """OpenRLHF's answer: a number for each response, or by segment a list of [end character, number] where there are some.

    By segment there are `changes` besides: for each response [end character, what the segment changes in the score so far].
    """
    scores = [row.score for row in scored]
    lists = [row.segments if by_segment and row.segments is not None else row.score for row in scored]
    told: dict[str, Any] = {"rewards": lists, "scores": scores}
    if by_segment:
        told["changes"] = [_changes(row) for row in scored]
    logs = {name: [float(getattr(row, name)) for row in scored] for name in ("segment_count", "prompt_cut", "response_cut")}
    return {**told, "extra_logs": logs}


def _told(row: Scored, logits: bool) -> dict[str, Any]:
    segments = row.segments if row.segments is not None else [(len(row.text), row.score)]
    told: dict[str, Any] = {
        "score": row.score,
        "segment_ends": [end for end, _ in segments],
        "segment_scores": [score for _, score in segments],
        "segment_changes": [change for _, change in _changes(row)],
        "text": row.text,
        "prompt_cut": row.prompt_cut,
        "response_cut": row.response_cut,
    }
    if logits:
        told |= {"segment_probabilities": [float(expit(score)) for _, score in segments]}
    if row.tokens is not None:
        texts, ends, scores = zip(*row.tokens, strict=True)
        told |= {"tokens": texts, "token_ends": ends, "token_rewards": scores}
    return told


def _changes(row: Scored) -> list[tuple[int, float]]:
    """Where each segment ends, and what it changes in the score so far."""
    if row.segments is None:
        return [(len(row.text), row.score)]
    return [(end, change) for (end, _), change in zip(row.segments, row.changes, strict=True)]


def _told_labels(labels: list[Any] | None, count: int) -> list[Any]:
    """The labels; None for each where none of them says anything, as in requests of clients that have none."""
    return labels if labels is not None and any(label not in ("", None) for label in labels) else [None] * count


def _count(**columns: Sequence | None) -> int:
    """How many rows the columns have. BadRow unless it is the same number in all that are given."""
    counts = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(counts.values())) > 1:
        raise BadRow(f"lists of one length are wanted, and there are {counts}")
    return next(iter(counts.values()))
