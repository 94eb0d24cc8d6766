"""Trainings of adapters on a base in 4 bits, by the real bitsandbytes: what learns, what is kept, and what is written."""

import json

import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from denserl.cli import train_rm, train_sft
from denserl.models.loading import load_policy
from denserl.models.merging import merge_adapters
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.scoring import token_logprob_entropy
from denserl.trainer import ppo_models
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.trackers import read_metrics

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")
RANK, ALPHA = 2, 16.0
ADAPTERS = {"load_in_4bit": True, "lora_rank": RANK, "lora_alpha": ALPHA}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model whose sizes are multiples of 64, and rows to train it on beside it."""
    folder = tiny_models.save_language_model(tmp_path_factory.mktemp("base") / "sft", stops=60, hidden=64, inner=128)
    pairs = tiny_models.boat_pairs(16)
    rows = {"pairs": pairs, "demos": [{"prompt": row["prompt"], "response": row["chosen"]} for row in pairs]}
    for name, found in rows.items():
        (folder.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder


def supervised(command, name: str, base, rows: str, output, **options):
    settings = {"batch_size": 8, "micro_batch_size": 4, "lr": 1e-2, "epochs": 2, "warmup_ratio": 0.0, "logging_steps": 1}
    settings |= {"save_steps": 2, "save_total_limit": 5, "eval_data": base.parent / f"{rows}.jsonl"}
    data = {"model": base, "data": base.parent / f"{rows}.jsonl", "output_dir": output, "device": "cpu"}
    tiny_models.run_command(command, name, tiny_models.as_argv({**data, **settings, **ADAPTERS, **options}))
    return output


def is_base_and_adapters(output, base, of_head=()) -> None:
    """Each weight is that of the stored base, and where there are adapters, with their product added, in fp32."""
    written, before = load_file(output / "model.safetensors"), load_file(base / "model.safetensors")
    learned = load_file(output / "adapter" / "adapter_model.safetensors")
    assert before.keys() - {"lm_head.weight"} == written.keys() - {"lm_head.weight", *of_head}
    adapted = 0
    for name, weight in written.items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        if name in of_head:
            torch.testing.assert_close(weight, learned[f"base_model.model.{name}"], rtol=0, atol=0)
        elif f"{place}.lora_A.weight" in learned:
            product = learned[f"{place}.lora_B.weight"] @ learned[f"{place}.lora_A.weight"]
            torch.testing.assert_close(weight, before[name] + ALPHA / RANK * product)
            assert product.abs().max() > 1e-4
            adapted += 1
        else:
            torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
    assert adapted == 7


def merged_anew(base, output) -> bool:
    """Whether merging by hand, as `denserl merge` does it, gives the bits that the run wrote."""
    model, _ = merge_adapters(str(base), str(output / "adapter"))
    written, own = load_file(output / "model.safetensors"), model.state_dict()
    return all(own[name].equal(weight) for name, weight in written.items())


def test_a_language_model_learns_and_is_merged_into_the_base_as_it_is_stored(base, tmp_path):
    output = supervised(train_sft, "train-sft", base, "demos", tmp_path / "sft")
    losses = [row["loss"] for row in read_metrics(output / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    is_base_and_adapters(output, base)
    assert merged_anew(base, output)
    for config in (output / "config.json", output / "adapter" / "config.json"):
        assert "quantization_config" not in json.loads(config.read_text())
    # Adapters with their two moments, and nothing of what is frozen.
    kept = tiny_models.checkpoint_weights(output / "checkpoints" / "step-000004")
    assert all("lora_" in name for name in kept if kept[name].is_floating_point()) and len(kept) == 2 * 7


@pytest.mark.parametrize("stage", [0, 2])
def test_a_reward_model_goes_on_from_a_checkpoint_to_the_bit(base, tmp_path, stage):
    output = supervised(train_rm, "train-rm", base, "pairs", tmp_path / "rm", zero_stage=stage, reward_level="bandit")
    is_base_and_adapters(output, base, of_head=["score.weight"])
    load_reward_model(str(output), "fp32")
    before = load_file(output / "model.safetensors")
    for path in (output / "checkpoints" / "latest", output / "model.safetensors"):
        path.unlink()
    (output / "checkpoints" / "step-000004").rename(tmp_path / "step-000004")
    supervised(train_rm, "train-rm", base, "pairs", output, zero_stage=stage, reward_level="bandit", resume=True)
    after = load_file(output / "model.safetensors")
    assert before.keys() == after.keys() and all(after[name].equal(weight) for name, weight in before.items())


@pytest.mark.parametrize("options", [{"ema_decay": 0.5}, {"dtype": "bf16", "zero_stage": 2}], ids=str)
def test_ppo_starts_at_the_base_in_4_bits_which_is_its_reference(base, world, tmp_path, options, monkeypatch):
    """What the reference says is what a model loaded in 4 bits says that was never trained, after updates as well."""
    from denserl.cli import train_ppo

    score, seen, dtype = PPOTrainer.score, [], options.get("dtype", "fp32")

    def compared(self, responses, **kw):
        apart = load_policy(str(base), dtype, four_bit=True).eval()
        batch = self._batch(responses.rows(list(range(4))))
        with torch.no_grad():
            own = ppo_models.logprob_entropy(self.models.reference, batch, 1.0)[0]
            width = batch.response_mask.shape[1]
            other = token_logprob_entropy(apart, *batch[:3], width, shared=batch.shared)[0]
        seen.append((own - other).abs().max().item())
        return score(self, responses, **kw)

    monkeypatch.setattr(PPOTrainer, "score", compared)
    output = tmp_path / "ppo"
    argv = world._replace(sft=base).argv(output, iterations=3, actor_lr=1e-2, **ADAPTERS, **options)
    tiny_models.run_command(train_ppo, "train-ppo", argv)
    kl = [row["kl"] for row in read_metrics(output / "metrics.jsonl") if "kl" in row]
    assert seen == [0.0] * 3 and kl[0] == 0 < abs(kl[-1])
    assert merged_anew(base, output)
    if "ema_decay" in options:
        is_base_and_adapters(output, base)
        is_base_and_adapters(output / "ema", base)
        assert not tiny_models.same_weights(output, output / "ema")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda(base, world, tmp_path):
    """In bf16, with activations recomputed, as by default there: both kinds of training learn, and write what they learned."""
    from denserl.cli import train_ppo

    output = supervised(train_sft, "train-sft", base, "demos", tmp_path / "sft", device="cuda", zero_stage=2)
    losses = [row["loss"] for row in read_metrics(output / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert merged_anew(base, output)
    options = {**ADAPTERS, "iterations": 2, "actor_lr": 1e-2, "device": "cuda", "zero_stage": 2}
    argv = world._replace(sft=base).argv(tmp_path / "ppo", **options)
    tiny_models.run_command(train_ppo, "train-ppo", argv)
    kl = [row["kl"] for row in read_metrics(tmp_path / "ppo" / "metrics.jsonl") if "kl" in row]
    assert kl[0] == 0 < abs(kl[-1])
    assert merged_anew(base, tmp_path / "ppo")


def test_the_critic_is_whole(base, world, tmp_path):
    """It has no adapters, and nothing of it is in 4 bits: its weights begin as those of the stored base."""
    from denserl.cli import train_ppo

    argv = world._replace(sft=base).argv(tmp_path / "ppo", critic_lr=0.0, **ADAPTERS)
    tiny_models.run_command(train_ppo, "train-ppo", argv)
    fresh = new_reward_model(str(base), "fp32", seed=42).state_dict()
    written = load_file(tmp_path / "ppo" / "critic" / "model.safetensors")
    assert all(weight.equal(fresh[name]) for name, weight in written.items())
