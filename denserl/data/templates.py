"""Chat templates as texts: read from a file, with a system prompt and a date of their own, which are saved with them.

Both stand in the template itself, so that every library renders what the model was trained on. What a template writes is
found in rendering.py and chat.py.
"""

import datetime
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denserl.errors import UserError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Under these keys a tokenizer's config keeps what stands in its template.
SYSTEM_PROMPT, DATE = "system_prompt", "template_date"
# What templates call for the date, and the codes of its format.
_CLOCK = "strftime_now"
_CODES = "-d -m -H -I -M -S -y -j e a A w d b B m y Y H I p M S f j U W V G u D F T R c x X h n t".split()


@functools.cache
def today() -> str:
    """The day, as YYYY-MM-DD, on which this process first asked for it."""
    return datetime.date.today().isoformat()


def set_template(
    tokenizer: "PreTrainedTokenizerBase",
    file: str | None = None,
    text: str | None = None,
    system_prompt: str | None = None,
    date: str | None = None,
    default_date: str | None = None,
    default_prompt: str | None = None,
) -> None:
    """Give a tokenizer the template of a file, a system prompt before rows without one, and the one date that it writes.

    What is not given stays as it was saved with the tokenizer, and what was not saved is the default; a date that the template
    would read off the clock is else today's.

    Args:
        text: a template, in the place of a file's.
        system_prompt, default_prompt: empty for none. date, default_date: YYYY-MM-DD.

    Raises:
        UserError: the file holds no template, the date is none, or the template writes no date.
    """
    kept, texts = tokenizer.init_kwargs, _texts(tokenizer)
    if file is not None or text is not None:
        texts = {"default": _read(file) if text is None else text}
        for key in (SYSTEM_PROMPT, DATE):
            kept.pop(key, None)

    def taken_off(key: str, opening: Callable[[str], str]) -> str | None:
        """What is saved under the key, taken off the templates that it opens; None where it opens none."""
        saved = kept.get(key)
        if not isinstance(saved, str) or not any(text.startswith(opening(saved)) for text in texts.values()):
            return None
        texts.update({name: text.removeprefix(opening(saved)) for name, text in texts.items()})
        return saved

    day, prompt = taken_off(DATE, _dated), taken_off(SYSTEM_PROMPT, _instructed)
    prompt = next((each for each in (system_prompt, prompt, default_prompt) if each is not None), None)
    reads_clock = any(_reads_clock(text) for text in texts.values())
    require(
        date is None or reads_clock,
        f"`template_date` {date} has no effect: the chat template writes no date, or has one of its own",
        "leave `template_date` out",
    )
    if prompt is not None:
        texts.update({name: (_instructed(prompt) if prompt else "") + text for name, text in texts.items()})
        kept[SYSTEM_PROMPT] = prompt or None
    if reads_clock:
        day = _day(date) if date else day or default_date or today()
        texts.update({name: (_dated(day) if _reads_clock(text) else "") + text for name, text in texts.items()})
        kept[DATE] = day
    tokenizer.chat_template = texts if set(texts) - {"default"} else texts.get("default")


def template_settings(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """The system prompt and the date that stand in a tokenizer's template; None for none."""
    return {key: tokenizer.init_kwargs.get(key) for key in (SYSTEM_PROMPT, DATE)}


def fingerprint(file: str | None) -> str | None:
    """A hash of the template that a file holds; None for no file."""
    return None if file is None else hashlib.sha256(_read(file).encode()).hexdigest()[:16]


def _instructed(prompt: str) -> str:
    """What opens a template that puts a system message before conversations that have none, in the form that they have."""
    text = json.dumps(prompt, ensure_ascii=False)
    return (
        "{%- if messages and messages[0]['role'] not in ['system', 'developer'] %}"
        "{%- set messages = [{'role': 'system', 'content': "
        f"{text} if messages[0]['content'] is string else [{{'type': 'text', 'text': {text}}}]"
        "}] + messages %}"
        "{%- endif +%}"
    )


def _dated(day: str) -> str:
    """What opens a template whose clock stands still."""
    moment = datetime.datetime.fromisoformat(day)
    known = {f"%{code}": moment.strftime(f"%{code}") for code in _CODES}
    steps = "".join(f" | replace({json.dumps(code)}, {json.dumps(text)})" for code, text in known.items())
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{steps} }}}}{{%- endmacro +%}}"


def _reads_clock(template: str) -> bool:
    return _CLOCK in template and f"macro {_CLOCK}" not in template


def _day(date: str) -> str:
    try:
        return datetime.date.fromisoformat(date).isoformat()
    except ValueError as error:
        raise UserError(f"`template_date` is {date!r}; expected a day as YYYY-MM-DD", "correct `template_date`") from error


def _read(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`chat_template` {path} cannot be read: {error}", "give a file that holds a Jinja template") from error
    require(text.strip(), f"`chat_template` {path} is empty", "give a file that holds a Jinja template")
    return text


def _texts(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """The tokenizer's templates by name; a single one is the default."""
    own = tokenizer.chat_template
    return dict(own) if isinstance(own, dict) else {"default": own} if own else {}
