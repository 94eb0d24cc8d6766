"""TRL's RewardTrainer (bandit level, padded batches) on tokenised pairs; runs in the environment trl-1.16."""

import json
from pathlib import Path

import torch
import trl
from datasets import Dataset
from serve import StepTalk, Talk, versions
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main() -> None:
    talk = Talk()
    setup = talk.request()
    torch.set_num_threads(setup["threads"])
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(setup["reward_model"], dtype=torch.float32),
        args=trl.RewardConfig(**setup["settings"]),
        train_dataset=Dataset.from_list(json.loads(Path(setup["pairs"]).read_text())),
        processing_class=AutoTokenizer.from_pretrained(setup["reward_model"]),
    )
    trainer.add_callback(StepTalk(talk, setup["steps"], {"trl": trl.__version__, **versions()}))
    trainer.train()


if __name__ == "__main__":
    main()
