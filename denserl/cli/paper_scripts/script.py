"""What a script does: print its command and become it, or say how it is called."""

import os
import shlex
import sys

from denserl.cli.paper_scripts.command import plan
from denserl.cli.paper_scripts.flags import OWN, REWARD_TYPES
from denserl.cli.paper_scripts.recipes import RECIPES, Recipe
from denserl.cli.paper_scripts.table import read_table
from denserl.errors import UserError
from denserl.terminal import say

LAUNCHERS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}


def main(argv: list[str] | None = None) -> None:
    """Print a recipe's command and become it; DRY_RUN=1 in the environment only prints."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name not in RECIPES:
        say(f"denserl.cli.paper_scripts: no recipe {name!r}; expected one of: {', '.join(RECIPES)}", sys.stderr)
        raise SystemExit(2)
    recipe, dry = RECIPES[name], os.environ.get("DRY_RUN", "") not in ("", "0")
    if not rest or rest[0] in ("-h", "--help"):
        say(usage(name, recipe))
        return
    try:
        lines, notes = plan(name, rest, check_files=not dry)
    except UserError as error:
        say(f"{recipe.script}: {error}", sys.stderr)
        raise SystemExit(2) from None
    for note in notes:
        say(f"# {note}")
    say(" \\\n    ".join(map(shlex.join, lines)))
    if not dry:
        launcher, *words = [word for line in lines for word in line]
        # Replaces this process, so that signals and the exit status are the command's own.
        os.execv(sys.executable, [*LAUNCHERS[launcher], *words])


def usage(name: str, recipe: Recipe) -> str:
    """How a script is called."""
    types = ", ".join(read_table()["model_types"])
    return (
        f"usage: bash examples/scripts/{recipe.script} {' '.join(recipe.arguments)} [--gpus N] [FLAGS]\n"
        f"  e.g. bash examples/scripts/{recipe.script} {recipe.example}\n\n"
        f"  MODEL_TYPE      {types} (denserl/cli/model_types.yaml)\n"
        "  SEGMENT_METHOD  peak\n"
        "  C               entropy threshold: 0 token level, 1000 bandit, between them segments\n"
        "  AGG_FUNC        avg\n"
        + (f"  REWARD_TYPE     {', '.join(REWARD_TYPES)}\n" if "REWARD_TYPE" in recipe.arguments else "")
        + (
            f"  FIT_TAG         a published fit of MODEL_TYPE, or {OWN}: that of the reward model\n"
            if "FIT_TAG" in recipe.arguments
            else ""
        )
        + "  --gpus N        run on N GPUs of this host, through torchrun\n"
        f"  FLAGS           any of `denserl {name} --help`; they replace the recipe's own\n"
        "  DRY_RUN=1 in the environment only prints the command."
    )
