"""What the fuzz tests share: arbitrary texts and rows, what must hold of what is made of them, and how much is tried."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from templates import END_OF_TURN, NAMES, SPECIAL_TOKENS

MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3"  # what denserl.data.chat keeps for itself
PLACEHOLDER = "\ufdef"  # what these tests keep for themselves
SURROGATES = [chr(code) for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF)]
# Near misses of control tokens, template syntax, marks of tokenizers, and characters that normalisation changes or removes.
TRICKS = [
    "{{ 7*7 }}", "{% raise %}", "{%- endfor %}", "{# #}", "{{ raise_exception('x') }}", "\n\nHuman: ", "\n\nAssistant: ",
    "<|im_", "end|>", "<", "|>", "<|", "</", "</think>", "<think>", "[INST]", "[/INST]", "<0x0A>", "▁", "Ġ", "Ċ",
    "＜|im_end|＞", "<|IM_END|>", "＜/s＞", "e\u0301", "\u00e9", "ﬁ", "\u212b", "\u1e9e", "İ", "\ufffd", "\uffff",
    "\u0000", "\x1b[2J", "\r", "\x85", "\u2028", "\u200b", "\u202e", "\ufeff", "\U0001f468\u200d\U0001f469",
    "\n", "\n\n", " ", "   ", "\t", "\u00a0", "\u3000",
]  # fmt: skip
CONTROL_TOKENS = sorted({text for name in NAMES for text in SPECIAL_TOKENS[name]})
characters = st.characters(exclude_categories=["Cs"], exclude_characters=MARKS + PLACEHOLDER)
valid_pieces = st.one_of(st.sampled_from(CONTROL_TOKENS), st.sampled_from(TRICKS), st.text(characters, max_size=6))
pieces = st.one_of(valid_pieces, st.sampled_from([*MARKS, *SURROGATES]))
texts = st.lists(valid_pieces, max_size=8).map("".join)
rough_texts = st.lists(pieces, max_size=8).map("".join)

ROLES = [
    "system",
    "user",
    "assistant",
    "human",
    "gpt",
    "tool",
    "",
    "USER",
    "developer",
    "function_call",
    "observation",
    "wizard",
]
KEYS = [
    "prompt", "chosen", "rejected", "messages", "conversations", "instruction", "input", "text", "response", "completion",
    "score_chosen", "score_rejected", "role", "content", "from", "value", "place", "output", "margin", "system", "history",
    "tools", "documents", "tool_calls", "reasoning_content", "name", "function", "arguments", "type",
    "images", "metadata", "weight",
]  # fmt: skip
numbers = st.one_of(st.integers(), st.floats(allow_nan=True), st.just(10**400))
scalars = st.one_of(st.none(), st.booleans(), numbers, rough_texts)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": rough_texts})
calls = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": rough_texts, "arguments": scalars})})
messages = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": st.one_of(rough_texts, scalars)}),
    st.fixed_dictionaries({"from": st.sampled_from(ROLES), "value": rough_texts}),
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES), "content": st.one_of(st.none(), st.lists(parts, max_size=2))},
        optional={"tool_calls": st.lists(calls, max_size=2), "reasoning_content": rough_texts, "name": rough_texts},
    ),
)
dialogues = st.lists(st.tuples(st.sampled_from(["\n\nHuman: ", "\n\nAssistant: "]), rough_texts), max_size=4).map(
    lambda turns: "".join(who + text for who, text in turns)
)
values = st.recursive(
    st.one_of(scalars, dialogues, st.lists(messages, max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)),
    max_leaves=6,
)
loose_rows = st.one_of(values, st.dictionaries(st.sampled_from(KEYS), values, max_size=6))
prompts = st.one_of(rough_texts, st.lists(messages, min_size=1, max_size=3))
near_rows = st.fixed_dictionaries(
    {"prompt": prompts, "chosen": rough_texts, "rejected": rough_texts},
    optional={
        "score_chosen": numbers,
        "score_rejected": numbers,
        "messages": st.lists(messages, max_size=3),
        "system": rough_texts,
        "history": st.lists(st.lists(rough_texts, min_size=2, max_size=2), max_size=2),
        "tools": st.lists(calls, max_size=2),
    },
)
filled = texts.filter(str.strip)
turns = st.lists(st.tuples(filled, filled), max_size=2).map(
    lambda pairs: [m for q, a in pairs for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
)
asked = st.tuples(turns, filled).map(lambda parts: [*parts[0], {"role": "user", "content": parts[1]}])
answered = st.tuples(asked, filled).map(lambda parts: [*parts[0], {"role": "assistant", "content": parts[1]}])
good_rows = st.one_of(
    st.fixed_dictionaries({"prompt": st.one_of(filled, asked), "chosen": filled, "rejected": filled}),
    st.fixed_dictionaries({"prompt": asked, "response": filled}, optional={"system": filled}),
    st.fixed_dictionaries({"messages": answered}),
    st.fixed_dictionaries({"text": filled}),
)
rows = st.one_of(loose_rows, near_rows, good_rows)

chances = st.one_of(st.booleans(), st.floats(0, 1), st.sampled_from(["+", "-", "0.5", None]), numbers)
labels = st.lists(st.one_of(st.sampled_from([True, "-", 0.5]), chances), max_size=3)
marked = st.lists(st.one_of(filled, st.sampled_from(["Step 1:", " ки\n", "ки"])), max_size=4).map("".join)
completions = st.fixed_dictionaries({"text": filled, "rating": st.sampled_from([-1, 0, 1, None])})
rated_steps = st.fixed_dictionaries(
    {"completions": st.lists(completions, max_size=2), "chosen_completion": st.sampled_from([None, 0, 0, 1])},
    optional={"human_completion": st.one_of(st.none(), st.fixed_dictionaries({"text": filled}))},
)
signs = st.sampled_from(["+", "-", "-", "?"])
signed = st.lists(st.tuples(filled, signs), max_size=3).map(
    lambda pairs: [
        turn for step, sign in pairs for turn in ({"role": "user", "content": step}, {"role": "assistant", "content": sign})
    ]
)
asked_twice = st.tuples(filled, signed).map(lambda parts: [{"role": "user", "content": f"{parts[0]} Step 1: "}, *parts[1][1:]])
several = {key: st.lists(filled, max_size=3) for key in ("steps", "completions", "answers")}
step_rows = st.one_of(
    st.fixed_dictionaries({"prompt": filled, "labels": labels}, optional={**several, "response": marked, "final": chances}),
    st.tuples(filled, marked, labels).map(lambda parts: {"input": f"{parts[0]}Step 1:{parts[1]}a ки", "labels": parts[2]}),
    st.tuples(filled, marked, signs).map(
        lambda parts: {"input": (text := f"{parts[0]}Step 1: {parts[1]}ки"), "label": text.replace("ки", parts[2])}
    ),
    st.fixed_dictionaries({"conversations": asked_twice}, optional={"question": rough_texts}),
    st.fixed_dictionaries(
        {
            "question": st.fixed_dictionaries({"problem": filled}),
            "label": st.fixed_dictionaries({"steps": st.lists(rated_steps, max_size=3)}),
        }
    ),
    loose_rows,
)

given_ratings = st.one_of(numbers, st.sampled_from([0, 3, "4", "N/A", True, None]), values)
named = {name: given_ratings for name in ("helpfulness", "is_safe", "attributes", "rating_chosen", "model", "rating")}
rated_objects = st.fixed_dictionaries({"response": st.one_of(filled, scalars)}, optional=named)
rated_rows = st.one_of(
    st.fixed_dictionaries({"prompt": prompts, "response": filled}, optional=named),
    st.fixed_dictionaries({"prompt": filled, "chosen": filled, "rejected": filled}, optional=named),
    st.fixed_dictionaries({"instruction": filled, "completions": st.lists(st.one_of(rated_objects, values), max_size=3)}),
    st.fixed_dictionaries({"input": filled, "generations": st.lists(rough_texts, max_size=2), "rating": labels}),
    st.fixed_dictionaries(
        {"prompt": filled, "responses": st.lists(rated_objects, max_size=2), "annotations": values, "preference": values}
    ),
    loose_rows,
)
tags = st.sampled_from(["[CONTEXT] ", " [RESPONSE A] ", " [RESPONSE B] ", "\n\n<turn> user\n ", " \n"])
both = st.one_of(
    st.lists(st.one_of(filled, tags), max_size=9).map("".join),
    filled.map(lambda text: f"[CONTEXT] \n\n<turn> user\n {text}\n [RESPONSE A] a [RESPONSE B] b \n"),
)
pair_rows = st.one_of(
    st.fixed_dictionaries(
        {"prompt": prompts, "response_1": filled, "response_2": filled, "preference_strength": given_ratings}
    ),
    st.tuples(both, st.one_of(st.sampled_from(["A", "B"]), rough_texts)).map(
        lambda parts: {"messages": [{"role": role, "content": text} for role, text in zip(("user", "assistant"), parts)]}
    ),
)


def explore(check, examples: int, **strategies) -> None:
    """Try a check on that many examples, the same on every run."""
    tried = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    tried(given(**strategies)(check))()


def conversation_is_sound(messages: list[dict]) -> bool:
    return all(message_is_sound(message) for message in messages)


def message_is_sound(message: dict) -> bool:
    """It has what templates need, and is of JSON's kinds and valid Unicode throughout."""
    known = message["role"] in ("system", "developer", "user", "assistant", "tool")
    return known and isinstance(message["content"], str) and is_unicode(json.dumps(message, ensure_ascii=False))


def response_is_sound(response: str | dict) -> bool:
    """A text, or a message with more than its content; it says something."""
    if isinstance(response, str):
        return bool(response.strip()) and is_unicode(response)
    says = response["content"].strip() or response.get("tool_calls")
    return bool(says) and message_is_sound(response) and response["role"] == "assistant" and len(response) > 2


def is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def end_of_turn(tokenizer, name: str) -> int:
    return tokenizer.convert_tokens_to_ids(END_OF_TURN[name])


def closes_once(ids: list[int], end: int) -> bool:
    """The end of turn is there once, at the end, and something is before it."""
    return len(ids) > 1 and ids.index(end) == len(ids) - 1
