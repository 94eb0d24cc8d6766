"""denserl: learn dense rewards from preferences and train language models against them.

Importing it loads nothing heavy; the public names, listed in __init__.pyi, are fetched where they are first used.
"""

import sys
from typing import Any

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Where modules of version 0.1 are now; asking for the old name says so until version 0.3.
_MOVED = {
    "supervised": "denserl.trainer.supervised_trainer",
    "rewards.rm_trainer": "denserl.trainer.reward_trainer",
    "rewards.scoring": "denserl.rewards.pair_metrics",
    "rewards.fit": "denserl.rewards.normalizer_fit",
    "rewards.ensemble": "denserl.rewards.sources.base and denserl.rewards.sources.reward_model",
    "trainer.supervised_run": "denserl.trainer.run_folder",
    "trainer.rollout": "denserl.rollouts.base and denserl.rollouts.policy",
    "models.memory": "denserl.memory.formulas",
    "models.dry_run": "denserl.memory.meta_pass",
    "data.rows": "denserl.data.schemas",
    "data.sources": "denserl.data.readers",
    "data.entropies": "denserl.data.reference_cache",
    "evaluation.report": "denserl.report.build and denserl.report.demo",
    "evaluation.pairwise": "denserl.evaluation.statistics",
    "evaluation.reading": "denserl.evaluation.suites.rows",
    "evaluation.hhh": "denserl.evaluation.suites.hhh",
    "evaluation.llmbar": "denserl.evaluation.suites.llmbar",
    "evaluation.mtbench": "denserl.evaluation.suites.mtbench",
    "evaluation.rewardbench": "denserl.evaluation.suites.rewardbench",
    "evaluation.rmb": "denserl.evaluation.suites.rmb",
    "cli.common": "denserl.cli.options and denserl.cli.launch",
    "cli.recipes": "denserl.cli.paper_scripts",
    "cli.effects": "denserl.config",
    "cli.training": "denserl.trainer.start and denserl.trainer.supervised",
    "cli.reward_models": "denserl.rewards.config and denserl.rewards.sources.build",
    "cli.stages": "denserl.cli.pipeline",
    "cli.shortages": "denserl.cli.resource_errors",
    "cli.phases": "denserl.memory.phases",
}


class _Moved:
    """Says where a module of an earlier version is now, when it is imported under its old name."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        old = name.removeprefix("denserl.")
        if name.startswith("denserl.") and old in _MOVED:
            raise ImportError(f"{name} is now {_MOVED[old]} (CHANGELOG.md)")


sys.meta_path.append(_Moved)
