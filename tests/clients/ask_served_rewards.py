"""Asks `denserl serve-rewards` by the code of OpenRLHF and TRL themselves, and prints as JSON what they were answered.

It runs in an environment of theirs, and imports nothing of this package but a file in examples/.
"""

import asyncio
import importlib
import importlib.util
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoTokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROMPTS = ["Tell me about the garden.", "Why?", "Write two sentences about the old kettle, please."]
ANSWERS = [
    "The kettle hums in the kitchen.",
    "No.",
    "A quiet river 🦊 runs",
    "Rain falls under the stone bridge.\n\nBoats wait.",
]


def conversations() -> list[tuple[list[dict], str, bool]]:
    """Prompts, answers, and whether these were ended or cut off."""
    asked = [(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]
    return [([{"role": "user", "content": prompt}], answer, i % 3 > 0) for i, (prompt, answer) in enumerate(asked)]


def by_openrlhf(url: str, model: str) -> list:
    """What its executor of single turns makes of an engine's tokens: one request for each response."""
    site = Path(importlib.util.find_spec("openrlhf").origin).parent
    # Its packages import deepspeed and flash-attn; the module that asks needs neither.
    for name, folder in (("openrlhf", site), ("openrlhf.utils", site / "utils")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    executor = importlib.import_module("openrlhf.utils.agent").SingleTurnAgentExecutor([url])
    tokenizer = AutoTokenizer.from_pretrained(model)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    async def answered(prompt: list[dict], answer: str, ended: bool) -> dict:
        ids = [*tokenizer(answer).input_ids, *([end] if ended else [])]

        async def generate(*_, **__):
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)])

        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        sampling = SimpleNamespace(max_tokens=64, logprobs=None)
        return await executor.execute(text, "", sampling, 1024, tokenizer, SimpleNamespace(generate=generate))

    async def all_at_once() -> list[dict]:
        return await asyncio.gather(*(answered(*row) for row in conversations()))

    found = asyncio.run(all_at_once())
    # As its samples_generator puts them into tensors.
    return [torch.tensor([row["reward"]]).flatten().tolist() for row in found]


def by_trl(model: str) -> list:
    """What the reward function of the example gives in its GRPOTrainer: prompts, completions and rewards of two steps."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    served, seen = module("trl_rewards").served, []

    def recorded(prompts, completions, **columns):
        rewards = served(prompts, completions, **columns)
        seen.extend(zip(prompts, [completion[-1]["content"] for completion in completions], rewards, strict=True))
        return rewards

    rows = Dataset.from_list([{"prompt": prompt} for prompt, _, _ in conversations()])
    where = {"output_dir": "trl", "report_to": "none", "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    how = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 16, "max_steps": 2}
    trainer = GRPOTrainer(model=model, reward_funcs=recorded, args=GRPOConfig(**where, **how), train_dataset=rows)
    trainer.train()
    logged = [row["rewards/recorded/mean"] for row in trainer.state.log_history if "rewards/recorded/mean" in row]
    means = [sum(row[2] for row in seen[i : i + 8]) / 8 for i in range(0, len(seen), 8)]
    assert max(abs(a - b) for a, b in zip(logged, means, strict=True)) < 1e-4, (logged, means)
    return seen


def module(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def main() -> None:
    client, url, model, out = sys.argv[1:]
    found = {"openrlhf": lambda: by_openrlhf(url, model), "trl": lambda: by_trl(model)}[client]()
    Path(out).write_text(json.dumps({"version": version(client), "found": found}))


if __name__ == "__main__":
    main()
