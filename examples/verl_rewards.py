"""Rewards of `denserl serve-rewards` in verl, on the tokens where segments end. It needs nothing of denserl. In verl's options:

reward.reward_manager.source=importlib reward.reward_manager.name=Served
reward.reward_manager.module.path=examples/verl_rewards.py
"""

import asyncio
import json
import os
from urllib.request import Request, urlopen

import torch
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

URL = os.environ.get("REWARDS_URL", "http://127.0.0.1:8000/rewards")
HEADERS = {"Authorization": f"Bearer {os.environ.get('REWARDS_TOKEN', '')}"}


class Served(RewardManagerBase):
    """A response's reward is the mean of its segments' scores, each of which is paid its share where it ends."""

    async def run_single(self, data) -> dict:
        item = data[0]
        length = int(item.batch["attention_mask"][-len(item.batch["responses"]) :].sum())
        ids = item.batch["responses"][:length].tolist()
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        (row,) = await asyncio.to_thread(asked, [list(item.non_tensor_batch["raw_prompt"])], [text])
        rewards, token = [0.0] * length, 0
        for end, score in zip(row["segment_ends"], row["segment_scores"]):
            while not self.tokenizer.decode(ids[: token + 1], skip_special_tokens=True).startswith(text[:end]):
                token += 1
            rewards[token] += score / len(row["segment_ends"])
        return {"reward_score": rewards, "reward_extra_info": {"score": row["score"]}}

    @classmethod
    def assemble_rm_scores(cls, data, scores) -> torch.Tensor:
        """(B, T): the rewards of each response's tokens, 0 behind them."""
        paid = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
        for row, rewards in zip(paid, scores):
            row[: len(rewards)] = torch.tensor(rewards)
        return paid


def asked(prompts, responses) -> list[dict]:
    body = json.dumps({"prompts": prompts, "responses": responses}).encode()
    with urlopen(Request(URL, body, HEADERS), timeout=180) as answer:
        return json.load(answer)["rewards"]
