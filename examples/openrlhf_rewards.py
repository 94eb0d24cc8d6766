"""OpenRLHF's PPO with dense rewards of `denserl serve-rewards`; options are those of its own command (docs/integrations.md):

python examples/openrlhf_rewards.py ... --reward.remote_url http://127.0.0.1:8000/get_reward
"""

import runpy

from openrlhf.trainer import ppo_trainer

from denserl.integrations.openrlhf import DensePPOTrainer

ppo_trainer.PPOTrainer = DensePPOTrainer  # which the command looks up when it makes its trainer
runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
