"""Several reward models of the same pairs, which differ in the order of rows and in the head they begin with.

How far they agree on a pair says how sure its label is (docs/noisy_labels.md); together they are an ensemble.
"""

import dataclasses
import logging
from pathlib import Path

from denserl.config import options_of
from denserl.errors import require
from denserl.rewards.members import MEMBERS_FILE, member_folder
from denserl.rewards.objectives import all_labels
from denserl.trainer.members_config import MembersConfig
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_labels import measured_file, measures_strength
from denserl.trainer.reward_making import make_objectives
from denserl.trainer.reward_pairs import load_pairs
from denserl.trainer.several import (
    Record,
    Train,
    begin,
    common_settings,
    common_tokenizer,
    evaluation_of,
    let_go,
    own_config,
    train_once,
)

log = logging.getLogger(__name__)


@dataclasses.dataclass
class MembersRecord(Record):
    """What is known of the members so far, as `read_members` reads it."""

    asked: int
    folds: int | None
    fold_seed: int
    members: list[dict] = dataclasses.field(default_factory=list)  # seed, left_out, evaluation of each that is trained


def train_members(config: RewardConfig, train: Train = train_once) -> dict[str, float]:
    """Train `members` models, each into a folder of its own; members.json tells of them. `resume` goes on where it was ended.

    All learn from the same rows, with the same labels turned round by `flip_frac`, or from all folds but one.

    train: trains what the config of a member says, and returns its evaluation metrics.

    Returns: the means of the members' evaluation metrics.

    Raises:
        UserError: options, or data, that do not go together.
    """
    require(config.members, "no `members` are asked for", "say how many to train")
    _, dtype, before = begin(config, MEMBERS_FILE, MembersRecord)
    parts = load_pairs(config, all_labels(make_objectives(config)))
    tokenizer = common_tokenizer(config, before)
    contents = dict(zip(("data", "held-out rows"), parts, strict=True))
    settings, config = common_settings(config, before, tokenizer, dtype, contents)
    told = MembersRecord(
        Path(config.output_dir) / MEMBERS_FILE,
        settings,
        config.members,
        config.strength_folds,
        config.seed_of_data(),
        before.members if before is not None else [],
    )
    told.write()
    for number in range(len(told.members), config.members):
        own = _config_of(config, number)
        metrics = evaluation_of(train(own))
        let_go()
        told.members = [*told.members, {"seed": own.seed, "left_out": own.leave_out_fold, **metrics}]
        told.write()
    return _means(told)


def _config_of(config: RewardConfig, number: int) -> RewardConfig:
    """The config of a member's own training."""
    plain = {option.name: option.default for option in options_of(MembersConfig)}
    plain |= {"seed": config.seed + number, "data_seed": config.seed_of_data()}
    if measures_strength(config):
        plain |= {"strength_from": [str(measured_file(config))]}
    if config.strength_folds:
        plain |= {"strength_folds": config.strength_folds, "leave_out_fold": number % config.strength_folds}
    return own_config(config, member_folder(Path(config.output_dir), number), **plain)


def _means(told: MembersRecord) -> dict[str, float]:
    """The means of the members' metrics, with their range said of accuracies."""
    names = [name for name, value in told.members[0].items() if name.startswith("eval_") and isinstance(value, float)]
    means = {name: sum(one[name] for one in told.members) / len(told.members) for name in names}
    found = [one["eval_accuracy"] for one in told.members]
    how = f", each without one of {told.folds} folds" if told.folds else ""
    log.info(
        "%s: %d members%s, of accuracy %.3f to %.3f, %.3f on average",
        told.path.parent, len(found), how, min(found), max(found), means["eval_accuracy"],
    )  # fmt: skip
    return means
