"""verl: dense rewards, (B, T), from `denserl serve-rewards` (verl 0.9, docs/integrations.md).

`ServedRewards` asks, in verl's reward workers. `ServedAgentLoop` samples as verl's loop of single turns does, and lets what
comes of it hold a reward for each token where verl's own holds a number.
"""

from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from denserl.integrations.served import rewards


class ServedRewards(RewardManagerBase):
    """A reward manager that gives each response a list of rewards, one a token."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **of_a_reward_model: Any):
        """As verl makes it; it tells of a reward model of its own too, of which there is none."""
        super().__init__(config, tokenizer, compute_score)

    async def run_single(self, data: Any) -> dict:
        """Of a batch of one response, or of the turns of one conversation, of which the last is scored."""
        item = data[-1]
        length = int(item.batch["attention_mask"][-len(item.batch["responses"]) :].sum())
        ids = item.batch["responses"][:length].tolist()
        ((paid, row),) = await rewards(self.tokenizer, [list(item.non_tensor_batch["raw_prompt"])], [ids])
        told = {"score": row["score"], "segment_count": len(row["segment_ends"])}
        return {"reward_score": paid, "reward_extra_info": told}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: list[list[float]]) -> torch.Tensor:
        """(B, T): the rewards of each response's tokens, 0 behind them."""
        paid = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
        for row, rewards_of_row in zip(paid, scores, strict=True):
            row[: len(rewards_of_row)] = torch.tensor(rewards_of_row)
        return paid


class DenseOutput(AgentLoopOutput):
    """What a loop gives, with `reward_score` a list: a reward for each token of the response."""

    def as_dict(self) -> dict[str, Any]:
        output = AgentLoopOutput.as_dict(self.model_copy(update={"reward_score": None}))
        if self.reward_score is not None:
            output["rm_scores"] = torch.tensor(self.reward_score, dtype=torch.float32)
        return output


class ServedAgentLoop(SingleTurnAgentLoop):
    """The loop of single turns, whose outputs take the lists of `ServedRewards`."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        output = await super().run(sampling_params, **kwargs)
        return DenseOutput.model_construct(output.model_fields_set, **dict(output))
