"""The words of the house: messages of the library name options of Python, and sources are those that a reader has."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from denserl.cli.main import COMMANDS
from denserl.config import options_of

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "denserl").rglob("*.py"))
# Beside the command line, flags are the business of one file.
LIBRARY = [path for path in MODULES if not {"cli", "flags.py"} & {*path.relative_to(ROOT / "denserl").parts}]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FLAG = re.compile(r"(?<![\w-])--[a-z]")
# A flag is in its place in a line that a user is to type.
COMMAND = re.compile(r"\b(?:denserl|torchrun|pip|deepspeed|python|hf) ")
# Words in backticks that are no options: attributes of objectives.
NO_OPTIONS = {"reads", "units"}


@pytest.fixture(scope="module")
def library() -> dict[str, ast.AST]:
    """The files of the library, parsed."""
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in LIBRARY}


def literals(tree: ast.AST) -> Iterator[str]:
    """String literals but docstrings; of an f-string its fixed parts, with {} where values go."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield from (text for part in node.values if not isinstance(part, ast.Constant) for text in literals(part))
        else:
            yield from literals(node)


def misplaced_flags(text: str) -> list[str]:
    """The text from each flag on that belongs to no command in its clause."""
    clauses = re.split(r"; |\. |\n", text)
    return [
        clause[found.start() :]
        for clause in clauses
        for found in FLAG.finditer(clause)
        if not COMMAND.search(clause[: found.start()])
    ]


@pytest.mark.parametrize(
    ("text", "misplaced"),
    [
        ("`lr` is 0; add `resume`", 0),
        ("a -- b --- c, well--known", 0),
        ("denserl merge --model BASE --adapter X", 0),
        ("give another port, e.g. torchrun --master_port 29501", 0),
        ("--lr is 0", 1),
        ("run denserl plan; then give --lr", 1),
        ("add (--pairs), or --limit", 2),
    ],
)
def test_flags_are_told_from_commands(text, misplaced):
    assert len(misplaced_flags(text)) == misplaced


def test_literals_are_found_whole():
    source = '"""Doc --x."""\nsay("a " f"b {name:>{width}} --c", {"k": "d"})\ndef f():\n    "--doc"\n    return "e"'
    assert [text for text in literals(ast.parse(source)) if text != "{}" and text] == ["a b {} --c", ">{}", "k", "d", "e"]


def test_messages_of_the_library_name_options_without_dashes(library):
    """The command line turns `lr` into --lr (denserl.cli.options.with_flags)."""
    assert [(path, said) for path, tree in library.items() for text in literals(tree) for said in misplaced_flags(text)] == []


@pytest.fixture(scope="module")
def options() -> set[str]:
    """The names of all commands' options."""
    modules = [importlib.import_module(f"denserl.cli.{name.replace('-', '_')}") for name in COMMANDS]
    return {option.name for module in modules for option in options_of(module.Options)}


def test_words_in_backticks_in_messages_are_options(library, options):
    raised = [
        (path, node)
        for path, tree in library.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("UserError", "require", "NormalizerNotFound")
    ]
    named = [(path, word) for path, call in raised for text in literals(call) for word in re.findall(r"`(\w+)`", text)]
    assert len(named) > 100
    assert [(path, word) for path, word in named if word not in options | NO_OPTIONS] == []


def test_sources_are_those_that_a_reader_has():
    """Papers and pages of docs/, not the notes that the code was written from."""
    notes = re.compile(r"\(specs?[ ,]|\bspec (?:dense-rlhf|grm|evaluation|section)", re.IGNORECASE)
    assert [path for path in (*MODULES, *PAGES) if notes.search(path.read_text(encoding="utf-8"))] == []


def test_the_code_that_the_page_of_formulas_names_is_there():
    """The third column of its table."""
    rows = re.findall(r"^\|(.*)\|$", (ROOT / "docs/numerics.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for row in rows[2:] for name in re.findall(r"`([\w.]+)`", row.split(" | ")[2])]
    assert len(named) >= len(rows) - 2
    for name in named:
        module, _, found = name.rpartition(".")
        assert hasattr(importlib.import_module(module), found), name


def described_arguments(tree: ast.AST) -> Iterator[tuple[str, str, set[str]]]:
    """(function or class, a name under `Args:` of its docstring, names of its arguments and fields)."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        below = ast.walk(node) if isinstance(node, ast.ClassDef) else [node]
        names = {
            arg.arg
            for found in below
            if isinstance(found, ast.FunctionDef)
            for arg in ast.walk(found.args)
            if isinstance(arg, ast.arg)
        }
        names |= {
            field.target.id for field in node.body if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for block in re.findall(r"^Args:\n((?: {4}.*(?:\n|\Z)|\n)*)", ast.get_docstring(node) or "", re.MULTILINE):
            for shown in re.findall(r"^ {4}(\w[\w, *]*):", block, re.MULTILINE):
                yield from ((node.name, name.strip(" *"), names) for name in shown.split(","))


def test_arguments_that_docstrings_describe_are_there():
    """Several of one description stand together: `a, b: (B, T)`."""
    described = [
        (str(path.relative_to(ROOT)), *found)
        for path in MODULES
        for found in described_arguments(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert len(described) > 300
    assert [(path, owner, name) for path, owner, name, names in described if name not in names] == []
