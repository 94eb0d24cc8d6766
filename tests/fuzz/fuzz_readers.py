"""Coverage-guided fuzzing of the readers and the chat encoders, by hand and for as long as one likes; pytest does not run it.

    pip install atheris
    export PYTHONPATH=tests:tests/data:tests/fuzz
    mkdir corpus && python tests/fuzz/fuzz_readers.py corpus -max_total_time=600 -timeout=20 -max_len=3000

An input is a byte that chooses what to fuzz, and the bytes of a file, or the texts of a conversation, for it. Anything but a
refusal, and every broken promise, stops it and leaves the input behind. The corpus keeps what reached new code.
"""

import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["denserl"]):
    from denserl.data.chat import encode_pair, encode_prompt, encode_text
    from denserl.data.demonstrations import load_demonstrations, tokenize_demonstrations
    from denserl.data.preferences import load_preferences, tokenize_preferences
    from denserl.data.prompts import load_prompts, tokenize_prompts
    from denserl.data.readers import DATA_SUFFIXES
    from denserl.data.schemas import BadRow
    from denserl.errors import UserError

from fuzzing import MARKS, closes_once, conversation_is_sound, end_of_turn, is_unicode
from templates import NAMES, SPECIAL_TOKENS, build_tokenizer

LENGTH, PROMPT_LENGTH = 64, 24
TOKENIZERS = {name: build_tokenizer(name) for name in NAMES}
HARMLESS = [{"role": "user", "content": "Hello"}]


def fuzz_file(name: str, suffix: str, content: bytes) -> None:
    """The bytes as a file of rows of each kind, read and tokenised."""
    tokenizer, end = TOKENIZERS[name], end_of_turn(TOKENIZERS[name], name)
    path = FOLDER / f"rows{suffix}"
    path.write_bytes(content)
    for load, tokenize, sizes in (
        (load_preferences, tokenize_preferences, {"max_length": LENGTH, "max_prompt_length": PROMPT_LENGTH}),
        (load_demonstrations, tokenize_demonstrations, {"max_length": LENGTH}),
        (load_prompts, tokenize_prompts, {"max_prompt_length": PROMPT_LENGTH}),
    ):
        try:
            dataset = load([str(path)], on_bad_row="skip")
            assert all(conversation_is_sound(row["prompt"]) for row in dataset)
            rows = tokenize(dataset, tokenizer, on_bad_row="skip", **sizes)
        except UserError:
            continue
        for row in rows:
            for side in {"chosen_ids", "rejected_ids"} & set(row):
                assert closes_once(row[side], end) and len(row["prompt_ids"]) + len(row[side]) <= LENGTH
            if row.get("loss_start"):
                assert closes_once(row["input_ids"][row["loss_start"] :], end)


def fuzz_chat(name: str, question: str, answer: str) -> None:
    """The texts as a conversation: no control token but the template's own, the answer given back, its turn closed."""
    tokenizer, end = TOKENIZERS[name], end_of_turn(TOKENIZERS[name], name)
    control = set(tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[name]))
    try:
        messages = [{"role": "user", "content": question}]
        prompt, (response,) = encode_pair(tokenizer, messages, [answer], 10**6, 10**6 - 2)
        encode_text(tokenizer, question)
    except BadRow as error:
        empty = "no token" in str(error) and not answer.strip()
        assert empty or not is_unicode(question + answer) or set(MARKS) & set(question + answer)
        return
    assert closes_once(response, end) and not control & set(response[:-1])
    harmless = encode_prompt(tokenizer, HARMLESS)
    assert [i for i in prompt if i in control] == [i for i in harmless if i in control]
    kept = tokenizer.decode(response[:-1], clean_up_tokenization_spaces=False)
    assert "".join(kept.replace("▁", " ").split()) == "".join(answer.replace("▁", " ").split())


def fuzz(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    name = NAMES[provider.ConsumeIntInRange(0, len(NAMES) - 1)]
    choice = provider.ConsumeIntInRange(0, 2 * len(DATA_SUFFIXES) - 1)  # half of the time a conversation
    if choice < len(DATA_SUFFIXES):
        fuzz_file(name, DATA_SUFFIXES[choice], provider.ConsumeBytes(provider.remaining_bytes()))
    else:
        half = provider.remaining_bytes() // 2
        fuzz_chat(name, provider.ConsumeUnicode(half), provider.ConsumeUnicode(provider.remaining_bytes()))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder)
        atheris.Setup(sys.argv, fuzz)
        atheris.Fuzz()
