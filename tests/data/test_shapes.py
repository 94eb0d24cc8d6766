"""One small file of each shape that is read, and the messages that it means, written by hand."""

import csv
import functools
import io
import json
import logging

import pytest
from templates import CHATML, build_tokenizer

from denserl.cli import new_model
from denserl.data.demonstrations import load_demonstrations, tokenize_demonstrations
from denserl.data.messages import texts_in
from denserl.data.preferences import load_preferences, tokenize_preferences
from denserl.data.prompts import load_prompts, tokenize_prompts
from denserl.data.schemas import BadRow, LeftOut, as_demonstration, as_preference, as_prompt
from denserl.errors import UserError

SYSTEM = {"role": "system", "content": "You speak like a pirate."}
EARLIER = [{"role": "user", "content": "Ahoy?"}, {"role": "assistant", "content": "Ahoy!"}]
ASKED = {"role": "user", "content": "Where is it?"}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "map", "scale": 0.1}}}
AS_TEXT = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "map", "scale": 0.1}'}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
FOUND = {"role": "tool", "content": "An island."}
THOUGHT = {"role": "assistant", "content": "There.", "reasoning_content": "I looked."}


def from_value(role: str, value: str) -> dict:
    return {"from": role, "value": value}


def table(rows: list[dict], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pair(*prompt: dict, chosen: object = "There.", rejected: object = "Nowhere.", margin: float = 0.0) -> dict:
    return {"prompt": list(prompt), "chosen": chosen, "rejected": rejected, "margin": margin, "p_chosen": 1.0, "weight": 1.0}


def answered(*prompt: dict, response: object = "There.") -> dict:
    return {"prompt": list(prompt), "response": response}


PLAIN = {"prompt": "Where is it?", "chosen": "There.", "rejected": "Nowhere."}
SIDES = {side: [ASKED, {"role": "assistant", "content": PLAIN[side]}] for side in ("chosen", "rejected")}
PAIRS = {
    "a system column": (lines({**PLAIN, "system": SYSTEM["content"]}), pair(SYSTEM, ASKED)),
    "a system column of another name": (lines({**PLAIN, "system_prompt": SYSTEM["content"]}), pair(SYSTEM, ASKED)),
    "a system column of nothing": (lines({**PLAIN, "system": ""}, {**PLAIN, "system": None}), pair(ASKED)),
    "the same system twice": (lines({**PLAIN, "prompt": [SYSTEM, ASKED], "system": SYSTEM["content"]}), pair(SYSTEM, ASKED)),
    "message lists and a system column": (lines({**SIDES, "system": SYSTEM["content"]}), pair(SYSTEM, ASKED)),
    "history": (lines({**PLAIN, "history": [["Ahoy?", "Ahoy!"]], "system": SYSTEM["content"]}), pair(SYSTEM, *EARLIER, ASKED)),
    "history of messages": (lines({**PLAIN, "history": EARLIER}), pair(*EARLIER, ASKED)),
    "no history": (lines({**PLAIN, "history": []}, {**PLAIN, "history": ""}), pair(ASKED)),
    "tools": (lines({**PLAIN, "tools": [LOOK]}), pair({**ASKED, "tools": [LOOK]})),
    "tools as text, a system column": (
        lines({**PLAIN, "system": SYSTEM["content"], "tools": json.dumps([LOOK])}),
        pair({**SYSTEM, "tools": [LOOK]}, ASKED),
    ),
    "numbers with all of their digits": (
        lines({**PLAIN, "tools": [{"least": 1.7976931348623157e-300, "most": 2**70, "third": 1 / 3}]}),
        pair(
            {
                **ASKED,
                "tools": [{"least": 1.7976931348623157e-300, "most": 1180591620717411303424, "third": 0.3333333333333333}],
            }
        ),
    ),
    "documents": (lines({**PLAIN, "documents": [{"text": "A map."}]}), pair({**ASKED, "documents": [{"text": "A map."}]})),
    "roles of other capitals": (
        lines(
            {**PLAIN, "prompt": [{"role": "SYSTEM", "content": SYSTEM["content"]}, {"role": "User", "content": "Where is it?"}]}
        ),
        pair(SYSTEM, ASKED),
    ),
    "content in parts": (
        lines({**PLAIN, "prompt": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("Where ", "is it?")]}]}),
        pair(ASKED),
    ),
    "one whole message as answer": (
        lines({**PLAIN, "chosen": [THOUGHT], "rejected": [CALLED]}),
        pair(ASKED, chosen=THOUGHT, rejected=CALLED),
    ),
    "tool calls and their answers": (
        lines({**PLAIN, "prompt": [ASKED, {**CALLED, "content": None}, FOUND]}),
        pair(ASKED, CALLED, FOUND),
    ),
    "an answer in several messages after an explicit prompt": (
        lines({"prompt": [ASKED], **{side: [CALLED, FOUND, SIDES[side][1]] for side in SIDES}}),
        pair(ASKED, CALLED, FOUND),
    ),
    "messages as JSON in text columns": (lines({key: json.dumps(value) for key, value in SIDES.items()}), pair(ASKED)),
    "messages as JSON, their roles not first": (
        lines({**PLAIN, "prompt": json.dumps([{"turn": 1, **ASKED}])}),
        pair(ASKED),
    ),
    "one message as JSON in a text column": (lines({**PLAIN, "prompt": json.dumps(ASKED)}), pair(ASKED)),
    "JSON that is no conversation": (
        lines({**PLAIN, "chosen": '[{"role": "captain", "content": "Hook"}]', "rejected": '{"messages": ["x"]}'}),
        pair(ASKED, chosen='[{"role": "captain", "content": "Hook"}]', rejected='{"messages": ["x"]}'),
    ),
    "a margin": (lines({**PLAIN, "margin": 1.5}), pair(ASKED, margin=1.5)),
    "what is no content under a name of content": (lines({**PLAIN, "images": [], "thinking": False, "image": 7}), pair(ASKED)),
    "csv": (table([{**PLAIN, "score_chosen": 8, "score_rejected": 5.5}]), pair(ASKED, margin=2.5)),
    "tsv": (table([{**PLAIN, "system": SYSTEM["content"]}], "\t"), pair(SYSTEM, ASKED)),
    "csv with messages": (table([{key: json.dumps(value) for key, value in SIDES.items()}]), pair(ASKED)),
}
DEMONSTRATIONS = {
    "alpaca": (
        lines({"instruction": "Where is", "input": "it?", "output": "There.", "system": SYSTEM["content"], "history": []}),
        answered(SYSTEM, {"role": "user", "content": "Where is\n\nit?"}),
    ),
    "alpaca with history": (
        lines({"instruction": "Where is it?", "input": "", "output": "There.", "history": [["Ahoy?", "Ahoy!"]]}),
        answered(*EARLIER, ASKED),
    ),
    "alpaca as csv": (
        table([{"instruction": "Where is it?", "input": "", "output": "There.", "history": json.dumps([["Ahoy?", "Ahoy!"]])}]),
        answered(*EARLIER, ASKED),
    ),
    "instruction, context, response": (
        lines({"instruction": "Where is", "context": "it?", "response": "There.", "category": "open_qa"}),
        answered({"role": "user", "content": "Where is\n\nit?"}),
    ),
    "prompt and completion as messages": (
        lines({"prompt": [ASKED], "completion": [THOUGHT]}),
        answered(ASKED, response=THOUGHT),
    ),
    "ShareGPT": (
        lines(
            {
                "conversations": [
                    from_value("human", "Where is it?"),
                    from_value("function_call", json.dumps(CALL["function"])),
                    from_value("observation", "An island."),
                    from_value("gpt", "There."),
                ],
                "system": SYSTEM["content"],
                "tools": json.dumps([LOOK]),
            }
        ),
        answered({**SYSTEM, "tools": [LOOK]}, ASKED, {**CALLED, "tool_calls": [CALL["function"]]}, FOUND),
    ),
    "messages as OpenAI has them": (
        lines(
            {
                "messages": [
                    {"role": "developer", "content": SYSTEM["content"]},
                    ASKED,
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [AS_TEXT],
                    },
                    {**FOUND, "tool_call_id": "1", "name": "look"},
                    {"role": "assistant", "content": "There.", "weight": 1},
                ],
                "tools": [LOOK],
            }
        ),
        answered(
            {"role": "developer", "content": SYSTEM["content"], "tools": [LOOK]},
            ASKED,
            {**CALLED, "tool_calls": [AS_TEXT]},
            {**FOUND, "name": "look", "tool_call_id": "1"},
        ),
    ),
    "messages as JSON under text": (lines({"text": json.dumps([ASKED, THOUGHT])}), answered(ASKED, response=THOUGHT)),
    "a call as answer": (lines({"messages": [ASKED, CALLED]}), answered(ASKED, response=CALLED)),
}
PROMPTS = {
    "alpaca": (lines({"instruction": "Where is it?", "system": SYSTEM["content"], "output": "-"}), [SYSTEM, ASKED]),
    "a whole conversation": (lines({"messages": [ASKED, THOUGHT], "tools": [LOOK]}), [{**ASKED, "tools": [LOOK]}]),
    "a tool's answer at the end": (lines({"prompt": [ASKED, CALLED, FOUND]}), [ASKED, CALLED, FOUND]),
    "Gemini's roles": (
        lines({"messages": [ASKED, {"role": "model", "content": "Here."}, {"role": "user", "content": "Go on."}]}),
        [ASKED, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "Go on."}],
    ),
    "tsv": (table([{"prompt": "Where is it?", "id": 5}], "\t"), [ASKED]),
}


def written(tmp_path, shape: str, content: str) -> str:
    kind = next((kind for kind in ("csv", "tsv") if kind in shape), "jsonl")
    (tmp_path / f"rows.{kind}").write_text(content, encoding="utf-8")
    return str(tmp_path / f"rows.{kind}")


def rows_of(dataset) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "place"} for row in dataset]


@pytest.mark.parametrize("shape", PAIRS)
def test_preferences(tmp_path, shape):
    content, expected = PAIRS[shape]
    found = rows_of(load_preferences([written(tmp_path, shape, content)]))
    assert found == [expected] * len(found) and found


@pytest.mark.parametrize("shape", DEMONSTRATIONS)
def test_demonstrations(tmp_path, shape):
    content, expected = DEMONSTRATIONS[shape]
    assert rows_of(load_demonstrations([written(tmp_path, shape, content)])) == [expected]


@pytest.mark.parametrize("shape", PROMPTS)
def test_prompts(tmp_path, shape):
    content, expected = PROMPTS[shape]
    assert rows_of(load_prompts([written(tmp_path, shape, content)])) == [{"prompt": expected}]


QUESTION = {"prompt": "Q", "response": "A"}
REFUSED = [
    (as_preference, {**PLAIN, "images": ["a.png"]}, "the row has 'images', which is not read"),
    (as_prompt, {"prompt": "Q", "video": "a.mp4"}, "the row has 'video', which is not read"),
    (as_prompt, {"prompt": "Q", "functions": [LOOK]}, "the row has 'functions', which is not read"),
    (
        as_prompt,
        {"prompt": "Q", "chat_template_kwargs": {"enable_thinking": False}},
        "the row has 'chat_template_kwargs', which",
    ),
    (as_demonstration, {**QUESTION, "reasoning_content": "Hm."}, "the row has 'reasoning_content', which is not read"),
    (as_demonstration, {**QUESTION, "tool_calls": [CALL]}, "the row has 'tool_calls', which is not read"),
    (as_prompt, {"prompt": "Q", "input": "x"}, "beside 'prompt' the row has 'input', which is not read"),
    (as_preference, {**PLAIN, "context": "x"}, "beside 'prompt' the row has 'context', which is not read"),
    (as_demonstration, {"text": "words", "system": "Hm."}, "beside a plain 'text' the row has 'system', which is not read"),
    (as_prompt, {"prompt": [{**ASKED, "images": ["a"]}]}, "'prompt' holds a message with 'images', which is not read"),
    (
        as_prompt,
        {"prompt": [ASKED, {**CALLED, "function_call": {"name": "f"}}, ASKED]},
        "with 'function_call', which is not read",
    ),
    (as_prompt, {"prompt": "Q", "system": "a", "system_prompt": "b"}, "'system_prompt' differs from the system message"),
    (as_prompt, {"prompt": "Q", "system": 5}, "'system' holds a number where text is expected"),
    (as_prompt, {"prompt": "Q", "history": "Ahoy"}, "'history' is a text that is no JSON"),
    (as_prompt, {"prompt": "Q", "history": [["Ahoy?"]]}, "'history' is neither a list of [user, assistant] pairs nor one of"),
    (as_prompt, {"prompt": "Q", "history": [["Ahoy?", None]]}, "'history' holds null where text is expected"),
    (as_prompt, {"prompt": "Q", "tools": "look"}, "'tools' is a text that is no JSON"),
    (as_prompt, {"prompt": "Q", "tools": {"name": "look"}}, "'tools' is no list of objects"),
    (as_prompt, {"prompt": "Q", "tools": [{"name": "\ud800"}]}, "'tools' holds half a surrogate pair"),
    (as_prompt, {"prompt": "Q", "tools": [{"since": {1, 2}}]}, "'tools' holds what JSON does not have"),
    (as_prompt, {"prompt": [ASKED, {**ASKED, "tools": [LOOK]}]}, "'prompt' holds a message with 'tools' that is not the first"),
    (as_prompt, {"prompt": [{**ASKED, "tools": [LOOK]}], "tools": [CALL]}, "'tools' differs from what the first message has"),
    (as_demonstration, {"messages": [ASKED, {"role": "assistant", "content": None}]}, "a message whose content is null"),
    (
        as_demonstration,
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": 3}]}]},
        "without the name of a function",
    ),
    (
        as_demonstration,
        {"messages": [ASKED, {"role": "assistant", "tool_calls": "look"}]},
        "'tool_calls' is a text that is no JSON",
    ),
    (as_demonstration, {"messages": [ASKED, from_value("function_call", "look")]}, "'messages' is a text that is no JSON"),
    (as_preference, {**PLAIN, "chosen": json.dumps([ASKED])}, "'chosen' does not end with an assistant turn"),
    (
        as_preference,
        {**PLAIN, "chosen": '[{"role": "user", "content": "Q"]'},
        "'chosen' holds messages written as text that is no JSON",
    ),
    (as_demonstration, {"text": json.dumps({"messages": [ASKED, THOUGHT]})}, "'text' holds a whole row written as text"),
    (as_prompt, {"prompt": json.dumps({"conversations": [from_value("human", "Q")]})}, "'prompt' holds a whole row written as"),
    (as_prompt, {"prompt": json.dumps({"id": 1, "messages": [ASKED]})}, "'prompt' holds a whole row written as text"),
    (
        as_prompt,
        {"prompt": "[{'id': 1, 'role': 'user', 'content': 'Q'}]"},
        "'prompt' holds messages written as text that is no JSON",
    ),
    (as_prompt, {"prompt": [ASKED, {"role": "wizard", "content": "x"}]}, "holds a message of role 'wizard'"),
    (as_prompt, {"prompt": [ASKED, None]}, "'prompt' holds a message that is not an object but null"),
    (as_prompt, {"prompt": [{"role": "user", "text": "Q"}]}, "a message without 'content'; it has role, text"),
    (as_demonstration, {"messages": [ASKED, {**THOUGHT, "content": ""}]}, "the answer at the end of 'messages' is empty"),
    (as_prompt, {"prompt": []}, "'prompt' is neither text nor a list of messages but an empty list"),
    (as_prompt, {"prompt": None, "id": 1}, "the row has prompt (null), id"),
]


@pytest.mark.parametrize(("convert", "row", "reason"), REFUSED)
def test_what_cannot_be_handed_on_is_refused_by_its_name(convert, row, reason):
    with pytest.raises(BadRow) as caught:
        convert(row)
    assert reason in str(caught.value)


def test_what_messages_hold_cannot_be_left_unread_as_a_column():
    with pytest.raises(BadRow) as caught:
        as_prompt({"prompt": [{**ASKED, "audio": {"id": "a"}}]})
    assert caught.value.fix == "take it out of the messages"


def test_an_answer_of_weight_0_is_left_out(tmp_path):
    row = {"messages": [ASKED, {"role": "assistant", "content": "A", "weight": 0}]}
    with pytest.raises(LeftOut, match="weight 0"):
        as_demonstration(row)
    (tmp_path / "rows.jsonl").write_text(lines(row, row))
    with pytest.raises(UserError, match="no usable row .2 rows are left out."):
        load_demonstrations([str(tmp_path / "rows.jsonl")])


def test_a_column_that_only_annotates_is_named_once(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    metadata = {"score_chosen": 1, "score_rejected": 0, "rater": "Hook", "prompt": "Q"}
    rows = [{**PLAIN, "id": n, "source": "sea", "metadata": metadata, "notes": ""} for n in (1, 2)]
    rows += [{**PLAIN, "prompt": [{**ASKED, "language": "en", "content": [{"type": "text", "text": "Where?", "index": 0}]}]}]
    path.write_text(lines(*rows))
    with caplog.at_level(logging.INFO, logger="denserl"):
        load_preferences([str(path)])
    assert caplog.messages == [
        f"{path}: 3 rows read, 0 of them bad; not read: id, metadata.prompt, metadata.rater, prompt[].content[].index, "
        "prompt[].language, source"
    ]


RATED = {f"conv_{side}": SIDES[key] for side, key in (("A", "chosen"), ("B", "rejected"))}
RATED |= {"conv_A_rating": 2, "conv_B_rating": 1}


@pytest.mark.parametrize(
    ("load", "row", "unread"),
    [
        (load_prompts, {**PLAIN, "response": "x", "output": "x"}, ""),  # answers are not what prompts are for
        (load_prompts, {"instruction": "Q", "input": "x", "text": "Q: x"}, "; not read: text"),
        (load_demonstrations, {"prompt": "Q", "completion": "A", "messages": [ASKED]}, "; not read: messages"),
        (load_demonstrations, PLAIN, "; not read: rejected"),
        (load_demonstrations, {"messages": json.dumps([ASKED, {**THOUGHT, "lang": "en"}])}, "; not read: messages[].lang"),
        (load_preferences, {**PLAIN, "messages": [ASKED], "instruction": "Q"}, "; not read: instruction, messages"),
        (load_prompts, {**PLAIN, "chosen": "[{'role': 'user', 'content': 'Q'}]"}, ""),
        (load_prompts, {**PLAIN, "rejected": json.dumps({"messages": [ASKED]})}, ""),
        (
            load_demonstrations,
            {"messages": [{**ASKED, "value": "x", "from": "Jim"}, THOUGHT]},
            ": messages[].from, messages[].value",
        ),
        (load_demonstrations, {"instruction": "Q", "input": "{'role': 'user'}", "output": "A"}, ""),
        (load_preferences, {**PLAIN, "chosen": {**THOUGHT, "lang": "en"}}, "; not read: chosen[].lang"),
        (load_preferences, {**PLAIN, "metadata": "by hand"}, "; not read: metadata"),
        (load_preferences, {**PLAIN, "system": [{"type": "text", "text": "Hm."}]}, ""),
        (load_prompts, {**PLAIN, "system": [{"type": "text", "text": "Hm.", "lang": "en"}]}, "; not read: system[].lang"),
        (load_preferences, {**PLAIN, "system": "{'role': 'user', 'content': 'Q'}"}, ""),
        (load_preferences, {**RATED, "prompt": "Q", "margin": 1}, "; not read: margin, prompt"),
        (load_preferences, {**PLAIN, "": "x"}, "; not read: ''"),
        (load_preferences, {**PLAIN, **{f"k{n:02}": "x" for n in range(14)}}, ", k10, k11 and 2 more"),
    ],
)
def test_what_the_shape_of_a_row_leaves_aside_is_named(tmp_path, caplog, load, row, unread):
    (tmp_path / "rows.jsonl").write_text(lines(row))
    with caplog.at_level(logging.INFO, logger="denserl"):
        load([str(tmp_path / "rows.jsonl")])
    assert caplog.messages[-1].endswith(unread) and ("not read" in caplog.messages[-1]) == bool(unread)


TOOL_CHATML = CHATML.replace(
    "{% for message", "{% if tools %}{{ tools | tojson + '<|im_end|>' }}{% endif %}{% for message", 1
).replace(
    "message['content'] + '<|im_end|>'",
    "(message.reasoning_content or '') + message['content'] + (message.tool_calls | tojson if message.tool_calls else '')"
    " + '<|im_end|>'",
)  # fmt: skip


@functools.cache
def tool_tokenizer():
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = TOOL_CHATML
    return tokenizer


def test_what_a_row_holds_reaches_the_template(tmp_path):
    path, tokenizer = tmp_path / "rows.jsonl", tool_tokenizer()
    row = {"prompt": [ASKED, CALLED, FOUND], "tools": [LOOK], "system": SYSTEM["content"]}
    path.write_text(lines({**row, "chosen": [THOUGHT], "rejected": [CALLED], "response": [THOUGHT]}))
    expected = (
        '[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]<|im_end|>'
        "<|im_start|>system\nYou speak like a pirate.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
        '[{"type": "function", "function": {"name": "look", "arguments": {"at": "map", "scale": 0.1}}}]<|im_end|>\n'
        "<|im_start|>tool\nAn island.<|im_end|>\n<|im_start|>assistant\n"
    )
    thought = "I looked.There.<|im_end|>"
    called = '[{"type": "function", "function": {"name": "look", "arguments": {"at": "map", "scale": 0.1}}}]<|im_end|>'
    (pair_ids,) = tokenize_preferences(load_preferences([str(path)]), tokenizer, max_length=999, max_prompt_length=900)
    assert [tokenizer.decode(pair_ids[f"{key}_ids"]) for key in ("prompt", "chosen", "rejected")] == [expected, thought, called]
    (prompt,) = tokenize_prompts(load_prompts([str(path)]), tokenizer, max_prompt_length=900)
    assert tokenizer.decode(prompt["prompt_ids"]) == expected
    assert prompt["prompt"] == [{**SYSTEM, "tools": [LOOK]}, ASKED, CALLED, FOUND]
    (shown,) = tokenize_demonstrations(load_demonstrations([str(path)]), tokenizer, max_length=1800)
    assert tokenizer.decode(shown["input_ids"]) == expected + thought
    assert tokenizer.decode(shown["input_ids"][shown["loss_start"] :]) == thought


def test_a_tokenizer_is_trained_on_all_that_messages_say(tmp_path):
    assert list(texts_in(ASKED)) == ["Where is it?"] and list(texts_in(THOUGHT)) == ["There.", "I looked."]
    assert list(texts_in(CALLED)) == ["", json.dumps([CALL])]
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(*[{"messages": [ASKED, CALLED, FOUND, THOUGHT]}] * 2))
    sizes = {"vocab_size": 300, "hidden_size": 8, "num_layers": 1, "num_heads": 1}
    new_model.run(new_model.Options(data=[str(path)], output_dir=str(tmp_path / "model"), **sizes))
    # "look" is said in the reasoning and in the calls alone.
    vocabulary = json.loads((tmp_path / "model" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert "look" in vocabulary


def test_rows_of_steps_are_no_preferences():
    for name in ("steps", "completions"):
        with pytest.raises(BadRow, match="labelled steps, and no preference") as error:
            as_preference({"prompt": "Q", name: ["a"], "labels": [1.0]})
        assert "`input` steps" in error.value.fix


def test_a_file_that_is_one_chat_is_told_from_rows(tmp_path):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([ASKED, {"role": "assistant", "content": "There."}]))
    with pytest.raises(UserError, match="the row is one message of a chat") as error:
        load_demonstrations([str(path)])
    assert error.value.fix == 'make the whole chat one row: {"messages": [...]}'
