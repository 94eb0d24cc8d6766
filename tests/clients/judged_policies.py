"""Do AlpacaEval's and FastChat's programs read what `denserl answer` writes, and count as `denserl judge` does? Run by hand:

    .venv/bin/python tests/clients/judged_policies.py

Makes an environment of its own for each of them, once. A tiny policy answers; each program judges the answers by a server of
this process, whose verdicts are hashes of what it is asked; its judgements are counted by both sides. Ends with status 1 where
a number differs, or a program does not read an answer as it was given.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import tiny_models  # noqa: E402
from reward_server import serving  # noqa: E402

ALPACA_EVAL, FASTCHAT = "alpaca_eval==0.6.6", "fschat==0.2.36"
# Its judgements have ten digits.
TOLERANCE = 1e-8
TEXTS = ("Say hi", "Name a colour.", "What is 2+2?", "Write a haiku about rain.", "List three rivers.", "Why is the sky blue?")
MTBENCH = (("writing", 81), ("math", 111), ("stem", 141), ("coding", 121))
# What its own file of templates has under these names is fetched with its repository; any text with the marks does here.
TURNS = {1: "Question: {question}\nAnswer: {answer}", 2: "{question_1}\n{answer_1}\n{question_2}\nLast answer: {answer_2}"}
REFERENCES = {1: "\nRight: {ref_answer_1}", 2: "\nRight: {ref_answer_1} {ref_answer_2}"}


def environment(folder: Path, *packages: str, borrowed: bool = False) -> Path:
    """The programs of an environment with the packages, made where it is not there yet; without what a first one needs.

    borrowed: torch and transformers are those of this environment, looked for after its own.
    """
    if not (folder / "installed").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q"]
        if borrowed:
            subprocess.run([*pip, "--no-deps", packages[0]], check=True)
            (own,) = folder.glob("lib/*/site-packages")
            (own / "zz.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
            packages = packages[1:]
        subprocess.run([*pip, *packages], check=True)
        (folder / "installed").touch()
    return folder / "bin"


def run(program: Path | str, *words: object, **kw) -> str:
    """What a program prints."""
    said = subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, **kw)
    if said.returncode:
        raise SystemExit(f"{program} {' '.join(map(str, words))}\n{said.stdout}\n{said.stderr}")
    return said.stdout


def denserl(command: str, *words: object) -> None:
    run(sys.executable, "-m", "denserl.cli.main", *command.split(), *words, "--device", "cpu")


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verdict(body: dict) -> dict:
    """A chat completion: log-probabilities of m and M where these are asked, else a grade; by a hash of the messages."""
    share = int(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:8], 16) / 2**32
    chances = {"m": 0.05 + 0.9 * share, "M": 0.95 - 0.9 * share}
    told = [
        {"token": token, "bytes": None, "logprob": math.log(chances[token])} for token in sorted(chances, key=chances.get)[::-1]
    ]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": f"Grade: [[{1 + int(9 * share)}]]"},
    }
    if body.get("logprobs"):
        choice["message"]["content"] = told[0]["token"]
        choice["logprobs"] = {"content": [{**told[0], "top_logprobs": told}]}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice], "usage": usage}


def answered(suite: str, scratch: Path, questions: Path, *flags: object) -> tuple[Path, dict]:
    """The folder of a tiny policy's answers, and what stands beside them."""
    folder = scratch / suite
    where = ("--model", scratch / "policy", "--questions", questions, "--output_dir", folder)
    denserl(f"answer {suite}", *where, "--max_new_tokens", 24, *flags)
    return folder, json.loads((folder / "answers.json").read_text())


def judged(suite: str, *words: object) -> dict:
    """What denserl makes of recorded judgements: the entry of the one policy."""
    with tempfile.TemporaryDirectory() as output:
        denserl(f"judge {suite}", *words, "--output_dir", output)
        (entry,) = json.loads((Path(output) / "results.json").read_text())["policies"].values()
    return entry


def alpaca_eval(programs: Path, scratch: Path) -> dict[str, tuple[float, float]]:
    """Two samples of one policy against one another: each number by both sides."""
    questions = write(scratch / "instructions.jsonl", [{"instruction": text, "dataset": "own"} for text in TEXTS])
    folder, account = answered("alpacaeval", scratch, questions, "--samples", 2)
    policy, baseline = (folder / name for name in account["files"])
    with serving(verdict) as server:
        clients = scratch / "clients.yaml"
        clients.write_text(f"default:\n  - api_key: none\n    base_url: {server.url}/v1\n")
        where = ("--model_outputs", policy, "--reference_outputs", baseline, "--output_path", scratch / "theirs")
        how = ("--precomputed_leaderboard", None, "--fn_metric", "get_winrate", "--sort_by", "win_rate", "--caching_path", None)
        judge = ("--annotators_config", "weighted_alpaca_eval_gpt4_turbo")
        told = {**os.environ, "OPENAI_CLIENT_CONFIG_PATH": str(clients), "HF_HUB_OFFLINE": "1"}
        run(programs / "alpaca_eval", "evaluate", *where, *how, *judge, env=told, cwd=scratch)
    (annotations,) = (scratch / "theirs").rglob("annotations.json")
    rows = json.loads(annotations.read_text())
    outputs = [{row["instruction"]: row["output"] for row in json.loads(path.read_text())} for path in (baseline, policy)]
    read = [{row["instruction"]: row[f"output_{side}"] for row in rows} for side in (1, 2)]
    (theirs,) = csv.DictReader((annotations.parent / "leaderboard.csv").open())
    ours = judged("alpacaeval", policy, "--baseline", baseline, "--annotations", annotations)["original"]
    numbers = {name: (value, float(theirs[name])) for name, value in ours.items() if name in theirs}
    return {"texts read as given": (len(TEXTS), len(TEXTS) if read == outputs else 0), **numbers}


def fastchat(programs: Path, scratch: Path) -> dict[str, tuple[float, float]]:
    """Both turns graded, and both turns' means and the average, by both sides."""
    data = scratch / "data/mt_bench"
    rows = [{"question_id": id, "category": kind, "turns": [f"About {kind}?", "And then?"]} for kind, id in MTBENCH]
    questions = write(data / "question.jsonl", rows)
    folder, account = answered("mtbench", scratch, questions, "--name", "policy")
    (data / "model_answer").mkdir()
    shutil.copy(folder / account["files"][0], data / "model_answer")
    references = [json.loads(line) for line in (folder / account["files"][0]).read_text().splitlines()]
    write(data / "reference_answer/gpt-4.jsonl", references)
    names = {("single" + kind + "-v1" + turn): (kind, turn) for kind in ("", "-math") for turn in ("", "-multi-turn")}
    prompts = [
        {
            "name": name,
            "type": "single",
            "system_prompt": "Grade from 1 to 10.",
            "prompt_template": TURNS[1 + bool(turn)] + (REFERENCES[1 + bool(turn)] if kind else ""),
            "output_format": "[[rating]]",
        }
        for name, (kind, turn) in names.items()
    ]
    write(scratch / "data/judge_prompts.jsonl", prompts)
    with serving(verdict) as server:
        told = {**os.environ, "OPENAI_API_KEY": "none", "OPENAI_API_BASE": f"{server.url}/v1"}
        run(programs / "python", "-m", "fastchat.llm_judge.gen_judgment", env=told, cwd=scratch, input="\n")
        asked = [body["messages"][-1]["content"] for body in server]
    given = [turn for row in references for turn in row["choices"][0]["turns"]]
    shown = sum(any(f"nswer: {text}" in prompt for prompt in asked) for text in given)
    grades = data / "model_judgment/gpt-4_single.jsonl"
    said = run(programs / "python", "-m", "fastchat.llm_judge.show_result", cwd=scratch)
    theirs = [float(number) for number in re.findall(r"^policy\s.*?([\d.]+)$", said, re.MULTILINE)]
    words = (folder, "--questions", questions, "--annotations", grades)
    ours = judged("mtbench", *words)["original"]
    ours = [ours[name] for name in ("turn_1", "turn_2", "average")]
    numbers = {name: pair for name, pair in zip(("turn 1", "turn 2", "average"), zip(ours, theirs, strict=True), strict=True)}
    return {"answers read as given": (len(given), shown), **numbers}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--envs", type=Path, help="folder of their environments; default: the system's for temporary files")
    envs = parser.parse_args().envs or Path(tempfile.gettempdir()) / "denserl-client-judges"
    envs.mkdir(parents=True, exist_ok=True)
    fschat = (FASTCHAT, "openai==0.28.1", "anthropic<0.40", "pandas", "requests")
    sides = {
        ALPACA_EVAL: (alpaca_eval, environment(envs / "alpaca", ALPACA_EVAL)),
        FASTCHAT: (fastchat, environment(envs / "fschat", *fschat, borrowed=True)),
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        tiny_models.save_language_model(Path(folder) / "policy", stops=60)
        for program, (compare, programs) in sides.items():
            for name, (ours, theirs) in compare(programs, Path(folder)).items():
                print(f"{program:20} {name:22} denserl {ours:.8f}, theirs {theirs:.8f}")
                failed |= abs(ours - theirs) > TOLERANCE * max(1.0, abs(ours))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
