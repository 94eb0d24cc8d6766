"""TRL's experimental PPOTrainer on tokenised prompts; runs in the environment trl-1.12."""

import json
from pathlib import Path

import torch
import trl
from datasets import Dataset
from serve import StepTalk, Talk, versions
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Lengths:
    """Keeps the lengths of the responses that were sampled last."""

    def __init__(self, generation):
        self.generation, self.last = generation, []

    def __call__(self, model, queries, rows, pad_id, config):
        sequences, logits = self.generation(model, queries, rows, pad_id, config)
        self.last = (sequences[:, queries.shape[1] :] != pad_id).sum(1).tolist()
        return sequences, logits


def main() -> None:
    talk = Talk()
    setup = talk.request()
    torch.set_num_threads(setup["threads"])
    tokenizer = AutoTokenizer.from_pretrained(setup["model"], padding_side="left")

    def classifier(folder: str):
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)

    lengths = ppo_trainer.batch_generation = Lengths(ppo_trainer.batch_generation)
    trainer = PPOTrainer(
        args=PPOConfig(**setup["settings"]),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(setup["model"], dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(setup["model"], dtype=torch.float32),
        reward_model=classifier(setup["reward_model"]),
        value_model=classifier(setup["model"]),
        train_dataset=Dataset.from_dict({"input_ids": json.loads(Path(setup["prompts"]).read_text())}),
    )
    about = {"trl": trl.__version__, **versions()}
    trainer.add_callback(StepTalk(talk, 1, about, lambda: {"lengths": lengths.last}))
    trainer.train()


if __name__ == "__main__":
    main()
