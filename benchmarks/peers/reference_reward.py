"""The reference's way to train a dense reward model: in every step, the reference language model gives the entropies.

Padded batches in random order; a forward of the frozen model with whole logits; a plain loop on stock classes and AdamW.
"""

import json
import time
from pathlib import Path

import torch
from serve import Talk, versions
from torch.nn.functional import log_softmax, logsigmoid, pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from denserl.rewards.aggregation import aggregate
from denserl.segmentation import segment_by_entropy, segment_scores


class Loop:
    """Optimiser steps over pairs. Each takes `step_pairs` of them, `micro_pairs` at a time."""

    def __init__(self, setup: dict):
        self.setup, self.pairs = setup, json.loads(Path(setup["pairs"]).read_text())
        load = {"dtype": torch.float32}
        self.model = AutoModelForSequenceClassification.from_pretrained(setup["reward_model"], **load).train()
        self.reference = AutoModelForCausalLM.from_pretrained(setup["model"], **load).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), setup["lr"], tuple(setup["betas"]), weight_decay=0.0, fused=True
        )
        self.generator = torch.Generator().manual_seed(0)

    def epoch(self) -> None:
        """Every pair once."""
        order = torch.randperm(len(self.pairs), generator=self.generator).tolist()
        size, micro = self.setup["step_pairs"], self.setup["micro_pairs"]
        for step in (order[first : first + size] for first in range(0, len(order), size)):
            for first in range(0, len(step), micro):
                (self.loss([self.pairs[row] for row in step[first : first + micro]]) / len(step)).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.setup["max_grad_norm"])
            self.optimizer.step()
            self.optimizer.zero_grad()

    def loss(self, rows: list[dict]) -> torch.Tensor:
        """Sum of the Bradley-Terry losses of some pairs."""
        sequences = [torch.tensor(row[f"{side}_ids"]) for side in ("chosen", "rejected") for row in rows]
        prompts = torch.tensor([row["prompt_length"] for row in rows] * 2)
        ids = pad_sequence(sequences, batch_first=True, padding_value=self.setup["pad_id"])
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        place = torch.arange(ids.shape[1])
        attention, response = place < lengths[:, None], (place >= prompts[:, None]) & (place < lengths[:, None])
        entropy = self.entropy(ids, attention)
        hidden = self.model.model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
        scores = self.model.score(hidden).squeeze(-1)
        # Responses to the left edge, as the segmentation wants them.
        start = response.long().argmax(1)
        index = (start[:, None] + place).clamp(max=ids.shape[1] - 1)
        mask = place < response.sum(1, keepdim=True)
        segments = segment_by_entropy(entropy.gather(1, index), mask, self.setup["threshold"])
        rewards = segment_scores(scores.gather(1, index), segments)
        chosen, rejected = aggregate(rewards, segments.counts).chunk(2)
        return -logsigmoid(chosen - rejected).sum()

    @torch.no_grad()
    def entropy(self, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """(B, S): the entropy of the distribution that predicts each token."""
        logprobs = log_softmax(self.reference(input_ids=ids, attention_mask=attention, use_cache=False).logits, -1)
        return pad(-(logprobs.exp() * logprobs).sum(-1)[:, :-1], (1, 0))


def main() -> None:
    talk = Talk()
    setup = talk.request()
    torch.set_num_threads(setup["threads"])
    loop = Loop(setup)
    talk.answer(**versions())
    while talk.request() is not None:
        start = time.perf_counter()
        loop.epoch()
        talk.answer(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
