"""This project's reward-model trainer, as a program beside the peers' ones."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from denserl_side import reward_trainer, train
from serve import StepTalk, Talk, versions

from denserl.trainer.reward_config import RewardConfig


def main() -> None:
    talk = Talk()
    setup = talk.request()
    options = RewardConfig(**setup["options"])
    torch.set_num_threads(setup["threads"])
    trainer = reward_trainer(options, setup["reward_model"], setup["rows"])
    trainer.add_callback(StepTalk(talk, setup["steps"], {"threshold": trainer.segmenter.threshold, **versions()}))
    train(trainer, options)


if __name__ == "__main__":
    main()
