"""Do exported reward models score alike under transformers 4 and 5? Random models of many families; run by hand:

    .venv/bin/python tests/clients/transformers4.py

Makes an environment of its own with the older version, once, and ends with status 1 where a score differs. Beside it stand, as
controls, the export without what only version 4 reads of position encodings, and the model as train-rm wrote it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import tiny_models  # noqa: E402

from denserl.models.export import export_classifier, settings_for_version_4  # noqa: E402
from denserl.models.reward_models import load_reward_model, new_reward_model  # noqa: E402
from denserl.models.scoring import token_rewards  # noqa: E402

SIZES = {
    **tiny_models.SIZES,
    "hidden_size": 64,
    "max_position_embeddings": 256,
    "vocab_size": len(tiny_models.tiny_tokenizer()),
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": SIZES["vocab_size"]}


def rope(kind: str = "default", theta: float = 500000.0, **more) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
MODELS = {
    "llama": ("llama", {}),
    "llama, base 500000": ("llama", rope()),
    "llama, linear": ("llama", rope("linear", factor=4.0)),
    "llama, llama3": ("llama", rope("llama3", **LLAMA3)),
    "llama, yarn": ("llama", rope("yarn", **YARN)),
    "mistral, window": ("mistral", {**rope(theta=1e6), "sliding_window": 8}),
    "qwen2": ("qwen2", rope(theta=1e6)),
    "qwen3": ("qwen3", {**rope(theta=1e6), "head_dim": 16}),
    "gemma": ("gemma", {**rope(theta=300.0), "head_dim": 16}),
    "gemma2, eager": ("gemma2", {**rope(theta=300.0), "head_dim": 16, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {"rope_parameters": BY_LAYER, "head_dim": 16, "sliding_window": 8}),
    "phi3": ("phi3", rope(theta=300.0)),
    "phi3, longrope": ("phi3", {**rope("longrope", **LONG), "original_max_position_embeddings": 64}),
    "gpt-neox": ("gpt_neox", rope(theta=300.0, partial_rotary_factor=0.5)),
    "gpt2": ("gpt2", {}),
}


def make(folder: Path, kind: str, settings: dict) -> None:
    """A random reward model in folder/rm, its export in folder/hf, and that without version 4's words in folder/bare."""
    tokenizer = tiny_models.tiny_tokenizer()
    sizes = GPT2 if kind == "gpt2" else SIZES
    if kind == "gpt_neox":  # has as many heads for keys as for queries
        sizes = {name: value for name, value in sizes.items() if name != "num_key_value_heads"}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(kind, **{**sizes, "initializer_range": 0.2, **ids, **settings})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "sft")
    tokenizer.save_pretrained(folder / "sft")
    model = new_reward_model(str(folder / "sft"), "fp32")
    torch.nn.init.normal_(model.score.weight)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder / "rm")
    tokenizer.save_pretrained(folder / "rm")
    (folder / "hf").mkdir()
    export_classifier(str(folder / "rm"), folder / "hf")
    shutil.copytree(folder / "hf", folder / "bare")
    exported = json.loads((folder / "hf" / "config.json").read_text())
    old = settings_for_version_4(exported, str(folder))
    bare = {name: value for name, value in exported.items() if name not in old}
    (folder / "bare" / "config.json").write_text(json.dumps(bare))


def read_with(python: str, folders: list[Path]) -> dict:
    script = [python, str(HERE / "stock_scores.py"), *map(str, folders)]
    return json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)


def environment(folder: Path, wanted: str) -> str:
    """The Python of an environment with that version of transformers, made where it is not there yet."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        torch_version = version("torch").partition("+")[0]
        packages = [f"torch=={torch_version}", f"transformers=={wanted}", "accelerate", "jinja2"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def own_scores(folder: Path, ids: list[list[int]]) -> list[float]:
    """denserl's own score of each row's last token that is no padding."""
    model, pad = load_reward_model(str(folder), "fp32"), AutoTokenizer.from_pretrained(folder).pad_token_id
    ids = torch.tensor(ids)
    mask = (ids != pad).long()
    with torch.no_grad():
        rewards = token_rewards(model, ids, mask)
    return rewards[torch.arange(len(ids)), mask.sum(1) - 1].tolist()


def difference(one: dict, other: dict) -> float | str:
    """The largest difference of scores, relative to their size; in words where there is none."""
    for found in (one, other):
        if "error" in found:
            return found["error"]
    if one["ids"] != other["ids"]:
        return "other token ids"
    size = max(map(abs, one["scores"]))
    return max(abs(a - b) for a, b in zip(one["scores"], other["scores"])) / size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--transformers", default="4.57.6", help="the older version")
    parser.add_argument("--env", type=Path, help="its environment; default: a folder of the system's for temporary files")
    options = parser.parse_args()
    name = f"denserl-client-transformers-{options.transformers}"
    old = environment(options.env or Path(tempfile.gettempdir()) / name, options.transformers)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / str(i) for i, name in enumerate(MODELS)}
        for name, folder in folders.items():
            make(folder, *MODELS[name])
        paths = [folder / kind for folder in folders.values() for kind in ("rm", "hf", "bare")]
        then, now = read_with(old, paths), read_with(sys.executable, paths)
        print(f"largest relative difference of scores, transformers {then['transformers']} against {now['transformers']}\n")
        print(f"{'':22}{'exported':>12}{'denserl':>12}{'no old words':>15}   not exported")
        failed = 0
        for name, folder in folders.items():
            written, exported, bare = (str(folder / kind) for kind in ("rm", "hf", "bare"))
            expected, found = now["found"][written], then["found"]
            own = {**expected, "scores": own_scores(folder / "rm", expected["ids"])}
            compared = [difference(expected, found[exported]), difference(own, found[exported])]
            failed += not all(isinstance(x, float) and x < 1e-5 for x in compared)
            failed += expected != now["found"][exported]
            controls = [difference(expected, found[bare]), difference(expected, found[written])]
            shown = [f"{x:.1e}" if isinstance(x, float) else x[:60] for x in compared + controls]
            print(f"{name:22}{shown[0]:>12} {shown[1]:>11} {shown[2]:>14}   {shown[3]}")
    print("\nall alike" if not failed else f"\n{failed} differ")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
