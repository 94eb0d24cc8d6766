"""The house itself: rooms import only from rooms above them, files in no circle, commands are short, importing stays light."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import denserl

PACKAGE = Path(__file__).parent.parent / "denserl"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = [
    "errors",
    "terminal",
    "markdown",
    "files",
    "distributed",
    "plugins",
    "streams",
    "http",
    "intervals",
    "pages",
    "config",
    "flags",
    "levels",
    "steps",
    "segmentation",
    "data",
    "models",
    "memory",
    "rollouts",
    "rewards",
    "judging",
    "ppo_utils",
    "trainer",
    "evaluation",
    "inspection",
    "scored",
    "world",
    "serving",
    "integrations",
    "report",
    "cli",
]
HEAVY = ["flash_attn", "peft", "wandb", "bitsandbytes", "matplotlib", "deepspeed"]
WITHOUT_PEFT = [name for name in HEAVY if name != "peft"]
LONGEST_COMMAND = 150  # lines


def module_of(path: Path) -> str:
    """denserl/data/chat.py -> denserl.data.chat; a package is named by its folder."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Modules of denserl that a file imports, anywhere in it, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "denserl":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("denserl.")}
    # `from denserl.data import chat` names a module, `from denserl.data.chat import f` one of its functions.
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} - {"denserl"}


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """Module -> those that it imports."""
    return {module: imported(path) for module, path in MODULES.items()}


def test_a_room_imports_only_from_rooms_above_it(arrows):
    assert not arrows["denserl"]
    pairs = [(one, other) for one in arrows for other in arrows[one]]
    rooms = [[ROOMS.index(module.split(".")[1]) for module in pair] for pair in pairs]
    assert [pair for pair, (one, other) in zip(pairs, rooms, strict=True) if other > one] == []


def test_no_files_import_one_another_in_a_circle(arrows):
    graph = {module: names - {module} for module, names in arrows.items()}
    assert sum(map(len, graph.values())) > 300  # arrows are seen at all
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_a_command_parses_builds_and_runs_and_is_short():
    files = sorted((PACKAGE / "cli").rglob("*.py"))
    assert [path.name for path in files if len(path.read_text().splitlines()) > LONGEST_COMMAND] == []


def test_the_bandit_threshold_is_written_once():
    def written(path: Path) -> list[int]:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        return [node.lineno for node in nodes if isinstance(node, ast.Constant) and node.value in (1000, 1000.0)]

    found = {str(path.relative_to(PACKAGE)): lines for path in FILES if (lines := written(path))}
    # Other thousands: rows of a chunk, resamples, ratings, and the like.
    others = {
        "data/features.py",
        "evaluation/config.py",
        "evaluation/policies/arena.py",
        "evaluation/policies/clusters.py",
        "evaluation/suites/processbench.py",
        "world/make.py",
        "world/make_sums.py",
    }
    assert set(found) - others == {"levels.py"} and len(found["levels.py"]) == 1


# Each process imports its modules one after the other; what none may have brought by then. peft is brought by transformers'
# Trainer where it is installed.
COMMANDS = {
    name: ["torch", "transformers", *HEAVY] for name in ("denserl.cli.main", "denserl.cli.train_ppo", "denserl.cli.train_rm")
}
LIBRARY = {
    "denserl": ["torch", "transformers", "numpy", "denserl.cli", *HEAVY],
    "denserl.segmentation": ["transformers", "datasets", "denserl.cli", *HEAVY],
    "denserl.ppo_utils.experience": ["transformers", "datasets", "denserl.cli", *HEAVY],
    "denserl.rewards.pair_metrics": ["denserl.cli", *HEAVY],
    "denserl.evaluation.plots": ["denserl.cli", *HEAVY],
    "denserl.rewards.scorer": ["denserl.cli", *HEAVY],
    "denserl.trainer.reward_trainer": ["denserl.cli", *WITHOUT_PEFT],
    "denserl.trainer.ppo_trainer": ["denserl.cli", *WITHOUT_PEFT],
}
IMPORTING = """
import importlib, sys
import denserl
for module, unwanted in MODULES.items():
    importlib.import_module(module)
    print(module, *(name for name in unwanted if name in sys.modules))
[getattr(denserl, name) for name in denserl.__all__ if LIBRARY]
print("all public names", *(name for name in ["denserl.cli"] if LIBRARY and name in sys.modules))
"""


@pytest.mark.parametrize("modules", [COMMANDS, LIBRARY], ids=["commands", "library"])
def test_importing_stays_light_and_every_public_name_is_there(modules):
    code = IMPORTING.replace("MODULES", repr(modules)).replace("LIBRARY", str(modules is LIBRARY))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.splitlines() == [*modules, "all public names"]
    assert {"RewardTrainer", "PPOTrainer", "segment_by_entropy", "RewardConfig", "PPOConfig"} <= {*dir(denserl)}


@pytest.mark.parametrize("old", sorted(denserl._MOVED))
def test_a_module_of_an_earlier_version_says_where_it_is_now(old):
    with pytest.raises(ImportError, match=f"denserl.{old} is now (.*) \\(CHANGELOG.md\\)") as error:
        importlib.import_module(f"denserl.{old}")
    new = str(error.value).split(" is now ")[1].removesuffix(" (CHANGELOG.md)")
    assert all(importlib.import_module(name) for name in new.split(" and "))
