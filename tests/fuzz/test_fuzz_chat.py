"""Any text through the chat encoders: refused, or exactly where it belongs, and never a control token."""

import functools
import time

import jinja2
import pytest
from fuzzing import MARKS, PLACEHOLDER, closes_once, end_of_turn, explore, is_unicode, rough_texts, texts
from hypothesis import strategies as st
from templates import CHATML, NAMES, SPECIAL_TOKENS, build_tokenizer
from tokenizers import AddedToken, normalizers

from denserl.data.chat import encode_pair, encode_prompt, encode_response, encode_text
from denserl.data.schemas import BadRow

tokenizer_of = functools.lru_cache(build_tokenizer)
BYTE_LEVEL = ["llama3", "qwen25", "chatml"]  # these give every text back to the character
TRIMMING = ["llama3", "gemma"]
TURNS = ["user", "assistant", "user", "assistant"]
LENGTHS = [pytest.param(30, id="short"), pytest.param(500, id="long", marks=pytest.mark.long)]


def conversation(contents: list[str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in zip(TURNS, contents)]


def rendering(name: str, contents: list[str], answer: str | None = None) -> str:
    """The template rendered by jinja alone, with placeholders in the place of all contents, which are put in afterwards."""
    given = contents if answer is None else [*contents, answer]
    turns = [{"role": role, "content": f"{PLACEHOLDER}{i}{PLACEHOLDER}"} for i, (role, _) in enumerate(zip(TURNS, given))]
    tokenizer = tokenizer_of(name)
    text = jinja2.Template(tokenizer.chat_template).render(
        messages=turns, add_generation_prompt=answer is None, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token
    )
    for i, content in enumerate(given):
        text = text.replace(f"{PLACEHOLDER}{i}{PLACEHOLDER}", content.strip() if name in TRIMMING else content)
    return text


def as_read(name: str, text: str) -> str:
    """The text as far as the tokenizer tells it apart: sentencepiece takes its mark for a space, some tokens eat spaces."""
    return text if name in BYTE_LEVEL else "".join(text.replace("▁", " ").split())


def decoded(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def control_counts(tokenizer, name: str, ids: list[int]) -> dict[str, int]:
    return {text: ids.count(tokenizer.convert_tokens_to_ids(text)) for text in SPECIAL_TOKENS[name]}


HARMLESS = ["Hello there", "Yes.", "What is it?"]


@pytest.mark.parametrize("examples", LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_response_are_the_rendering_and_no_more(name, examples):
    tokenizer = tokenizer_of(name)
    harmless = control_counts(tokenizer, name, encode_prompt(tokenizer, conversation(HARMLESS)))

    def check(contents, answer):
        messages = conversation(contents)
        prompt, response = encode_prompt(tokenizer, messages), encode_response(tokenizer, messages, answer)
        assert control_counts(tokenizer, name, prompt) == harmless
        end = end_of_turn(tokenizer, name)
        assert sum(control_counts(tokenizer, name, response).values()) == 1
        assert response.index(end) == len(response) - 1
        whole = rendering(name, contents, answer)
        assert as_read(name, decoded(tokenizer, prompt)) == as_read(name, rendering(name, contents))
        own = answer.strip() if name in TRIMMING else answer
        assert as_read(name, decoded(tokenizer, response[:-1])) == as_read(name, own)
        assert as_read(name, whole).startswith(as_read(name, decoded(tokenizer, prompt + response)))

    explore(check, examples, contents=st.lists(texts, min_size=3, max_size=3), answer=texts)


@pytest.mark.parametrize("examples", LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_only_text_that_is_no_unicode_or_holds_a_mark_is_refused(name, examples):
    tokenizer = tokenizer_of(name)

    def check(question, answer):
        try:
            prompt = encode_prompt(tokenizer, conversation(["a", "b", question]))
            response = encode_response(tokenizer, conversation(["a", "b", question]), answer)
            encode_text(tokenizer, question)
        except BadRow:
            assert not is_unicode(question + answer) or set(MARKS) & set(question + answer)
            return
        whole = as_read(name, rendering(name, ["a", "b", question], answer))
        assert whole.startswith(as_read(name, decoded(tokenizer, prompt + response)))
        own = answer.strip() if name in TRIMMING else answer
        assert as_read(name, decoded(tokenizer, response[:-1])) == as_read(name, own)

    explore(check, examples, question=rough_texts, answer=rough_texts)


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("answer", ["a{}b", "a{}b<|im_end|>", "{}<|im_end|>", "\n\n{}b", "<|im_end|>{}1\ufdd2"])
def test_a_mark_in_the_text_is_refused_or_kept(answer, mark):
    tokenizer, answer = tokenizer_of("chatml"), answer.format(mark)
    try:
        response = encode_response(tokenizer, conversation(HARMLESS), answer)
    except BadRow as error:
        assert "noncharacter" in str(error)
        return
    assert decoded(tokenizer, response) == answer + "<|im_end|>"


@pytest.mark.parametrize("examples", LENGTHS)
@pytest.mark.parametrize("name", ["phi3", "llama3", "mistral"])
def test_truncation_keeps_the_turn_closed_and_the_sides_alike(name, examples):
    tokenizer = tokenizer_of(name)
    end = end_of_turn(tokenizer, name)

    def check(question, answers, max_length, share):
        messages = [{"role": "user", "content": question}]
        whole = encode_prompt(tokenizer, messages)
        max_prompt_length = int(max_length * share)
        try:
            prompt, responses = encode_pair(tokenizer, messages, answers, max_length, max_prompt_length)
        except BadRow as error:
            assert "no token" in str(error)
            return
        assert whole[len(whole) - len(prompt) + 1 :] == prompt[1:] and len(prompt) >= min(len(whole), max_prompt_length)
        cut, opens = len(prompt) < len(whole), whole[0] == tokenizer.bos_token_id
        assert not prompt or prompt[0] == (whole[0] if opens or not cut else whole[len(whole) - len(prompt)])
        for answer, response in zip(answers, responses, strict=True):
            assert closes_once(response, end) and len(prompt) + len(response) <= max_length
            assert encode_response(tokenizer, messages, answer)[: len(response) - 1] == response[:-1]
        assert [ids.count(end) for ids in responses] == [1, 1]

    pair = st.lists(texts, min_size=2, max_size=2)
    explore(check, examples, question=texts, answers=pair, max_length=st.integers(2, 120), share=st.floats(0, 1))


@pytest.mark.parametrize("examples", LENGTHS)
@pytest.mark.parametrize(
    "normalizer", [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("▁", "")], ids=["NFKC", "lower", "remove"]
)
def test_a_tokenizer_that_normalises_makes_no_control_token_either(normalizer, examples):
    """Tokens flagged `normalized` are looked for in the normalised text, where typed near misses have become their equals."""
    tokenizer = build_tokenizer("chatml")
    tokenizer.backend_tokenizer.normalizer = normalizer
    special = [AddedToken(text, normalized=True, special=True) for text in SPECIAL_TOKENS["chatml"]]
    tokenizer.add_tokens(special, special_tokens=True)
    assert tokenizer.chat_template == CHATML
    end = end_of_turn(tokenizer, "chatml")
    ids = tokenizer("＜|im_end|＞<|IM_END|><|im▁_end|>", add_special_tokens=False).input_ids
    assert ids.count(end) == 1  # the trap is set: each of the normalisers makes the token of one of these

    def check(contents, answer):
        messages = conversation(contents)
        prompt, response = encode_prompt(tokenizer, messages), encode_response(tokenizer, messages, answer)
        counts = control_counts(tokenizer, "chatml", prompt)
        assert counts == {"<|endoftext|>": 0, "<|im_start|>": 4, "<|im_end|>": 3}
        assert response.index(end) == len(response) - 1
        assert decoded(tokenizer, response[:-1]) == normalizer.normalize_str(answer)

    typed = st.sampled_from(["＜|im_end|＞", "<|IM_END|>", "<|im▁_end|>", "＜｜im_start｜＞", "<|Im_Start|>"])
    traps = st.lists(st.one_of(typed, texts), max_size=4).map("".join)
    explore(check, examples, contents=st.lists(traps, min_size=3, max_size=3), answer=traps)


LONG = ["a", " ", "\n", "<|im_end|>", "<", "ab ", "\u00e9", "{{", "(((", "\n\nHuman: ", "\u0301", "\U0001f600"]


@pytest.mark.parametrize("name", ["phi3", pytest.param("qwen25", marks=pytest.mark.long)])
def test_time_grows_with_the_length(name):
    """Ten times the text takes less than thirty times as long: nothing here is quadratic."""
    tokenizer = tokenizer_of(name)
    encode_prompt(tokenizer, conversation([*HARMLESS[:2], "warm <|im_end|> up <|end|>"]))
    for text in LONG:
        short, long = ("q" + text * (n // len(text)) + "." for n in (3_000, 30_000))
        limit = 30 * max(min(seconds(tokenizer, short) for _ in range(3)), 0.002)
        assert any(seconds(tokenizer, long) < limit for _ in range(3)), repr(text)


def seconds(tokenizer, text: str) -> float:
    """Of this process's own time, to which whatever else runs on the machine only adds: the least of some is the truest."""
    start = time.process_time()
    encode_response(tokenizer, [{"role": "user", "content": text}], text)
    return time.process_time() - start
