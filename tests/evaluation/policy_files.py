"""Prompts of the embedded world and answers of policies of known worth, in the files of every suite."""

import json
import random
from pathlib import Path

from denserl.world.language import FRAMES, TOPICS, WISHES, make_prompt, response_reward, sample_response

PROMPTS = [make_prompt(topic, wish, frame) for topic in TOPICS for wish in WISHES for frame in range(len(FRAMES))]


def answers(prompts: list[str], best_of: int, seed: int) -> list[str]:
    """The best of some responses that are drawn for each prompt: the more, the better the policy."""
    rng = random.Random(seed)
    drawn = ([sample_response(rng, prompt) for _ in range(best_of)] for prompt in prompts)
    return [max(own, key=lambda text: response_reward(prompt, text)) for prompt, own in zip(prompts, drawn, strict=True)]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_alpacaeval(path: Path, prompts: list[str], texts: list[str], name: str) -> Path:
    rows = [
        {"dataset": f"part {number % 2}", "instruction": prompt, "output": text, "generator": name}
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    path.write_text(json.dumps(rows))
    return path


def write_prompts(path: Path, prompts: list[str], texts: list[str], samples: int = 1) -> Path:
    """texts: all samples of the first prompt, then those of the next one."""
    rows = [
        {"id": number // samples, "messages": [{"role": "user", "content": prompts[number // samples]}], "response": text}
        | {"sample": number % samples, "truncated": False}
        for number, text in enumerate(texts)
    ]
    return write_lines(path, rows)


def write_arenahard(folder: Path, prompts: list[str], policies: dict[str, list[str]]) -> dict[str, Path]:
    """question.jsonl, and a file of each policy's answers: their paths by name."""
    rows = [{"uid": f"q{i}", "category": "arena-hard-v0.1", "cluster": "c", "prompt": text} for i, text in enumerate(prompts)]
    found = {"questions": write_lines(folder / "question.jsonl", rows)}
    for name, texts in policies.items():
        said = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": {"answer": text}}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        rows = [
            {
                "uid": f"q{i}",
                "ans_id": "a",
                "model": name,
                "messages": messages,
                "tstamp": 0.0,
                "metadata": {"token_len": 10 + i},
            }
            for i, messages in enumerate(said)
        ]
        found[name] = write_lines(folder / f"{name}.jsonl", rows)
    return found


def write_mtbench(folder: Path, turns: list[tuple[str, str]], policies: dict[str, list[tuple[str, str]]]) -> dict[str, Path]:
    """As `write_arenahard`, of two turns, with reference answers in their own file."""
    rows = [{"question_id": 81 + i, "category": f"c{i % 2}", "turns": list(both)} for i, both in enumerate(turns)]
    found = {"questions": write_lines(folder / "question.jsonl", rows)}
    for name, said in policies.items():
        rows = [
            {
                "question_id": 81 + i,
                "answer_id": "a",
                "model_id": name,
                "choices": [{"index": 0, "turns": list(both)}],
                "tstamp": 0,
            }
            for i, both in enumerate(said)
        ]
        found[name] = write_lines(folder / f"{name}.jsonl", rows)
    return found
