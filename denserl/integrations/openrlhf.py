"""OpenRLHF: dense rewards from `denserl serve-rewards` (OpenRLHF 0.11, docs/integrations.md).

Its contract of remote rewards, which the server answers without this file, is one number a response, paid at the end. What
stands here moves that to the ends of segments, where advantages are made.
"""

from collections.abc import Iterator
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_trainer import PPOTrainer
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from denserl.integrations.served import asked, token_rewards


class DenseExperienceMaker(RemoteExperienceMaker):
    """Pays what each segment changes in the score so far where it ends. What a response is paid in all stays OpenRLHF's."""

    _moves: Iterator[torch.Tensor]

    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """As OpenRLHF's, with the estimators that leave the scale of rewards.

        Raises:
            ValueError: with group_norm, which divides what a response is paid. NoRewards: see there.
        """
        if self.advantage_estimator == "group_norm":
            raise ValueError("group_norm divides rewards by their spread in a group; dense ones are left as they are served")
        # The methods below are called for one experience after the other.
        self._moves = iter([self.moved(experience) for experience in experiences])
        return super().compute_advantages_and_returns(experiences)

    def get_advantages_and_returns(self, values, rewards, action_mask, gamma, lambd):
        return super().get_advantages_and_returns(values, rewards + next(self._moves), action_mask, gamma, lambd)

    def get_cumulative_returns(self, rewards, action_mask, gamma):
        return super().get_cumulative_returns(rewards + next(self._moves), action_mask, gamma)

    def moved(self, experience: Experience) -> torch.Tensor:
        """(B, A), 0 in all: at the ends of segments what they change, at the last action less the sum of it."""
        masks = experience.action_mask.bool()
        responses = [row[1:][mask].tolist() for row, mask in zip(experience.sequences, masks, strict=True)]
        written = [prompt + self.tokenizer.decode(ids) for prompt, ids in zip(experience.prompts, responses, strict=True)]
        request = {"query": written, "prompts": experience.prompts, "labels": experience.labels}
        answer = asked("get_segment_rewards", request)
        moves = torch.zeros(masks.shape)
        for move, mask, ids, changes in zip(moves, masks, responses, answer["changes"], strict=True):
            paid = torch.tensor(token_rewards(changes, self._text(ids), ids, self._text))
            if len(paid):
                paid[-1] -= paid.sum()
                move[mask] = paid
        return moves

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


@ray.remote
class DensePPOTrainer(PPOTrainer.__ray_metadata__.modified_class):
    """OpenRLHF's PPO trainer, with those experiences."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        theirs = self.experience_maker
        self.experience_maker: RemoteExperienceMaker = DenseExperienceMaker(
            theirs.actor_model_group,
            theirs.critic_model_group,
            theirs.reward_model_group,
            theirs.initial_model_group,
            theirs.kl_ctl,
            theirs.strategy,
            theirs.tokenizer,
        )
