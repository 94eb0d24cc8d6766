"""Chat templates to ids: against hand-written renderings, the full rendering, and arbitrary texts."""

import functools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import CHATML, CHATML_WITHOUT_GENERATION_PROMPT, END_OF_TURN, NAMES, SPECIAL_TOKENS, build_tokenizer
from tokenizers import AddedToken

from denserl.data.chat import (
    after_last_turn,
    bos_id,
    cut_left,
    encode_pair,
    encode_prompt,
    encode_response,
    encode_text,
    end_of_turn_id,
    stop_ids,
)
from denserl.data.chat import truncate_pair as truncate
from denserl.errors import UserError

tokenizer_of = functools.lru_cache(build_tokenizer)
QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# One user turn; what the model reads before its answer. Written by hand from the models' documentation.
SINGLE = {
    "phi3": "<|user|>\nHello there<|end|>\n<|assistant|>\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello there<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen25": QWEN_SYSTEM + "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<bos><start_of_turn>user\nHello there<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s>[INST] Hello there [/INST]",
    "chatml": "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n",
}
# ... and the answer "Yes." in a second turn's history, with a second question after it.
SECOND_TURN = {
    "phi3": "Yes.<|end|>\n<|user|>\nWhat is it?<|end|>\n<|assistant|>\n",
    "llama3": "Yes.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhat is it?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen25": "Yes.<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "Yes.<end_of_turn>\n<start_of_turn>user\nWhat is it?<end_of_turn>\n<start_of_turn>model\n",
    "mistral": " Yes.</s>[INST] What is it? [/INST]",
    "chatml": "Yes.<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
}
SYSTEM = {
    "phi3": "<|system|>\nBe brief.<|end|>\n" + SINGLE["phi3"],
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    + SINGLE["llama3"].removeprefix("<|begin_of_text|>"),
    "qwen25": "<|im_start|>system\nBe brief.<|im_end|>\n" + SINGLE["qwen25"].removeprefix(QWEN_SYSTEM),
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n" + SINGLE["chatml"],
}
USER = {"role": "user", "content": "Hello there"}
MULTI = [USER, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "What is it?"}]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", NAMES)
def test_end_of_turn_is_found_by_rendering(name):
    tokenizer = tokenizer_of(name)
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids(END_OF_TURN[name])


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_response_equal_the_handwritten_rendering(name):
    tokenizer = tokenizer_of(name)
    prompt = encode_prompt(tokenizer, [USER])
    response = encode_response(tokenizer, [USER], "The answer.")
    space = " " if name == "mistral" else ""
    assert prompt == ids_of(tokenizer, SINGLE[name])
    assert prompt + response == ids_of(tokenizer, SINGLE[name] + space + "The answer." + END_OF_TURN[name])


@pytest.mark.parametrize("name", NAMES)
def test_multi_turn(name):
    tokenizer = tokenizer_of(name)
    prompt = encode_prompt(tokenizer, MULTI)
    assert prompt == ids_of(tokenizer, SINGLE[name] + SECOND_TURN[name])
    # the first turn's answer continues the first prompt: a conversation is one growing sequence
    first = encode_prompt(tokenizer, [USER]) + encode_response(tokenizer, [USER], "Yes.")
    assert prompt[: len(first)] == first


@pytest.mark.parametrize("name", SYSTEM)
def test_system_turn(name):
    tokenizer = tokenizer_of(name)
    messages = [{"role": "system", "content": "Be brief."}, USER]
    assert encode_prompt(tokenizer, messages) == ids_of(tokenizer, SYSTEM[name])


@pytest.mark.parametrize(
    ("name", "words"), [("gemma", "System role not supported"), ("mistral", "Conversation roles must alternate")]
)
def test_a_template_that_refuses_speaks_for_itself(name, words):
    with pytest.raises(ValueError, match=words):
        encode_prompt(tokenizer_of(name), [{"role": "system", "content": "Be brief."}, USER])


def test_tokens_of_a_small_case_by_hand():
    tokenizer = tokenizer_of("chatml")
    tokens = tokenizer.convert_ids_to_tokens(encode_response(tokenizer, [USER], "Qz <|im_end|>"))
    assert tokens == ["Q", "z", "Ġ", "<", "|", "i", "m", "_", "e", "n", "d", "|", ">", "<|im_end|>"]


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_full_rendering_cut_after_the_end_of_turn(name):
    tokenizer = tokenizer_of(name)
    for answer in ("The answer.", "It is 42.\n\nHello", "a", "É 漢字 🙂"):
        messages = [*MULTI, {"role": "assistant", "content": answer}]
        full = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        end = len(full) - full[::-1].index(end_of_turn_id(tokenizer))
        assert encode_prompt(tokenizer, MULTI) + encode_response(tokenizer, MULTI, answer) == full[:end]


def test_template_without_generation_prompt_gives_the_ids_of_one_with_it():
    tokenizer = build_tokenizer("chatml")
    expected = encode_prompt(tokenizer, MULTI), encode_response(tokenizer, MULTI, "The answer.")
    tokenizer.chat_template = CHATML_WITHOUT_GENERATION_PROMPT
    assert (encode_prompt(tokenizer, MULTI), encode_response(tokenizer, MULTI, "The answer.")) == expected


@pytest.mark.parametrize("in_template", [False, True])
@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_exactly_one_bos(name, in_template):
    tokenizer = build_tokenizer(name)
    assert "bos_token" in tokenizer.chat_template
    if not in_template:
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "").replace(
            "bos_token + content", "content"
        )
    prompt = encode_prompt(tokenizer, [USER, MULTI[1], {"role": "user", "content": f"{tokenizer.bos_token} again"}])
    assert prompt[0] == tokenizer.bos_token_id
    assert prompt.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["qwen25", "chatml"])
def test_no_bos_where_none_is_used(name):
    tokenizer = tokenizer_of(name)
    assert tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, [USER]))[0] == "<|im_start|>"


def test_stop_ids_come_without_repeats_and_end_of_turn_first():
    tokenizer = tokenizer_of("phi3")
    ids = dict(zip(SPECIAL_TOKENS["phi3"], tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS["phi3"]), strict=True))
    assert stop_ids(tokenizer) == [ids["<|end|>"], ids["<|endoftext|>"]]
    several = SimpleNamespace(eos_token_id=[ids["</s>"], ids["<|end|>"]])
    assert stop_ids(tokenizer, several) == [ids["<|end|>"], ids["</s>"], ids["<|endoftext|>"]]
    assert stop_ids(tokenizer, SimpleNamespace(eos_token_id=ids["</s>"]))[1] == ids["</s>"]
    assert stop_ids(tokenizer, SimpleNamespace(eos_token_id=None)) == stop_ids(tokenizer)


def test_without_a_template_or_a_closing_token_it_stops():
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    )
    with pytest.raises(UserError, match="no special token"):
        end_of_turn_id(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match="never"):
        end_of_turn_id(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        end_of_turn_id(tokenizer)


THINKS = "{% set said = '<think>\n' + message.reasoning_content | default('') + '\n</think>\n\n' + message['content'] %}"


def thinking_tokenizer(opening, answers_are_opened):
    """ChatML whose generation prompt opens a block of reasoning, which the rendering of past turns leaves out."""
    tokenizer = build_tokenizer("chatml")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    said = THINKS + "{% if not (answers and loop.last and message['role'] == 'assistant') %}{% set said = message['content'] %}"
    tokenizer.chat_template = (
        ("{% set answers = " + str(answers_are_opened).lower() + " %}" + CHATML)
        .replace("{{ '<|im_start|>'", said + "{% endif %}{{ '<|im_start|>'")
        .replace("message['content'] + '<|im_end|>'", "said + '<|im_end|>'")
        .replace("assistant\n' }}", "assistant\n" + opening + "' }}")
    )
    return tokenizer


@pytest.mark.parametrize(("opening", "opened"), [("<think>\n", False), ("thinking", False), ("<think>\n", True)])
def test_a_generation_prompt_that_the_answer_does_not_go_on_from(opening, opened):
    """The prompt ends where question and answer part, before the line break that merges with the next one."""
    tokenizer = thinking_tokenizer(opening, opened)
    prompt, begins = encode_prompt(tokenizer, MULTI), SINGLE["chatml"] + SECOND_TURN["chatml"]
    assert tokenizer.decode(prompt) == begins + ("<think>" if opened else "")
    thought = {"role": "assistant", "content": "It is 4.", "reasoning_content": "Two and two."}
    for answer in ("The answer.", "\n<|im_end|>", *([thought] if opened else [])):
        message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
        response = encode_response(tokenizer, MULTI, answer)
        text = tokenizer.apply_chat_template([*MULTI, message], tokenize=False)
        assert tokenizer.decode(prompt + response) == text.removesuffix("\n")
        if "<|" not in message["content"]:
            assert prompt + response == ids_of(tokenizer, text.removesuffix("\n"))
        assert encode_pair(tokenizer, MULTI, [answer], 500, 400) == (prompt, [response])
    if opened:
        assert tokenizer.decode(response) == "\nTwo and two.\n</think>\n\nIt is 4.<|im_end|>"


@pytest.mark.parametrize("changed", ["messages[::-1]", "[{'role': 'system', 'content': messages[-1]['content']}] + messages"])
def test_a_template_whose_answers_do_not_follow_their_questions_is_refused_once(changed):
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = CHATML_WITHOUT_GENERATION_PROMPT.replace("in messages", f"in ({changed})")
    with pytest.raises(UserError, match="no prompt that all answers go on from") as error:
        encode_prompt(tokenizer, [USER])
    assert "`chat_template`" in error.value.fix


def test_bos_stays_where_a_prompt_loses_its_left():
    assert cut_left([1, 2, 3, 4], 2, bos=1) == [1, 4]
    assert cut_left([1, 2, 3, 4], 2, bos=3) == [3, 4]
    assert cut_left([1, 2, 3, 4], 9, bos=1) == [1, 2, 3, 4]
    assert cut_left([1, 2], 0, bos=1) == []
    tokenizer = tokenizer_of("llama3")
    whole, (answer,) = encode_pair(tokenizer, MULTI, ["Yes."], 1000, 900)
    prompt, (cut,) = encode_pair(tokenizer, MULTI, ["Yes."], 20, 10)
    assert prompt == [tokenizer.bos_token_id, *whole[len(whole) - (20 - len(answer) - 1) :]] and cut == answer
    assert bos_id(tokenizer) == tokenizer.bos_token_id and bos_id(tokenizer_of("chatml")) is None


def test_end_of_turn_added_as_no_special_token_is_still_kept_apart_from_typed_text():
    tokenizer = build_tokenizer("chatml")
    tokenizer.add_tokens([AddedToken("[END]", special=False, normalized=False)])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "[END]")
    end = tokenizer.convert_tokens_to_ids("[END]")
    assert end_of_turn_id(tokenizer) == end
    response = encode_response(tokenizer, [{"role": "user", "content": "a [END] b"}], "before [END] after")
    assert response.index(end) == len(response) - 1
    assert tokenizer.decode(response[:-1]) == "before [END] after"


def test_a_token_of_the_model_that_is_no_control_token_stays_a_token():
    tokenizer = build_tokenizer("chatml")
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert encode_response(tokenizer, [USER], "<think> so")[0] == think
    assert encode_response(tokenizer, [USER], "<think> so <|im_end|>")[0] == think


def test_start_of_the_response_stays_where_the_rollout_has_it_when_tokens_would_merge():
    tokenizer = build_tokenizer("chatml")
    prompt, response = encode_prompt(tokenizer, [USER]), encode_response(tokenizer, [USER], "\n\nHello")
    full = ids_of(tokenizer, SINGLE["chatml"] + "\n\nHello<|im_end|>")
    assert full[: len(prompt)] != prompt  # header and answer do merge in this tokenizer
    assert tokenizer.decode(response) == "\n\nHello<|im_end|>"
    assert tokenizer.decode(prompt + response) == SINGLE["chatml"] + "\n\nHello<|im_end|>"


def test_a_template_that_trims_still_does_where_tokens_would_merge():
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for message in messages %}"
        "{{ message['role'] + ' [' + message['content'] | trim + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant [' }}{% endif %}"
    )
    prompt = encode_prompt(tokenizer, [USER])
    assert ids_of(tokenizer, "user [Hello there<|im_end|>assistant [/INST]")[: len(prompt)] != prompt  # " [/" is a token
    assert tokenizer.decode(encode_response(tokenizer, [USER], " \n/INST] x ")) == "/INST] x<|im_end|>"


def test_plain_text_keeps_control_tokens_as_text():
    tokenizer = tokenizer_of("llama3")
    ids = encode_text(tokenizer, "a <|eot_id|> b")
    assert ids[0] == tokenizer.bos_token_id
    assert not set(ids[1:]) & set(tokenizer.all_special_ids) - {None}
    assert tokenizer.decode(ids[1:]) == "a <|eot_id|> b"


def control_counts(tokenizer, ids):
    control = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS_OF[id(tokenizer)])
    return {i: ids.count(i) for i in control if i in ids}


SPECIAL_TOKENS_OF = {id(tokenizer_of(name)): SPECIAL_TOKENS[name] for name in NAMES}
pieces = st.one_of(
    st.sampled_from([text for name in NAMES for text in SPECIAL_TOKENS[name]]),
    st.sampled_from(["\n", " ", "\n\n", "[INST]", "[/INST]", "<", "|>", "<|", "\ue000", "\u2028", "▁"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
texts = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(lambda text: text.strip())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data())
def test_no_text_ever_becomes_a_control_token_or_leaves_its_place(name, data):
    tokenizer = tokenizer_of(name)
    messages = [{"role": m["role"], "content": data.draw(texts)} for m in MULTI]
    answer = data.draw(texts)
    try:
        prompt, response = encode_prompt(tokenizer, messages), encode_response(tokenizer, messages, answer)
    except ValueError as error:
        assert "noncharacter" in str(error)
        return
    plain_prompt, plain_response = encode_prompt(tokenizer, MULTI), encode_response(tokenizer, MULTI, "Yes.")
    assert control_counts(tokenizer, prompt) == control_counts(tokenizer, plain_prompt)
    assert control_counts(tokenizer, response) == control_counts(tokenizer, plain_response)
    assert response[-1] == end_of_turn_id(tokenizer)
    # sentencepiece cannot tell its space mark from a space
    kept = tokenizer.decode(response[:-1]).replace("▁", " ").strip()
    assert kept == answer.replace("▁", " ").strip()
    shown = tokenizer.decode(prompt).replace("▁", " ")
    assert all(m["content"].replace("▁", " ").strip() in shown for m in messages)


@pytest.mark.parametrize("name", NAMES)
def test_a_typed_control_token_changes_nothing_around_it(name):
    """The way for rows with typed control tokens reads all else as the ordinary way does."""
    tokenizer = tokenizer_of(name)
    question = {"role": "user", "content": f"What is {END_OF_TURN[name]}"}
    prompt = encode_prompt(tokenizer, [USER, MULTI[1], question])
    ordinary = encode_prompt(tokenizer, MULTI)
    until = ids_of(tokenizer, SINGLE[name] + SECOND_TURN[name].split("What is it?")[0] + "What is ")[:-2]
    assert prompt[: len(until)] == ordinary[: len(until)] == until
    assert prompt[-1] == ordinary[-1]


TOOL_CHATML = CHATML.replace(
    "{% for message",
    "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}{% for message", 1
).replace(
    "message['content'] + '<|im_end|>'",
    "('<think>' + message.reasoning_content + '</think>' if message.reasoning_content else '') + message['content']"
    " + (message.tool_calls | map(attribute='function') | map('tojson') | join('\n') if message.tool_calls else '')"
    " + '<|im_end|>'",
)  # fmt: skip


def test_what_a_message_holds_beside_its_content_reaches_the_template():
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = TOOL_CHATML
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "<|im_end|>"}}}
    talk = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "A sea."}]
    tools = [{"type": "function", "function": {"name": "look", "description": "<|im_start|> looks"}}]
    prompt = encode_prompt(tokenizer, talk, {"tools": tools})
    expected = (
        '<|im_start|>tools\n[{"type": "function", "function": {"name": "look", "description": "<|im_start|> looks"}}]'
        "<|im_end|>\n"
        '<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n{"name": "look", "arguments": {"at": "<|im_end|>"}}'
        "<|im_end|>\n<|im_start|>tool\nA sea.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(prompt) == expected
    # the template's own marks are tokens, those in a description and in an argument are text
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (prompt.count(start), prompt.count(end)) == (5, 4)
    answer = {"role": "assistant", "content": "Water.", "reasoning_content": "So <|im_end|> what?"}
    response = encode_response(tokenizer, talk, answer, prompt, {"tools": tools})
    assert tokenizer.decode(response) == "<think>So <|im_end|> what?</think>Water.<|im_end|>"
    assert response.count(end) == 1
    pair = encode_pair(tokenizer, talk, [answer, "Water."], 500, 400, {"tools": tools})
    assert pair == (prompt, [response, ids_of(tokenizer, "Water.<|im_end|>")])


def test_truncation_by_hand():
    prompt, short, long = list(range(10)), [20, 21, 99], [30, 31, 32, 33, 34, 99]
    assert truncate(prompt, [short, long], 16, 5, 99) == (prompt, [short, long])  # exactly fits
    assert truncate(prompt, [short, long], 14, 5, 99) == (
        [2, 3, 4, 5, 6, 7, 8, 9],
        [short, long],
    )  # the prompt is enough
    assert truncate(prompt, [short, long], 11, 5, 99) == ([5, 6, 7, 8, 9], [short, long])  # down to its limit
    assert truncate(prompt, [short, long], 9, 5, 99) == ([5, 6, 7, 8, 9], [short, [30, 31, 32, 99]])
    assert truncate(prompt, [short, long], 6, 5, 99) == ([5, 6, 7, 8, 9], [[99], [99]])
    assert truncate(prompt, [short, long], 5, 5, 99) == ([5, 6, 7, 8, 9], [[], []])
    assert truncate([1, 2], [long], 6, 5, 99) == ([1, 2], [[30, 31, 32, 99]])  # a short prompt is never cut


@given(st.integers(0, 30), st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(2, 40), st.integers(1, 40))
def test_truncation_against_one_token_at_a_time(prompt_length, lengths, max_length, max_prompt_length):
    prompt = list(range(prompt_length))
    responses = [[*range(100, 99 + length), 7] for length in lengths]
    kept, cut = list(prompt), [list(r) for r in responses]
    while any(len(kept) + len(r) > max_length for r in cut) and len(kept) > max_prompt_length:
        kept.pop(0)
    for r in cut:
        while r and len(kept) + len(r) > max_length:
            r.pop()
        r[-1:] = [7] if r else []
    assert truncate(prompt, responses, max_length, max_prompt_length, 7) == (kept, cut)


def test_a_response_with_nothing_left_is_refused():
    with pytest.raises(ValueError, match="besides its end of turn"):
        encode_pair(tokenizer_of("chatml"), [USER], ["Yes."], max_length=9, max_prompt_length=8)


OPENED = {
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "\n<start_of_turn>model\n",
    "chatml": "\n<|im_start|>assistant\n",
    "mistral": "",
}


@pytest.mark.parametrize("name", OPENED)
def test_what_follows_the_last_turn_of_a_prompt(name):
    """What opens the answer, behind the end of the user's turn; nothing where plain text closes that, as Mistral's [/INST]."""
    tokenizer = tokenizer_of(name)
    prompt, after = encode_prompt(tokenizer, MULTI), after_last_turn(tokenizer)
    assert prompt[len(prompt) - after :] == ids_of(tokenizer, OPENED[name])
    assert (prompt[-1 - after] == end_of_turn_id(tokenizer)) == (name != "mistral")
