"""The house itself: rooms import only from rooms above them, and `import denserl` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "denserl"
ROOMS = [
    "errors",
    "terminal",
    "files",
    "distributed",
    "segmentation",
    "data",
    "models",
    "supervised",
    "rewards",
    "ppo_utils",
    "trainer",
    "evaluation",
    "world",
    "cli",
]
HEAVY = ["flash_attn", "peft", "wandb", "bitsandbytes", "matplotlib", "deepspeed"]


def imported(path: Path) -> set[str]:
    """Modules of denserl that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "denserl":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("denserl.")}
    return {name for name in names if name.split(".")[1] in ROOMS}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above_it(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        assert not imported(path)
        return
    below = ROOMS[ROOMS.index(room) + 1 :]
    assert not [name for name in imported(path) if name.split(".")[1] in below]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("denserl", ["torch", "transformers", *HEAVY]),
        ("denserl.cli.main", ["torch", "transformers", *HEAVY]),
        ("denserl.segmentation", ["transformers", "datasets", *HEAVY]),
        ("denserl.ppo_utils.experience", ["transformers", "datasets", *HEAVY]),
        ("denserl.rewards.scoring", HEAVY),
        ("denserl.evaluation.plots", HEAVY),
    ],
)
def test_importing_stays_light(module, unwanted):
    code = f"import sys, {module}; print(*[name for name in {unwanted!r} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.split() == []
