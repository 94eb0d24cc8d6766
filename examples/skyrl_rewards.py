"""SkyRL's training with dense rewards of `denserl serve-rewards`; options are SkyRL's own (docs/integrations.md):

python examples/skyrl_rewards.py trainer.policy.model.path=SFT_MODEL ... environment.env_class=served
"""

import sys

import ray
from skyrl.backends.skyrl_train.inference_servers.utils import resolve_policy_model_name
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.entrypoints.main_base import BasePPOExp
from skyrl.train.utils import validate_cfg
from skyrl.train.utils.utils import initialize_ray

from denserl.integrations.skyrl import ServedGenerator


class Served(BasePPOExp):
    def get_generator(self, cfg, tokenizer, inference_engine_client):
        return ServedGenerator(
            generator_cfg=cfg.generator,
            skyrl_gym_cfg=cfg.environment.skyrl_gym,
            inference_engine_client=inference_engine_client,
            tokenizer=tokenizer,
            policy_model_name=resolve_policy_model_name(cfg),
        )


@ray.remote(num_cpus=1)
def train(cfg):
    Served(cfg).run()


if __name__ == "__main__":
    cfg = SkyRLTrainConfig.from_cli_overrides(sys.argv[1:])
    validate_cfg(cfg)
    initialize_ray(cfg)
    ray.get(train.remote(cfg))
