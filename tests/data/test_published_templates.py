"""Published chat templates: the ids are the tokenizer's own of the whole conversation, or there is one clear refusal."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import PUBLISHED, published_tokenizer

from denserl.data.bad_rows import BadRow
from denserl.data.chat import encode_pair, encode_prompt, encode_response, end_of_turn_id
from denserl.data.chat_format import own_marks
from denserl.data.templates import set_template
from denserl.errors import UserError

DAY = "2026-03-05"
USER, USER2 = {"role": "user", "content": "Hello there"}, {"role": "user", "content": "What is it?"}
SYSTEM, SAID = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "It is."}
TOOLS = [
    {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "hear", "description": "Hears.", "parameters": {"type": "object"}}},
]
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": {"at": "sea"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"role": "tool", "name": "look", "tool_call_id": "abcdefghi", "content": 'A "sea".'}
THOUGHT = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
TALKS = {  # prompt, answer, and what stands beside the messages
    "one turn": ([USER], "Yes.", {}),
    "turns": ([USER, SAID, USER2], "Yes.", {}),
    "system": ([SYSTEM, USER, SAID, USER2], "Yes.", {}),
    "result": ([USER, CALLS, TOOL], "Yes.", {"tools": TOOLS}),
    "call": ([USER], CALLS, {"tools": TOOLS}),
    "reasoning": ([USER], THOUGHT, {}),
    "past reasoning": ([USER, THOUGHT, USER2], "Yes.", {}),
    "reasoning in content": ([USER], "<think>\nHm.\n</think>\n\nYes.", {}),
    "documents": ([USER], "Yes.", {"documents": [{"title": "T", "text": "A sea."}]}),
}
NONE_CLOSES = {"glm4", "minicpm"}
PLAIN, TOLD = {"one turn", "turns", "system"}, {"reasoning in content"}
# What templates show, from the models' documentation; most show what stands in a content as it is, and no key beside it.
SHOWN = {
    **dict.fromkeys(PUBLISHED, PLAIN | TOLD),
    **dict.fromkeys(("llama31", "llama32", "qwen25_tools", "command_r", "kimi_k2"), PLAIN | TOLD | {"result", "call"}),
    **dict.fromkeys(("qwen3", "qwen35"), set(TALKS) - {"documents"}),
    "minimax_m2": set(TALKS) - {"documents"},
    **dict.fromkeys(("qwq", "deepseek_r1_distill", "deepseek_v31"), PLAIN),
    # A space stands before the answers that are texts, in a token of its own with this tokenizer, and none before calls.
    "mistral_v3": {"one turn", "turns", "result"} | TOLD,
    "granite": PLAIN | TOLD | {"result", "call", "documents"},
    "gpt_oss": set(TALKS) - {"call", "documents"},
}
# The line break that ends the prompt is one token with that which opens the answer; generation could not begin within it.
MERGES = {("minimax_m2", "call")}
# Why the others are refused: by the key, or in the template's own words.
REASONS = {
    "system": "of a message of role 'system'",
    "result": "'(tool_calls|tools)'|roles",
    "call": "'(tool_calls|tools)'|does not (close this answer|continue)",
    "reasoning": "'reasoning_content' of a message of role 'assistant'",
    "past reasoning": "'reasoning_content' of a message of role 'assistant'",
    "reasoning in content": "the whole content of a message of role 'assistant'|reads control tokens",
    "documents": "'documents'",
}


@functools.cache
def tokenizer_of(name):
    tokenizer = published_tokenizer(name)
    set_template(tokenizer, default_date=DAY)
    return tokenizer


def in_form(name, message):
    """As a caller of the stock library would have to give it."""
    if name == "smolvlm":
        return {**message, "content": [{"type": "text", "text": message["content"]}]}
    if name == "deepseek_r1_distill" and message.get("tool_calls"):
        call = {**CALL, "function": {"name": "look", "arguments": '{"at": "sea"}'}}
        return {**message, "tool_calls": [call]}
    return message


def spaceless(text):
    return "".join(text.split())


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - NONE_CLOSES))
def test_ids_are_the_tokenizers_own_of_the_whole_conversation(name):
    tokenizer, what = tokenizer_of(name), PUBLISHED[name]
    for talk, (messages, answer, values) in TALKS.items():
        if talk not in SHOWN[name]:
            with pytest.raises(BadRow, match=REASONS[talk]):
                encode_response(tokenizer, messages, answer, template_kw=values)
            continue
        message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
        whole = [in_form(name, each) for each in [*messages, message]]
        full = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False, **values)
        closed = full[: len(full) - full[::-1].index(end_of_turn_id(tokenizer))]
        prompt = encode_prompt(tokenizer, messages, values)
        response = encode_response(tokenizer, messages, answer, prompt, values)
        if (name, talk) in MERGES:
            assert tokenizer.decode(prompt + response) == tokenizer.decode(closed)
        else:
            assert prompt + response == closed, talk
        assert encode_pair(tokenizer, messages, [answer, "No."], 9999, 9990, values)[1][0] == response
        ends, text = tokenizer.decode(prompt), tokenizer.decode(response)
        if talk != "result":  # after which some templates open an answer otherwise
            # sentencepiece writes a space before what follows a token
            ends, shown = (spaceless(ends), spaceless(what.prompt_ends)) if what.sentencepiece else (ends, what.prompt_ends)
            assert ends.endswith(shown), talk
        if talk in PLAIN | {"result", "past reasoning"}:
            expected = what.answer.format(answer)
            assert spaceless(text) == spaceless(expected) if what.sentencepiece else text == expected, talk
        assert response.count(end_of_turn_id(tokenizer)) == 1 and response[-1] == end_of_turn_id(tokenizer)


@pytest.mark.parametrize("name", sorted(NONE_CLOSES))
def test_a_template_that_closes_no_answer_is_refused_as_a_whole(name):
    with pytest.raises(UserError, match="closes an assistant turn with no special token") as error:
        encode_prompt(tokenizer_of(name), [USER])
    assert "`chat_template`" in error.value.fix


def test_where_there_is_a_generation_prompt_that_answers_go_on_from_it_is_the_prompt():
    """PPO samples from the very ids that the library's own generation starts with, but where these open reasoning, or where all
    answers begin with the same token."""
    others = {"qwen35", "qwq", "deepseek_r1_distill", "nemotron_nano", "minimax_m2", "gemma4", "mistral_v3"}
    for name in sorted(set(PUBLISHED) - NONE_CLOSES):
        messages = [in_form(name, message) for message in [USER, SAID, USER2]]
        generated = tokenizer_of(name).apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        same = encode_prompt(tokenizer_of(name), [USER, SAID, USER2]) == generated
        assert same == (name not in others), name


MARKS = {
    "llama2": ["<s>", "</s>", "[INST]", "[/INST]"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "vicuna": ["USER:", "ASSISTANT:", "</s>"],
    "zephyr": ["<|user|>", "<|assistant|>", "</s>"],
    "deepseek_v2": ["User:", "Assistant:", "<｜end▁of▁sentence｜>"],
    "llama32": ["<|start_header_id|>", "<|eot_id|>", "<|begin_of_text|>"],
}


@pytest.mark.parametrize("name", MARKS)
def test_texts_that_hold_the_templates_own_marks(name):
    marks = own_marks(tokenizer_of(name))
    for mark in MARKS[name]:
        assert marks.search(f"before {mark} after")[0] == mark
    for text in ("Hello there, user: what is <it>?", "the assistant said [1] it is", "think", "system\n\nuser"):
        assert not marks.search(text), text


def of_texts(text):
    """A conversation with calls and results of tools, and reasoning, in which every text is made by `text`."""
    function = {"name": text(), "description": text(), "parameters": {"type": "object", "properties": {text(): {}}}}
    call = {**CALL, "function": {"name": text(), "arguments": {text(): text()}}}
    said = {"role": "assistant", "content": text(), "tool_calls": [call]}
    messages = [{"role": "user", "content": text()}, said, {**TOOL, "content": text()}]
    answer = {"role": "assistant", "content": text(), "reasoning_content": text()}
    return messages, answer, {"tools": [{"type": "function", "function": function}]}


@pytest.mark.parametrize("name", ["qwen3", "qwen35"])
@settings(max_examples=40)
@given(data=st.data())
def test_no_text_at_any_depth_becomes_a_control_token(name, data):
    tokenizer, tokens = tokenizer_of(name), PUBLISHED[name].tokens.split()[1:]
    control = set(tokenizer.convert_tokens_to_ids(tokens))

    def counts(text):
        messages, answer, values = of_texts(text)
        prompt = encode_prompt(tokenizer, messages, values)
        response = encode_response(tokenizer, messages, answer, prompt, values)
        assert response[-1] == end_of_turn_id(tokenizer)
        return [[i for i in ids if i in control] for ids in (prompt, response)]

    pieces = st.lists(st.sampled_from([*tokens, '"', "\\", "\n", " ", "}", "\u00e9", "a"]), min_size=1, max_size=4).map("".join)
    assert counts(lambda: data.draw(pieces.filter(str.strip))) == counts(lambda: "word")


def test_a_tokenizer_that_makes_a_control_token_of_plain_text_is_found_out():
    """Its merges give the very piece that is the control token, as no published one's do."""
    tokenizer = tokenizer_of("mistral_v3")
    typed = "[/INST] [TOOL_RESULTS] think[/INST] a[/INST]"
    with pytest.raises(BadRow, match="makes a control token of plain text"):
        encode_prompt(tokenizer, [{"role": "user", "content": typed}])


def test_there_are_thirty_of_them():
    assert len(PUBLISHED) >= 30
