"""Lets verl, SkyRL and OpenRLHF themselves make rewards of tokens by denserl/integrations, and prints them as JSON.

It runs in an environment of theirs. What samples responses in them, and takes GPUs, is a stand-in that gives fixed token ids.
"""

import asyncio
import importlib.machinery
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
import typing_extensions
from ask_served_rewards import conversations
from transformers import AutoTokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# As docs/integrations.md has them.
VERL = [
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.name=ServedRewards",
    "reward.reward_manager.module.path=pkg://denserl.integrations.verl",
    "actor_rollout_ref.rollout.agent.default_agent_loop=served",
    f"actor_rollout_ref.rollout.agent.agent_loop_config_path={EXAMPLES}/verl_agent_loop.yaml",
]


def sampled(tokenizer) -> list[list[int]]:
    """The token ids of the answers, with the end of the turn where they were ended."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return [[*tokenizer(answer).input_ids, *([end] if ended else [])] for _, answer, ended in conversations()]


def to_go(rewards: list[float]) -> list[float]:
    """What there is from each token on: the returns of GAE with lambda and gamma 1."""
    return torch.tensor(rewards).flip(0).cumsum(0).flip(0).tolist()


def close(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(abs(a - b) < 1e-5 for a, b in zip(one, other))


def by_verl(model: str) -> list:
    """Its worker of agent loops, which writes rows for its trainer, and its worker of rewards; then its GAE."""
    import numpy as np
    import transfer_queue
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.agent_loop import agent_loop
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.trainer.ppo.reward import resolve_reward_manager_cls
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict
    from verl.workers.rollout.replica import TokenOutput

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [f"actor_rollout_ref.model.path={model}", *VERL])
    rollout = config.actor_rollout_ref.rollout.agent
    for entry in OmegaConf.load(agent_loop.resolve_config_path(rollout.agent_loop_config_path)):
        agent_loop._agent_loop_registry[entry.name] = entry
    rewarding = RewardLoopWorker(config)
    tokenizer, ids = rewarding.input_tokenizer, sampled(rewarding.input_tokenizer)
    left, written = list(ids), []

    async def generate(**request):
        return TokenOutput(token_ids=left.pop(0))

    async def put(keys, fields, tags, partition_id):
        written.append({name: fields[name][0] for name in ("responses", "response_mask", "rm_scores")})

    transfer_queue.async_kv_batch_put = put
    kind = AgentLoopWorkerTQ.__ray_metadata__.modified_class
    worker = kind.__new__(kind)
    vars(worker).update(
        config=config,
        llm_client=SimpleNamespace(generate=generate),
        tokenizer=tokenizer,
        processor=None,
        hf_model_type=None,
        dataset_cls=None,
        tools=[],
        distillation_enabled=False,
        reward_loop_worker_handles=[SimpleNamespace(compute_score=SimpleNamespace(remote=rewarding.compute_score))],
    )

    async def all_in_turn():
        for i, (prompt, _, _) in enumerate(conversations()):
            trajectory = {"step": 0, "sample_index": i, "rollout_n": 0, "validate": False}
            row = {"raw_prompt": np.array(prompt, dtype=object), "uid": str(i), "session_id": 0, "global_steps": 0}
            await worker._run_agent_loop({}, trajectory, agent_name=rollout.default_agent_loop, trace=False, **row)

    asyncio.run(all_in_turn())
    found = [row["rm_scores"].tolist() for row in written]
    assert [row["responses"].tolist() for row in written] == ids
    batch = list_of_dict_to_tensordict(written).to_padded_tensor()
    # Where rewards are computed for whole batches, its manager is asked for the same tensor.
    whole = resolve_reward_manager_cls(config).assemble_rm_scores(DataProto(batch=batch), found)
    assert torch.equal(whole, batch["rm_scores"])
    batch = TensorDict({**batch, "token_level_rewards": batch["rm_scores"], "values": torch.zeros_like(whole)}, len(ids))
    returns = compute_advantage(DataProto(batch=batch), "gae", config=config.algorithm).batch["returns"].tolist()
    assert all(close(row[: len(rewards)], to_go(rewards)) for row, rewards in zip(returns, found, strict=True))
    return found


def by_skyrl(model: str) -> list:
    """Its generator, whose output goes through what its trainer makes of rewards."""
    from skyrl.train.config import GeneratorConfig, SkyRLGymConfig
    from skyrl.train.trainer import RayPPOTrainer

    from denserl.integrations.skyrl import ENVIRONMENT, ServedGenerator

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = sampled(tokenizer)

    class Engine:
        """What the generator asks of its engines."""

        def __init__(self):
            self.left = list(ids)

        async def generate(self, request, model=None):
            mine = [self.left.pop(0) for _ in request["prompt_token_ids"]]
            return {"responses": tokenizer.batch_decode(mine), "response_ids": mine, "stop_reasons": ["stop"] * len(mine)}

        async def finish_session(self, session):
            pass

        def __getattr__(self, name):
            return None

    found = {}
    for batched in (False, True):
        config = GeneratorConfig(batched=batched, use_conversation_multi_turn=not batched, max_input_length=1000)
        generator = ServedGenerator(config, SkyRLGymConfig(), Engine(), tokenizer)
        count = len(ids)
        asked = {"prompts": [prompt for prompt, _, _ in conversations()], "env_classes": [ENVIRONMENT] * count}
        asked |= {"env_extras": [{} for _ in ids], "sampling_params": None, "trajectory_ids": None}
        output = asyncio.run(generator.generate(asked, disable_tqdm=True))
        settings = SimpleNamespace(step_wise_trajectories=False, merge_stepwise_output=False, n_samples_per_prompt=1)
        trainer = SimpleNamespace(cfg=SimpleNamespace(generator=settings), all_metrics={})
        output, _ = RayPPOTrainer.postprocess_generator_output(trainer, output, [str(i) for i in range(count)])
        mean = sum(map(sum, output["rewards"])) / count
        assert abs(trainer.all_metrics["reward/avg_raw_reward"] - mean) < 1e-6
        assert abs(output["rollout_metrics"]["served/score"] - mean) < 1e-5
        found[batched] = (output["response_ids"], output["rewards"])
    assert found[True][0] == ids
    # The other way closes an answer that was cut off with an end of turn of its own.
    return found[True][1]


def by_openrlhf(model: str) -> list:
    """What its maker of experiences makes of rewards: its returns with gamma 1 and no KL, whose differences are the rewards."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    from denserl.integrations.openrlhf import DenseExperienceMaker

    tokenizer = AutoTokenizer.from_pretrained(model)
    algo = SimpleNamespace(advantage=SimpleNamespace(estimator="gae", gamma=1.0, lambd=1.0, no_std_norm=True))
    reward = SimpleNamespace(clip_range=None, overlong_buffer_len=None, stop_properly_penalty_coef=None)
    rollout = SimpleNamespace(n_samples_per_prompt=1)
    args = SimpleNamespace(algo=algo, reward=reward, rollout=rollout)
    nothing = [None] * 4
    maker = DenseExperienceMaker(*nothing, SimpleNamespace(value=0.0), SimpleNamespace(args=args), tokenizer)
    made_by_trainer()
    experiences, responses = [], sampled(tokenizer)
    rows = zip(conversations(), responses, strict=True)
    for i, ((prompt, _, _), ids) in enumerate(rows):
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        start = tokenizer(text, add_special_tokens=False).input_ids
        mask = torch.tensor([[0] * (len(start) - 1) + [1] * len(ids) + [0, 0]])
        whole = torch.tensor([[*start, *ids, tokenizer.pad_token_id, tokenizer.pad_token_id]])
        zeros = torch.zeros(mask.shape)
        told = {"rewards": torch.tensor([7.0]), "values": zeros, "kl": zeros, "info": {}, "index": [i]}
        experiences.append(Experience(sequences=whole, action_mask=mask, prompts=[text], labels=[""], **told))
    made = maker.compute_advantages_and_returns(experiences)
    found = []
    for experience in made:
        returns = experience.returns[experience.action_mask.bool()]
        assert abs(returns[0] - 7.0) < 1e-5 and experience.info["return"].item() == 7.0
        rewards = (returns - torch.cat([returns[1:], torch.zeros(1)])).tolist()
        found.append(rewards)
    # It was told another number than the server says: what that has more stays at the end.
    for rewards, experience in zip(found, experiences, strict=True):
        rewards[-1] += maker_total(maker, experience) - 7.0
    return found


def made_by_trainer() -> None:
    """The trainer, whose data and engines are nothing here, has that maker, with its groups of models in their places."""
    from openrlhf.trainer import ppo_trainer

    from denserl.integrations.openrlhf import DenseExperienceMaker, DensePPOTrainer

    ppo_trainer.get_tokenizer = ppo_trainer.SamplesGenerator = lambda *_, **__: None
    ppo_trainer.prepare_datasets = lambda *_: ([], [], 0)
    algo = SimpleNamespace(kl=SimpleNamespace(target=None, init_coef=0.0), advantage=SimpleNamespace(estimator="gae"))
    logger = SimpleNamespace(wandb=SimpleNamespace(key=None), tensorboard_dir=None)
    others = {"eval": SimpleNamespace(steps=1), "data": SimpleNamespace(disable_fast_tokenizer=False)}
    args = SimpleNamespace(algo=algo, logger=logger, ckpt=SimpleNamespace(save_steps=1), **others)
    trainer = DensePPOTrainer.__ray_metadata__.modified_class(
        "model", SimpleNamespace(args=args), "actor", "critic", "reward", "reference", []
    )
    maker = trainer.experience_maker
    assert type(maker) is DenseExperienceMaker and maker.kl_ctl is trainer.kl_ctl
    groups = (maker.actor_model_group, maker.critic_model_group, maker.reward_model_group, maker.initial_model_group)
    assert groups == ("actor", "critic", "reward", "reference")


def maker_total(maker, experience) -> float:
    """The response's score as the server says it."""
    from denserl.integrations.served import asked

    query = [experience.prompts[0] + maker.tokenizer.decode(experience.sequences[0, 1:][experience.action_mask[0].bool()])]
    return asked("get_reward", {"query": query, "prompts": experience.prompts})["scores"][0]


def stand_ins(*names: str) -> None:
    """Empty modules of packages that take a GPU to install, whose functions the code at hand imports and does not call."""

    def named(attribute: str) -> type:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})

    for name in names:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__, module.__version__ = [], "0"
        module.__getattr__ = named
        sys.modules[name] = module


def main() -> None:
    client, _, model, out = sys.argv[1:]
    if client == "openrlhf-dense":
        import peft  # noqa: F401  before transformers finds the stand-in of flash-attn

        stand_ins("flash_attn", "flash_attn.bert_padding", "flash_attn.utils", "flash_attn.utils.distributed")
        stand_ins("vllm", "vllm.inputs", "vllm.utils")
    if client == "skyrl" and sys.version_info < (3, 12):
        # Its models of requests are made of typing.TypedDict, which pydantic takes from Python 3.12 on.
        import typing

        typing.TypedDict = typing_extensions.TypedDict
    found = {"verl": by_verl, "skyrl": by_skyrl, "openrlhf-dense": by_openrlhf}[client](model)
    Path(out).write_text(json.dumps({"version": version(client.removesuffix("-dense")), "found": found}))


if __name__ == "__main__":
    main()
