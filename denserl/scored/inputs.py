"""What is scored: texts that options give, rows of files, or standard input."""

import logging
import sys
from collections.abc import Sequence

from denserl.data.bad_rows import BadRow
from denserl.data.columns import parse_columns
from denserl.data.conversations import Conversation, as_conversation, load_conversations, of_responses
from denserl.data.messages import as_messages
from denserl.data.responses import Messages
from denserl.errors import UserError, require
from denserl.scored.config import TextsConfig

log = logging.getLogger(__name__)


def read_conversations(config: TextsConfig) -> list[Conversation]:
    """What the config names. UserError for what cannot be read, and for standard input that is a terminal, or empty."""
    if config.data:
        columns = parse_columns(config.columns)
        found = load_conversations(
            config.data, label=config.label_column, split=config.split, limit=config.limit, columns=columns
        )
        require(found, f"{', '.join(config.data)}: there are no rows to score", "give others with `data`")
        if len(found) == config.limit:
            log.info("the first %d rows are scored (`limit`)", config.limit)
        return found
    responses = config.response if config.response is not None else [_standard_input()]
    return [conversation_of(config.prompt, responses, config.label)]


def conversation_of(prompt: str | Messages | None, responses: Sequence[str | dict], label: str | None = None) -> Conversation:
    """A prompt (a user's turn, or messages; None: none, or as a single response has it that is a chat) and its responses.

    UserError for what are no messages.
    """
    try:
        if prompt is None and len(responses) == 1 and isinstance(responses[0], str):
            # A text may be a chat written as JSON.
            found = as_conversation({"text": responses[0]}) if responses[0].strip() else of_responses([], list(responses))
            return found._replace(label=label)
        messages = as_messages(prompt, "prompt") if prompt else []
        return of_responses(messages, list(responses), label=label)
    except BadRow as error:
        raise UserError(str(error), error.fix or "correct it") from error


def _standard_input() -> str:
    fix = "give a text with `response`, rows with `data`, or a text at standard input"
    require(sys.stdin is not None and not sys.stdin.isatty(), "there is nothing to score", fix)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is no UTF-8 text ({error})", "write it as UTF-8") from error
    require(text.strip(), "standard input is empty", fix)
    return text.removesuffix("\n")
