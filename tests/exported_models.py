"""Models taken out of checkpoints by the command, and compared with what the run wrote."""

import json
from pathlib import Path

import tiny_models
from safetensors.torch import load_file

from denserl.cli import export


def exported(checkpoint: Path, output: Path) -> Path:
    """The model of a checkpoint, in a new folder."""
    options = {"checkpoint": checkpoint, "output_dir": output}
    tiny_models.run_command(export, "export", tiny_models.as_argv(options))
    return output


def is_what_the_run_wrote(run: Path, found: Path) -> None:
    """All files of the model, adapters among them; what a run has beside a model is left out."""
    others = {"command.json", "metrics.jsonl", "README.md", "samples.jsonl", "eval_samples.jsonl"}
    names = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name not in others}
        for folder in (run, found)
    ]
    names[0] = {name for name in names[0] if not name.startswith(("checkpoints/", "skipped/"))}
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith(".safetensors"):
            expected, got = load_file(run / name), load_file(found / name)
            assert expected.keys() == got.keys() and all(got[key].equal(tensor) for key, tensor in expected.items())
            assert all(got[key].dtype == tensor.dtype for key, tensor in expected.items())
        elif name.endswith(".json"):
            assert json.loads((run / name).read_text()) == json.loads((found / name).read_text()), name
        else:
            assert (run / name).read_bytes() == (found / name).read_bytes()
