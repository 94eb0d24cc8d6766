"""This project's PPO trainer, as a program beside the peers' ones; a repetition is an iteration."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from denserl_side import iteration, ppo_trainer
from serve import Talk, versions

from denserl.trainer.ppo_config import PPOConfig


def main() -> None:
    talk = Talk()
    setup = talk.request()
    torch.set_num_threads(setup["threads"])
    trainer = ppo_trainer(PPOConfig(**setup["options"]))
    sampler = Kept(trainer.sampler)
    trainer.sampler = sampler
    talk.answer(**versions())
    while talk.request() is not None:
        start = time.perf_counter()
        metrics = iteration(trainer)
        seconds = time.perf_counter() - start
        phases = {phase: metrics[f"{phase}_seconds"] for phase in ("rollout", "scoring", "update")}
        talk.answer(seconds=seconds, lengths=[len(response) for response in sampler.last.responses], phases=phases)


class Kept:
    """A sampler that keeps what it sampled last."""

    def __init__(self, sampler):
        self.sampler, self.last = sampler, None

    def __call__(self, prompts, streams):
        self.last = self.sampler(prompts, streams)
        return self.last


if __name__ == "__main__":
    main()
