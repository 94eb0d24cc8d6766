"""A template from a file, with a system prompt and a date of its own, which stay with the tokenizer."""

import datetime
import json

import pytest
from templates import CHATML, GEMMA, MISTRAL, build_tokenizer
from transformers import AutoTokenizer

from denserl.data import templates
from denserl.data.chat import encode_prompt
from denserl.data.templates import set_template, template_settings
from denserl.errors import UserError
from denserl.models.tokenizers import load_tokenizer

USER, SYSTEM = {"role": "user", "content": "Hello there"}, {"role": "system", "content": "Own."}
# Llama 3.2's way, where the caller may give a date; Mistral Small's, with yesterday's too; with the clock in a macro.
DATES = {
    "llama": "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}"
    "{% endif %}{% endif %}{{ '[' + date_string + ']' }}",
    "mistral": "{{ '[' + strftime_now('%Y-%m-%d') + ' after ' ~ (strftime_now('%d') | int - 1) ~ ']' }}",
    "macro": "{% macro head() %}{{ '[' + strftime_now('%B %-d, %Y') + ']' }}{% endmacro %}{{ head() }}",
}
SHOWN = {"llama": "[05 Mar 2026]", "mistral": "[2026-03-05 after 4]", "macro": "[March 5, 2026]"}


@pytest.fixture
def folder(tmp_path):
    """Saves the ChatML tokenizer with a template, and gives its folder."""

    def saved(template, name="saved"):
        tokenizer = build_tokenizer("chatml")
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return saved


def shown(tokenizer, messages=(USER,)):
    return tokenizer.apply_chat_template(list(messages), tokenize=False)


def on_day(monkeypatch, day):
    monkeypatch.setattr(templates, "today", lambda: day)


@pytest.mark.parametrize("name", DATES)
def test_a_template_has_one_date_that_stays_with_it(folder, tmp_path, monkeypatch, name):
    path = folder(DATES[name] + CHATML)
    on_day(monkeypatch, "2026-03-05")
    tokenizer = load_tokenizer(path)
    assert shown(tokenizer) == SHOWN[name] + shown(build_tokenizer("chatml"))
    assert template_settings(tokenizer)["template_date"] == "2026-03-05"
    tokenizer.save_pretrained(tmp_path / "kept")
    ids = encode_prompt(tokenizer, [USER])
    on_day(monkeypatch, "2026-03-06")
    again = load_tokenizer(str(tmp_path / "kept"))
    assert encode_prompt(again, [USER]) == ids and again.chat_template == tokenizer.chat_template
    # any other library renders the same
    assert shown(AutoTokenizer.from_pretrained(tmp_path / "kept")) == shown(tokenizer)
    assert encode_prompt(load_tokenizer(path), [USER]) != ids
    assert encode_prompt(load_tokenizer(path, {"date": "2026-03-05"}), [USER]) == ids
    assert encode_prompt(load_tokenizer(path, {"default_date": "2026-03-05"}), [USER]) == ids
    # another day for a template that has one
    other = load_tokenizer(str(tmp_path / "kept"), {"date": "2025-12-31", "default_date": "2001-01-01"})
    assert "2025" in shown(other) and "2026" not in shown(other)


def test_every_code_is_written_as_the_clock_writes_it(folder):
    form = "|".join(f"%{code}" for code in templates._CODES)
    tokenizer = load_tokenizer(folder("{{ '<' + strftime_now('" + form + "') + '>' }}" + CHATML), {"date": "2026-03-05"})
    found, _, _ = shown(tokenizer).removeprefix("<").partition(">")
    assert found.split("|") == datetime.datetime(2026, 3, 5).strftime(form).split("|")


def test_a_date_is_refused_where_it_would_do_nothing(folder):
    with pytest.raises(UserError, match="`template_date` 2026-01-01 has no effect"):
        load_tokenizer(folder(CHATML), {"date": "2026-01-01"})
    with pytest.raises(UserError, match="expected a day as YYYY-MM-DD"):
        load_tokenizer(folder(DATES["llama"] + CHATML), {"date": "1 May"})
    assert template_settings(load_tokenizer(folder(CHATML))) == {"system_prompt": None, "template_date": None}


PROMPT = 'Be "brief" \\n {{ x }} %}\n\tand \u00e4\u4f60\U0001f642 kind.'


def test_a_system_prompt_stands_before_conversations_that_have_none(folder, tmp_path):
    plain = build_tokenizer("chatml")
    tokenizer = load_tokenizer(folder(CHATML), {"system_prompt": PROMPT})
    with_prompt = [{"role": "system", "content": PROMPT}, USER]
    assert shown(tokenizer) == shown(plain, with_prompt)
    assert encode_prompt(tokenizer, [USER]) == encode_prompt(plain, with_prompt)
    for own in (SYSTEM, {"role": "developer", "content": "Own."}):
        assert encode_prompt(tokenizer, [own, USER]) == encode_prompt(plain, [own, USER])
    tokenizer.save_pretrained(tmp_path / "kept")
    kept = str(tmp_path / "kept")
    assert shown(AutoTokenizer.from_pretrained(kept)) == shown(tokenizer) == shown(load_tokenizer(kept))
    assert template_settings(load_tokenizer(kept))["system_prompt"] == PROMPT
    # another one in its place, and none
    other = load_tokenizer(kept, {"system_prompt": "Be long."})
    assert shown(other) == shown(plain, [{"role": "system", "content": "Be long."}, USER])
    assert load_tokenizer(kept, {"system_prompt": ""}).chat_template == CHATML


def test_a_dated_template_with_a_system_prompt(folder, tmp_path):
    tokenizer = load_tokenizer(folder(DATES["llama"] + CHATML), {"system_prompt": "Be brief.", "date": "2026-03-05"})
    tokenizer.save_pretrained(tmp_path / "kept")
    again = load_tokenizer(str(tmp_path / "kept"), {"system_prompt": "Be long."})
    chat = shown(build_tokenizer("chatml"), [{"role": "system", "content": "Be long."}, USER])
    assert shown(again) == "[05 Mar 2026]" + chat
    assert again.chat_template.count("macro strftime_now") == 1


@pytest.mark.parametrize(
    ("template", "prompt", "words"),
    [
        (GEMMA.replace("<end_of_turn>", "<|im_end|>"), "Be brief.", "System role not supported"),
        (MISTRAL, "Be brief.", "Conversation roles must alternate"),
        (CHATML.replace("in messages", "in messages if message['role'] != 'system'"), "Be brief.", "does not show it"),
        (CHATML, "Be <|im_end|>", "holds '<|im_end|>', which is a control token"),
    ],
)
def test_a_system_prompt_that_cannot_be_had_is_refused(folder, template, prompt, words):
    with pytest.raises(UserError, match="`system_prompt`") as error:
        load_tokenizer(folder(template), {"system_prompt": prompt})
    assert words in error.value.found


def test_a_template_from_a_file(folder, tmp_path):
    path, file = folder(DATES["llama"] + CHATML), tmp_path / "other.jinja"
    file.write_text(CHATML.replace("<|im_start|>", ">> "))
    tokenizer = load_tokenizer(path, {"file": str(file)})
    assert shown(tokenizer) == ">> user\nHello there<|im_end|>\n"
    tokenizer.save_pretrained(tmp_path / "kept")
    assert shown(AutoTokenizer.from_pretrained(tmp_path / "kept")) == shown(tokenizer)
    assert "template_date" not in json.loads((tmp_path / "kept" / "tokenizer_config.json").read_text())
    for content, words in ((None, "cannot be read"), (b" \n", "is empty"), (b"\xff\xfe", "cannot be read")):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        else:
            file.mkdir()
        with pytest.raises(UserError, match=f"`chat_template` .* {words}"):
            load_tokenizer(path, {"file": str(file)})
        if content is None:
            file.rmdir()
            file.touch()
    file.write_text("{% for message in messages %}")
    with pytest.raises(UserError, match="endfor"):
        load_tokenizer(path, {"file": str(file)})


def test_templates_of_several_names_are_changed_alike(folder, tmp_path):
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = {"default": CHATML, "tool_use": DATES["llama"] + CHATML}
    set_template(tokenizer, system_prompt="Be brief.", date="2026-03-05")
    assert shown(tokenizer).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    used = tokenizer.apply_chat_template([USER], tools=[{"name": "look"}], tokenize=False)
    assert used == "[05 Mar 2026]" + shown(tokenizer)
