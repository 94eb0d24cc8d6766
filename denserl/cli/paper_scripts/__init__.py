"""The scripts in examples/scripts: from their positional arguments to one full denserl command, printed and run.

Models, data and hyper-parameters of each model type are in model_types.yaml; training is the commands' business.
"""

from denserl.cli.paper_scripts.command import plan
from denserl.cli.paper_scripts.recipes import RECIPES
from denserl.cli.paper_scripts.script import main
from denserl.cli.paper_scripts.table import TABLE, read_table

__all__ = ["RECIPES", "TABLE", "main", "plan", "read_table"]
