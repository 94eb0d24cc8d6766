"""`denserl score`: where texts come from, where numbers go, and what is shown acts on no terminal and runs on no page."""

import io
import json
import re

import pytest
import tiny_models
from html_pages import Page
from plain_scores import ANSWERS, PROMPT

import denserl
from denserl.cli import score
from denserl.data.conversations import as_conversation
from denserl.errors import UserError
from denserl.scored.terminal import in_words, wants_colour
from denserl.scored.words import signed

HOSTILE = "<script>alert(1)</script>\x1b[31mred\u202e & <b>\r\n\nend."


def run(capsys, **options) -> str:
    tiny_models.run_command(score, "score", tiny_models.as_argv(options))
    return capsys.readouterr().out


def test_files_hold_what_is_shown(models, tmp_path, capsys):
    """The same numbers at the terminal, in JSON lines and on the page."""
    texts = {"prompt": PROMPT, "response": ANSWERS, "reward_model": models.segment}
    out = run(capsys, **texts, jsonl=tmp_path / "s.jsonl", html=tmp_path / "s.html")
    (row,) = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())
    assert json.loads(run(capsys, **texts, jsonl="-")) == row
    page = Page((tmp_path / "s.html").read_text())
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", (tmp_path / "s.html").read_text())
    titles = page.values("title")
    segments = [segment for response in row["responses"] for segment in response["scores"][0]["segments"]]
    assert len(segments) == len(titles) > 4
    for segment, title in zip(segments, titles, strict=True):
        shown = [signed(segment[name]) for name in ("raw", "normalised", "change")]
        assert title.startswith(f"raw {shown[0]}, normalised {shown[1]}, change {shown[2]}; adds ")
        assert any(line.split()[:3] == shown for line in out.splitlines()) and set(shown) <= set(cells)
    (found,) = row["comparisons"]
    for part in found["parts"]:
        assert signed(part["adds"]) in cells
    first, *_ = found["parts"]
    text = row["responses"][first["side"] or 0]["scores"][0]["segments"][first["segment"]]
    block = out[out.index("what decides") :].splitlines()
    assert block[1].split()[:2] == [signed(first["adds"]), signed(text["raw"])]
    assert f"by {signed(abs(found['difference']))[1:]}" in out
    assert "\x1b" not in out


def test_standard_input_is_a_response_or_a_chat(models, monkeypatch, capsys):
    def read(text: bytes, **options) -> dict:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        return json.loads(run(capsys, **options, reward_model=models.segment, jsonl="-"))

    expected = json.loads(json.dumps(denserl.score(ANSWERS[0], PROMPT, reward_model=models.segment).to_dict()))
    assert read(f"{ANSWERS[0]}\n".encode(), prompt=PROMPT) == expected
    talk = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]
    assert read(json.dumps(talk).encode()) == expected
    with pytest.raises(UserError, match="response cannot be scored: .* empty conversation(.|\n)*before it with --prompt"):
        read(b"Just a text.")
    for text, message in ((b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "no UTF-8")):
        with pytest.raises(UserError, match=message):
            read(text)


def test_rows_of_files_are_read_in_every_shape(models, tmp_path, capsys):
    rows = [
        {"prompt": PROMPT, "chosen": ANSWERS[0], "rejected": ANSWERS[1]},
        {"prompt": PROMPT, "response": ANSWERS[1], "ended": False},
        {"messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = run(capsys, data=path, reward_model=models.segment, jsonl="-").splitlines()
    pair, cut, talk = map(json.loads, lines)
    assert [response["name"] for response in pair["responses"]] == ["chosen", "rejected"] and pair["comparisons"]
    assert not cut["responses"][0]["ended"] and not cut["comparisons"]
    scored = [line["responses"][i]["scores"][0]["score"] for line, i in ((pair, 0), (talk, 0))]
    assert scored[0] == pytest.approx(scored[1], abs=3e-6)
    assert len(run(capsys, data=path, reward_model=models.segment, limit=1, jsonl="-").splitlines()) == 1


def test_a_row_of_several_responses_names_them():
    found = as_conversation({"prompt": "Why?", "responses": ["a", "b", "c"]})
    assert found.names == ["response 1", "response 2", "response 3"] and found.ended == [True] * 3


def test_hostile_texts_are_shown_and_do_nothing(models, tmp_path, capsys):
    out = run(capsys, prompt=HOSTILE, response=HOSTILE, reward_model=models.token, html=tmp_path / "s.html", colour="always")
    seen = re.sub(r"\x1b\[(1|0|38;5;16;48;5;\d+)m", "", out)
    assert "‹U+001B›" in seen and "‹U+202E›" in seen and not set(seen) & set("\x1b\u202e\r")
    page = Page((tmp_path / "s.html").read_text())
    assert "script" not in page.tags and "<script>alert(1)</script>‹U+001B›[31mred‹U+202E› & <b>" in page.text
    html = denserl.score(HOSTILE, HOSTILE, reward_model=models.token)._repr_html_()
    fragment = Page(html)
    assert not {"script", "html", "link", "img"} & set(fragment.tags) and "‹U+202E›" in fragment.text


def up_and_down(prompts, responses):
    return [[(5, 2.0), (8, 0.0), (len(text), -2.0)] for text in responses]


def test_responses_without_steps_are_shown_as_such(models):
    found = denserl.score(["", " "], PROMPT, reward_model=models.step)
    for shown in (str(found), found._repr_html_()):
        assert shown.count("without steps") == 2 and "both score the same" in shown


def test_colours_are_where_a_terminal_is_and_follow_the_numbers(monkeypatch):
    found = denserl.score("good so bad", reward_function="test_score_command:up_and_down")
    coloured, plain = in_words([found], True, 100), in_words([found], False, 100)
    assert "\x1b" not in plain
    flow = next(line for line in coloured.splitlines() if line.startswith("\x1b[38"))
    # Black on blue, on white, on orange.
    expected = ((110, "good "), (231, "so "), (215, "bad"))
    assert flow == "".join(f"\x1b[38;5;16;48;5;{code}m{text}\x1b[0m" for code, text in expected)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not wants_colour("auto") and wants_colour("always") and not wants_colour("never")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colour("auto")
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not wants_colour("auto")


def test_no_line_of_the_columns_is_wider_than_the_terminal():
    found = denserl.score(["word " * 60, "so good or bad"], reward_function="test_score_command:up_and_down")
    rows = [line for line in in_words([found], False, 70).splitlines() if re.match(r" +[+-]\d", line)]
    assert max(map(len, rows)) == 70 and any(row.endswith("…") for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response": ["a", "b", "c"]}, "--response has 3 texts"),
        ({"response": "a", "data": "rows.jsonl"}, "--response .* has no effect beside --data"),
        ({"response": "a", "html": "/no/such/folder/p.html"}, "the folder /no/such/folder does not exist"),
        ({"response": "a", "html": "{tmp}"}, "is a folder"),
        ({"response": "a", "jsonl": "-", "colour": "always"}, "--colour always has no effect with --jsonl -"),
        ({"data": "not-there.jsonl"}, "there is no file or folder 'not-there.jsonl'"),
        ({"prompt": '[{"role": "user"', "response": "a"}, "a"),
    ],
)
def test_mistakes_name_the_flag(models, tmp_path, capsys, options, message):
    given = {name: str(value).format(tmp=tmp_path) if value == "{tmp}" else value for name, value in options.items()}
    if options == {"prompt": '[{"role": "user"', "response": "a"}:
        assert "[{" in run(capsys, **given, reward_model=models.segment)  # a text like any other
        return
    with pytest.raises(UserError, match=message):
        run(capsys, **given, reward_model=models.segment)
