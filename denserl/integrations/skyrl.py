"""SkyRL: a list of rewards for each response, one a token, from `denserl serve-rewards` (SkyRL 0.3, docs/integrations.md)."""

from typing import Any

import skyrl_gym
from skyrl.train.generators.base import GeneratorInput, GeneratorOutput
from skyrl.train.generators.skyrl_gym_generator import SkyRLGymGenerator
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from denserl.integrations.served import rewards

ENVIRONMENT = "served"  # rows of prompts name it as their `env_class`


class OneAnswer(BaseTextEnv):
    """A conversation that is over after one answer; what that is worth is not said here."""

    def __init__(self, env_config: Any = None, extras: dict[str, Any] | None = None):
        super().__init__()

    def step(self, action: str) -> BaseTextEnvStepOutput:
        return BaseTextEnvStepOutput(observations=[], reward=0.0, done=True, metadata={})


class ServedGenerator(SkyRLGymGenerator):
    """SkyRL's generator; rewards of single-turn responses are those of a server."""

    async def generate(self, input_batch: GeneratorInput, disable_tqdm: bool = False) -> GeneratorOutput:
        """`rewards` are lists, each of which adds up to its response's score; `score` is logged of all.

        Raises:
            ValueError: several outputs for one prompt. NoRewards: see there.
        """
        output = await super().generate(input_batch, disable_tqdm)
        prompts, responses = input_batch["prompts"], output["response_ids"]
        if len(prompts) != len(responses):
            raise ValueError(f"{len(responses)} outputs of {len(prompts)} conversations; only single turns are scored")
        found = await rewards(self.tokenizer, prompts, responses)
        output["rewards"] = [paid for paid, _ in found]
        mean = sum(row["score"] for _, row in found) / len(found)
        output["rollout_metrics"] = {**(output["rollout_metrics"] or {}), "served/score": mean}
        return output


if ENVIRONMENT not in skyrl_gym.registry:
    skyrl_gym.register(id=ENVIRONMENT, entry_point=f"{__name__}:OneAnswer")
