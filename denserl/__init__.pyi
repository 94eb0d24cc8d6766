"""The public names and where they live; the package fetches each where it is first used."""

from .data.responses import Responses as Responses
from .errors import UserError as UserError
from .evaluation.items import Answer as Answer
from .evaluation.items import Item as Item
from .evaluation.scorers import RewardScorer as RewardScorer
from .evaluation.suites.registry import Suite as Suite
from .models.loading import load_policy as load_policy
from .models.loading import load_reward_model as load_reward_model
from .models.loading import load_tokenizer as load_tokenizer
from .models.scoring import token_logprob_entropy as token_logprob_entropy
from .models.scoring import token_rewards as token_rewards
from .ppo_utils.advantages import gae as gae
from .ppo_utils.advantages import whiten as whiten
from .ppo_utils.assignment import assign_rewards as assign_rewards
from .ppo_utils.assignment import score_changes as score_changes
from .ppo_utils.kl import approx_kl as approx_kl
from .ppo_utils.losses import policy_loss as policy_loss
from .ppo_utils.losses import value_loss as value_loss
from .ppo_utils.normalizer import LocationNormalizer as LocationNormalizer
from .ppo_utils.normalizer import ScalarNormalizer as ScalarNormalizer
from .rewards.aggregation import aggregate as aggregate
from .rewards.aggregation import running_aggregate as running_aggregate
from .rewards.objectives.base import Groups as Groups
from .rewards.objectives.base import Objective as Objective
from .rewards.objectives.bradley_terry import BradleyTerry as BradleyTerry
from .rewards.objectives.grm import TextRegularizer as TextRegularizer
from .rewards.sources.base import ResponseScorer as ResponseScorer
from .rewards.sources.base import RewardSource as RewardSource
from .rewards.sources.base import Scores as Scores
from .rewards.sources.function import FunctionSource as FunctionSource
from .rewards.sources.reward_model import RewardModelSource as RewardModelSource
from .rollouts.base import Rollouts as Rollouts
from .rollouts.policy import PolicySampler as PolicySampler
from .segmentation import Segmenter as Segmenter
from .segmentation import Segments as Segments
from .segmentation import segment_by_entropy as segment_by_entropy
from .segmentation import segment_scores as segment_scores
from .trainer.config import SFTConfig as SFTConfig
from .trainer.ppo_config import PPOConfig as PPOConfig
from .trainer.ppo_trainer import PPOTrainer as PPOTrainer
from .trainer.reward_config import RewardConfig as RewardConfig
from .trainer.reward_trainer import RewardTrainer as RewardTrainer
from .trainer.sft_trainer import SFTTrainer as SFTTrainer

__version__: str
