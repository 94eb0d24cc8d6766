"""Hostile text on the terminal: messages, logs of any library, complaints about options."""

import ast
import dataclasses
import io
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostile import TERMINAL_TEXTS, TEXTS, acting

import denserl
from denserl.cli import main, paper_scripts
from denserl.cli.launch import launch
from denserl.config import Config
from denserl.data.preferences import load_preferences
from denserl.errors import Stopped, UserError
from denserl.terminal import InertRecord, say, visible

HOSTILE = "".join(TERMINAL_TEXTS)


@dataclass(kw_only=True)
class Options(Config):
    """Options of a command that only these tests have."""

    name: str = ""
    """A text."""
    size: int = 1
    """A number."""


def run_launch(run, argv: list[str], capfd) -> tuple[int, str]:
    """Exit status, and all that came out."""
    with pytest.raises(SystemExit) as ended:
        launch(Options, "try", run, argv)
    return ended.value.code, "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "text, expected",
    [
        ("plain é 漢字 🙂", "plain é 漢字 🙂"),
        ("a\nb", "a\nb"),
        ("a\tb\r", "a‹U+0009›b‹U+000D›"),
        ("\x1b[31mred\x00", "‹U+001B›[31mred‹U+0000›"),
        ("\x7f\x9b", "‹U+007F›‹U+009B›"),
        ("\u202eevil\u2066", "‹U+202E›evil‹U+2066›"),
        ("a\u200bb\ufeff", "a‹U+200B›b‹U+FEFF›"),
        ("\u2028\ud800", "‹U+2028›‹U+D800›"),
        ("\U000e0041\ue000", "‹U+E0041›‹U+E000›"),
        ("👨\u200d👩", "👨\u200d👩"),
    ],
)
def test_visible(text, expected):
    assert visible(text) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_every_hostile_text_is_only_shown(text, capfd):
    say(text)
    out = capfd.readouterr().out
    assert not acting(out)
    assert visible(text, kept="").count("\n") == 0
    named = re.sub("‹U\\+[0-9A-F]+›", "", out)
    assert [c for c in named if c.isprintable()] == [c for c in text if c.isprintable()]  # what shows is there as it was


def test_a_users_mistake_is_told_without_acting(capfd):
    def run(options):
        raise UserError(f"found {HOSTILE}", f"mend {HOSTILE}")

    status, shown = run_launch(run, [], capfd)
    assert status == 2 and not acting(shown) and "found ‹U+001B›[2J" in shown and "\n  fix: mend ‹U+001B›[2J" in shown


def test_a_stop_is_told_without_acting(capfd):
    def run(options):
        raise Stopped(f"stopped {HOSTILE}")

    status, shown = run_launch(run, [], capfd)
    assert status == 75 and not acting(shown) and "stopped ‹U+001B›[2J" in shown


@pytest.mark.parametrize(
    "name", ["denserl.data.readers", "transformers.modeling_utils", "datasets.builder", "DeepSpeed", "elsewhere"]
)
def test_logs_of_every_library_are_only_shown(name, capfd):
    """Also where a library writes with a handler of its own."""
    own, logger = io.StringIO(), logging.getLogger(name)
    handler = logging.StreamHandler(own)

    def run(options):
        logger.addHandler(handler)
        logger.error("text: %s", HOSTILE)
        logger.error(HOSTILE)
        raise UserError("done")

    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        _, shown = run_launch(run, [], capfd)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert not acting(own.getvalue()) and own.getvalue().count("‹U+001B›[2J") == 2
    assert not acting(shown)


def test_a_fault_and_a_warning_are_told_without_acting(tmp_path):
    """In a process of its own: the last word of a fault of the program is Python's."""
    program = tmp_path / "faulty.py"
    program.write_text(
        "import warnings\n"
        "from denserl.cli.launch import launch\n"
        "from denserl.config import Config\n"
        "from hostile import TERMINAL_TEXTS\n"
        "HOSTILE = ''.join(TERMINAL_TEXTS)\n"
        "def run(options):\n"
        "    warnings.warn('careful ' + HOSTILE)\n"
        "    raise KeyError(HOSTILE) from RuntimeError(HOSTILE)\n"
        "launch(Config, 'try', run, [])\n"
    )
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, program], env={**os.environ, **path}, capture_output=True, timeout=60)
    shown = ended.stderr.decode()
    assert ended.returncode == 1 and "careful ‹U+001B›[2J" in shown and "RuntimeError: ‹U+001B›[2J" in shown
    assert "KeyError" in shown and "faulty.py" in shown and not acting(shown)


@pytest.mark.parametrize(
    "argv",
    [[HOSTILE], ["--" + HOSTILE], ["--size", HOSTILE], ["--size", "1\r"], ["--config", HOSTILE], ["--config", "settings.yaml"]],
    ids=["word", "flag", "value", "number", "config", "inside config"],
)
def test_complaints_about_options_are_only_shown(tmp_path, monkeypatch, argv, capfd):
    monkeypatch.chdir(tmp_path)
    # YAML's own escapes; it knows no half surrogate pairs
    Path("settings.yaml").write_text(json.dumps({HOSTILE.encode(errors="ignore").decode(): 1}))
    ran = []
    status, shown = run_launch(ran.append, argv, capfd)
    assert status == 2 and shown and not acting(shown) and not ran


def test_a_hostile_value_reaches_the_command_as_it_is(capfd):
    seen = []
    launch(Options, "try", seen.append, ["--name", HOSTILE])
    assert seen == [Options(name=HOSTILE)] and dataclasses.fields(seen[0])
    assert not acting("".join(capfd.readouterr()))


def test_an_unknown_command_and_recipe_are_only_shown(capfd):
    for command in (main.main, paper_scripts.main):
        with pytest.raises(SystemExit) as ended:
            command([HOSTILE])
        shown = capfd.readouterr().err
        assert ended.value.code == 2 and shown and not acting(shown)


BAD_ROWS = [
    {"prompt": [{"role": HOSTILE, "content": "q"}], "chosen": "a", "rejected": "b"},
    {"prompt": [{"role": "x" * 1_000_000, "content": "q"}], "chosen": "a", "rejected": "b"},
    {"prompt": {HOSTILE: HOSTILE}, "chosen": HOSTILE, "rejected": HOSTILE},
]


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are bytes only on POSIX")
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_bad_rows_of_a_hostile_file_are_told_without_acting(tmp_path, policy, capfd):
    path = tmp_path / os.fsdecode(b"\xff\xfe \x1b[2J\r\n\xe2\x80\xae .jsonl")
    path.write_text("\n".join(map(json.dumps, BAD_ROWS)) + "\n{\x1b[2J")
    status, shown = run_launch(lambda options: load_preferences([str(path)], on_bad_row=policy), [], capfd)
    assert status == 2 and "bad rows" in shown and not acting(shown)
    assert len(shown) < 5000  # a row is quoted, not repeated
    if policy == "stop":
        listed = [line for line in shown.split("\n") if "jsonl:" in line]
        assert [line.split("jsonl:")[1].split(":")[0] for line in listed] == ["1", "2", "3", "4"]


def test_many_reasons_are_not_all_listed(tmp_path, capfd):
    path = tmp_path / "rows.jsonl"
    turns = ([{"role": f"r{i}", "content": "q"}] for i in range(1000))
    path.write_text("\n".join(json.dumps({"prompt": prompt, "chosen": "a", "rejected": "b"}) for prompt in turns))
    status, shown = run_launch(lambda options: load_preferences([str(path)], on_bad_row="skip"), [], capfd)
    assert status == 2 and "1000 bad rows" in shown and len(shown) < 5000


def test_a_row_of_a_hostile_file_knows_its_place(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\n\x1b.jsonl")
    path.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}))
    (row,) = load_preferences([str(path)])
    assert row["place"] == f"{tmp_path}/‹U+DCFF›‹U+000A›‹U+001B›.jsonl:1"


def test_of_escapes_colours_alone_can_be_kept(capsys):
    say("\x1b[1mbold\x1b[0m \x1b[2J\x1b]0;title\x07", coloured=True)
    say("\x1b[1mbold")
    assert capsys.readouterr().out == "\x1b[1mbold\x1b[0m ‹U+001B›[2J‹U+001B›]0;title‹U+0007›\n‹U+001B›[1mbold\n"


def test_everything_is_printed_through_say():
    """A print elsewhere may only be of words that stand in the code, or of the name of a signal."""
    package = Path(denserl.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert found <= {"terminal.py", "trainer/stopping.py"}


def test_a_record_keeps_its_arguments():
    record = InertRecord("name", logging.INFO, __file__, 1, "%s %d", ("\x1b", 3), None)
    assert record.getMessage() == "‹U+001B› 3" and record.args == ("\x1b", 3)
