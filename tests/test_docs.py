"""Every command that README, docs and scripts show is parsed here, so that none of them can go stale."""

import importlib
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import tiny_models
import torch
import yaml

from denserl.cli import make_world, paper_scripts
from denserl.cli.main import COMMANDS
from denserl.cli.names import check_names
from denserl.cli.options import parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {recipe.script: name for name, recipe in paper_scripts.RECIPES.items()}


def shown_commands(path: Path) -> list[str]:
    """The lines of a page's bash blocks, or of a script, with continuation lines joined."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if path.suffix == ".md" else [text]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def denserl_words(command: str) -> tuple[str, list[str]] | None:
    """(command, arguments) of a line that runs denserl, plainly, as a module, or through a launcher."""
    words = shlex.split(command, comments=True)
    for i, word in enumerate(words):
        if word == "denserl" and i + 1 < len(words):
            return words[i + 1], words[i + 2 :]
        if word.startswith("denserl.cli.") and word != "denserl.cli.main":
            return word.removeprefix("denserl.cli.").replace("_", "-"), words[i + 1 :]
    return None


def cases():
    for page in PAGES:
        for command in shown_commands(page):
            yield pytest.param(page, command, id=f"{page.name}: {command[:60]}")


def inline_commands(page: Path) -> list[str]:
    """What stands in the text of a page as `denserl ...`."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"(?<!`)`denserl ([^`]+)`(?!`)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_the_text_names_have_the_flags_that_stand_beside_them(page):
    """They are shortened, so that what must be given is not asked for."""
    for shown in inline_commands(page):
        name, *words = shown.split("|")[0].split()
        if name == "COMMAND":
            continue
        assert name in COMMANDS, shown
        options = importlib.import_module(f"denserl.cli.{name.replace('-', '_')}").Options
        flags = [word for word in words if word.startswith("--") and word != "--config"]  # which every command has
        check_names(options, f"denserl {name} --help", flags)


@pytest.mark.parametrize(("page", "command"), list(cases()))
def test_shown_command_is_understood(page, command):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "bash" and Path(words[1]).name in SCRIPTS:
        assert (ROOT / words[1]).is_file()
        lines, _ = paper_scripts.plan(SCRIPTS[Path(words[1]).name], words[2:], check_files=False)
        assert any(word.startswith("denserl.cli.") for word in lines[0])
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[0] in ("pip", "git"):
        pass
    elif words[0] == "python" and words[1].startswith("examples/"):
        assert (ROOT / words[1]).is_file()
    elif words[0].endswith("python") and (own := [w for w in words if w.split("/")[0] in ("benchmarks", "tests")]):
        assert all((ROOT / path).exists() for path in own)
    else:
        name, arguments = denserl_words(command)
        assert name in COMMANDS
        module = importlib.import_module(f"denserl.cli.{name.replace('-', '_')}")
        assert isinstance(parse(module.Options, name, arguments), module.Options)


@pytest.mark.parametrize(("script", "count"), [("real_text.sh", 10), ("real_model.sh", 15)])
def test_commands_of_the_scripts_on_real_text_are_understood(script, count):
    lines = shown_commands(ROOT / "examples/scripts" / script)
    arrays = dict(re.findall(r"^(\w+)=\((.*)\)$", "\n".join(lines), re.MULTILINE))
    shown = [line for line in lines if line.startswith("denserl ")]
    assert len(shown) == count
    for line in shown:
        for name, value in arrays.items():
            line = line.replace(f'"${{{name}[@]}}"', value)
        name, arguments = denserl_words(line)
        module = importlib.import_module(f"denserl.cli.{name.replace('-', '_')}")
        parse(module.Options, name, arguments)


def test_the_model_types_of_the_page_are_those_of_the_table():
    rows = re.findall(
        r"^\| `(\w[\w-]*)` \| (?:`([^`]+)`|[^|]+) \| ([\d.]+) \|$",
        (ROOT / "docs/published_models.md").read_text(),
        re.MULTILINE,
    )
    table = yaml.safe_load(paper_scripts.TABLE.read_text())["model_types"]
    assert {name for name, _, _ in rows} == set(table)
    assert all(model == table[name]["sft_model"] for name, model, _ in rows if model)


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as hosts of repositories and the site name them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {re.sub(r"[^\w -]", "", title.strip()).lower().replace(" ", "-") for title in titles}


def test_local_links_lead_somewhere():
    for page in PAGES:
        for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in headings(target), f"{page.name}: {link}#{anchor}"


def test_the_site_leads_to_every_page():
    """What else holds of the site, `make docs` finds."""

    class Loader(yaml.SafeLoader):
        """Of mkdocs.yml, which makes a Python object of a setting."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    listed = [name for part in nav for names in part.values() for name in names]
    missing = {str(page.relative_to(ROOT)) for page in PAGES} - set(listed)
    assert not missing, f"name it under `nav` in mkdocs.yml, where a reader would look for it: {', '.join(sorted(missing))}"
    assert len(listed) == len(set(listed)) == len(PAGES)


def python_of(page: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return block


def test_the_python_of_the_page_trains_a_reward_model_and_runs_ppo(tmp_path, monkeypatch, capsys):
    block = python_of("docs/python.md")
    assert len(block.strip().splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    make_world.run(make_world.Options(output_dir="runs/world", scale=0.02))
    with tiny_models.restored_environment():
        exec(block, {})
    assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1
    rows = [json.loads(line) for line in (tmp_path / "runs/python-ppo/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all(math.isfinite(row["reward"]) for row in rows)
    assert (tmp_path / "runs/python-rm/model.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    named = re.findall(r"(?<![\w/.])((?:tests|denserl|benchmarks|examples)/[\w/.-]*\w)", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists() and name != "tests/ROOM"] == []


def test_the_python_of_the_numerics_page_runs():
    block = python_of("docs/numerics.md")
    shown = {
        "entropy": torch.tensor([[0.0, 2.0, 0.0, 3.0, 0.0]]),
        "response_mask": torch.ones(1, 5),
        "token_scores": torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]),
    }
    exec(block, shown)
    # Segments: token 0, tokens 1-2, token 3 (the end-of-turn token after it is in none), read at tokens 0, 2 and 3.
    assert shown["score"].item() == pytest.approx((1 + 3 + 4) / 3)
    # The last segment stands at p = 1, where ln p = 0: (4 - 0.4705) / 2.8339.
    assert shown["rewards"][0, 2].item() == pytest.approx((4 - 0.4705) / 2.8339, rel=1e-5)
    # Running means 1, 2 and 8 / 3; the second segment has two tokens.
    assert shown["paid"][0].tolist() == pytest.approx([1, 0, 1, 2 / 3, 0], rel=1e-6)
    assert shown["published"][0, 3].item() == pytest.approx((4 - 0.4705) / 2.8339, rel=1e-5)


def test_every_paper_that_is_cited_is_in_the_table_of_papers():
    sources = [*PAGES, *(ROOT / "denserl").rglob("*.py"), *(ROOT / "denserl").rglob("*.yaml")]
    number = re.compile(r"(?<![\d.])\d{4}\.\d{5}(?!\d)")  # of arXiv; no other number is written so
    cited = {found for path in sources for found in number.findall(path.read_text(encoding="utf-8"))}
    told = re.findall(r"arxiv\.org/abs/([\d.]+)\)", (ROOT / "docs/papers.md").read_text(encoding="utf-8"))
    assert len(cited) > 35 and cited <= set(told), cited - set(told)


def test_every_row_of_papers_names_tests_that_are_there():
    rows = re.findall(r"^\| .* \|$", (ROOT / "docs/papers.md").read_text(encoding="utf-8"), re.MULTILINE)
    made = [row for row in rows if row.count(" | ") == 3 and not row.startswith(("| paper", "| ---"))]
    assert len(made) > 40
    for row in made:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for path, name in named:
            assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


def test_every_command_is_in_the_table_of_commands():
    rows = re.findall(r"^\| (`[a-z].*?) \|", (ROOT / "docs/commands.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)} >= set(COMMANDS)
