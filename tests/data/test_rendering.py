"""Conversations given to a template in the form it takes, and what it would leave out refused by name."""

import json

import pytest
from templates import CHATML, QWEN25, build_tokenizer

from denserl.data.chat import encode_prompt, encode_response
from denserl.data.rendering import Talk, render
from denserl.data.schemas import BadRow

USER, SYSTEM = {"role": "user", "content": "Hello there"}, {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"at": "sea"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"role": "tool", "tool_call_id": "c1", "content": 'A "sea".'}
LOOP = "{% for message in messages %}"
KNOWN_ROLES = CHATML.replace(LOOP, LOOP.replace("%}", "if message['role'] in ('user', 'assistant') %}"))
ELSE_USER = CHATML.replace("message['role'] +", "('assistant' if message['role'] == 'assistant' else 'user') +")
# As Mistral's third: the system message is only written into a user turn that is the last of all.
ONLY_LAST = CHATML.replace(LOOP, LOOP.replace("%}", "if message['role'] != 'system' %}")).replace(
    "message['content'] +",
    "(messages[0]['content'] + ' ' if loop.last and message['role'] == 'user' and messages[0]['role'] == 'system' else '')"
    " + message['content'] +",
)
SHOWS_CALLS = CHATML.replace(
    "message['content'] +",
    "message['content'] + ('' if not message.tool_calls else message.tool_calls[0]['function'] | tojson) +",
)
REASONS = CHATML.replace(
    "message['content'] +",
    "('<think>' + message.reasoning_content + '</think>' if loop.last and message.reasoning_content else '')"
    " + message['content'] +",
)
STRIPS = CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +")
STRIPS_PAST = CHATML.replace(
    "message['content'] +", "(message['content'] if loop.last else message['content'].split('</think>')[-1]) +"
)
JSON_RESULTS = SHOWS_CALLS.replace(
    "message['content'] +", "(message['content'] | tojson if message['role'] == 'tool' else message['content']) +"
)
TRIMS = CHATML.replace("message['content'] +", "message['content'] | trim +")
PARTS = CHATML.replace(
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}",
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}",
)


NO_PAST = CHATML.replace("message['content'] +", "(message['content'] if loop.last or message['role'] == 'user' else '') +")
ONLY_NAMES = CHATML.replace(
    "message['content'] +", "(message['content'] or message.tool_calls | map(attribute='function.name') | join) +"
)
ONE_ARGUMENT = SHOWS_CALLS.replace(
    "['function'] | tojson", "['function']['name'] + message.tool_calls[0]['function']['arguments']['at']"
)
TWO_ARGUMENTS = {**CALLS, "tool_calls": [{"name": "look", "arguments": '{"at": "sea", "by": "night"}'}]}
DOCUMENTS = "{% if documents %}{{ documents[0].title or documents[0] }}{% endif %}" + CHATML
LOOK = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "title": "Look"}}


def tokenizer_with(template):
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = template
    return tokenizer


def refusal(template, messages, answer="Yes.", **values):
    """Why a row is refused, or None."""
    tokenizer = tokenizer_with(template)
    try:
        prompt = encode_prompt(tokenizer, messages, values)
        encode_response(tokenizer, messages, answer, prompt, values)
    except BadRow as error:
        return str(error)
    return None


THOUGHT = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
PAST = {"role": "assistant", "content": "<think>Hm.</think>Yes."}
LEFT_OUT = [
    (KNOWN_ROLES, [SYSTEM, USER], "Yes.", {}, "the whole content of a message of role 'system'"),
    (KNOWN_ROLES, [USER, CALLS, TOOL], "Yes.", {}, "'tool_calls' of a message of role 'assistant'"),
    (KNOWN_ROLES, [USER, {**TOOL, "content": "Hello"}], "Yes.", {}, "content of a message of role 'tool'"),
    (ONLY_LAST, [SYSTEM, USER], "Yes.", {}, "the whole content of a message of role 'system'"),
    (CHATML, [USER, CALLS, TOOL], "Yes.", {}, "'tool_calls' of a message of role 'assistant'"),
    (SHOWS_CALLS, [USER, CALLS, TOOL], "Yes.", {}, None),
    (SHOWS_CALLS, [USER, {**CALLS, "tool_calls": [CALL, CALL]}, TOOL], "Yes.", {}, "'tool_calls[0]'"),
    (SHOWS_CALLS, [USER], CALLS, {}, None),
    (CHATML, [USER], CALLS, {}, "'tool_calls' of a message of role 'assistant'"),
    (JSON_RESULTS, [USER, CALLS, TOOL], "Yes.", {}, None),
    (ELSE_USER, [USER, TOOL], "Yes.", {}, "writes a message of role 'tool' like one of role 'user'"),
    (CHATML, [USER], THOUGHT, {}, "'reasoning_content' of a message of role 'assistant'"),
    (CHATML, [USER, THOUGHT, USER], "Yes.", {}, "'reasoning_content' of a message of role 'assistant'"),
    (REASONS, [USER], THOUGHT, {}, None),
    (REASONS, [USER, THOUGHT, USER], "Yes.", {}, None),
    (STRIPS, [USER], PAST, {}, "the whole content of a message of role 'assistant'"),
    (STRIPS, [USER, PAST, USER], "Yes.", {}, None),
    (STRIPS_PAST, [USER], PAST, {}, None),
    (NO_PAST, [USER, {**PAST, "content": "Aye."}, USER], "Yes.", {}, "the whole content of a message of role 'assistant'"),
    (STRIPS_PAST, [USER, PAST, USER], "Yes.", {}, None),
    (CHATML, [{**USER, "name": "Ann"}], "Yes.", {}, "'name' of a message of role 'user'"),
    (CHATML, [USER], "Yes.", {"tools": [CALL]}, "does not show 'tools'"),
    (CHATML, [USER], "Yes.", {"tools": [], "enable_thinking": False}, None),
    (TRIMS, [{"role": "user", "content": "  Hello\n"}], " Yes.\n", {}, None),
    (QWEN25, [SYSTEM, USER], "Yes.", {}, None),
    (ONLY_NAMES, [USER], CALLS, {}, "'tool_calls[0].function.arguments' of a message of role 'assistant'"),
    (ONLY_NAMES, [USER, CALLS, USER], "Yes.", {}, "'tool_calls[0].function.arguments' of a message of role 'assistant'"),
    (ONE_ARGUMENT, [USER], CALLS, {}, None),
    (ONE_ARGUMENT, [USER], TWO_ARGUMENTS, {}, "'tool_calls[0].function.arguments.by'"),
    (DOCUMENTS, [USER], "Yes.", {"documents": [{"title": "Sea", "text": "Deep."}]}, "does not show 'documents[0].text'"),
    (DOCUMENTS.replace("title", "text"), [USER], "Yes.", {"documents": [{"text": "Deep."}]}, None),
    (DOCUMENTS, [USER], "Yes.", {"documents": [{"title": "Sea"}, {"title": "Land"}]}, "does not show 'documents[1]'"),
    (DOCUMENTS.replace("documents", "tools"), [USER], "Yes.", {"tools": [CALL, LOOK]}, "does not show 'tools[1]'"),
    # What of a schema is written is the template's own affair.
    (DOCUMENTS.replace("documents", "tools").replace("title", "name"), [USER], "Yes.", {"tools": [LOOK]}, None),
]


@pytest.mark.parametrize(("template", "messages", "answer", "values", "words"), LEFT_OUT)
def test_what_a_template_would_leave_out_is_refused_by_name(template, messages, answer, values, words):
    found = refusal(template, messages, answer, **values)
    assert found is None if words is None else found is not None and words in found


def test_content_is_given_in_the_form_that_the_template_shows():
    plain, parts = tokenizer_with(CHATML), tokenizer_with(PARTS)
    assert "Hello" not in parts.apply_chat_template([USER], tokenize=False)
    messages = [SYSTEM, USER]
    assert encode_prompt(parts, messages) == encode_prompt(plain, messages)
    assert encode_response(parts, messages, "<|im_end|> Yes.") == encode_response(plain, messages, "<|im_end|> Yes.")


@pytest.mark.parametrize("given", [{"at": "sea"}, '{"at": "sea"}'])
@pytest.mark.parametrize(("read", "shown"), [("", '{"at": "sea"}'), (" | tojson", '{"at": "sea"}')])
def test_arguments_of_calls_are_given_as_the_template_takes_them(given, read, shown):
    template = CHATML.replace("message['content'] +", f"(message.tool_calls[0]['function']['arguments']{read}) +")
    template = template.replace("{{ '<|im_start|>' +", "{% if message.tool_calls %}{{ '<|im_start|>' +").replace(
        "+ '\n' }}{% endfor", "+ '\n' }}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor"
    )
    tokenizer = tokenizer_with(template)
    for call in ({"name": "look", "arguments": given}, {"type": "function", "function": {"name": "look", "arguments": given}}):
        text = render(tokenizer, template, Talk([USER, {**CALLS, "tool_calls": [call]}]))
        assert text == f"Hello there<|im_end|><|im_start|>assistant\n{shown}<|im_end|>\n"
        assert json.loads(shown) == {"at": "sea"}
