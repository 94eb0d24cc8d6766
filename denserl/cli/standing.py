"""How far a command came that may have run before, for scripts of several: `python -m denserl.cli.standing COMMAND WORDS...`.

Prints one word: `finished`, `stopped`, where it goes on with --resume, or `new`.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from denserl.data.inputs import stamp
from denserl.files import COMMAND_FILE
from denserl.terminal import say


def standing(words: Sequence[str]) -> str:
    """Of a command's words as they would be given, --resume left out: finished, stopped or new.

    finished: the last command that wrote into its output folder was this one, ended well, and read what is there now.
    stopped: not so, and a training in the folder has a checkpoint to go on from. Whether other words may go on with it, the
    command says.
    """
    if "--output_dir" not in words:
        return "new"
    folder = Path(words[words.index("--output_dir") + 1])
    record = folder / COMMAND_FILE
    if not record.is_file():
        return "new"
    entry = json.loads(record.read_text(encoding="utf-8"))[-1]
    before = [word for word in shlex.split(entry["command"]) if word != "--resume"]
    if entry["outcome"] == "finished" and before == ["denserl", *words] and _as_they_were(entry.get("inputs", {})):
        return "finished"
    # Here, for it takes a while to load.
    from denserl.trainer.several import has_begun

    return "stopped" if has_begun(folder) else "new"


def _as_they_were(inputs: dict[str, dict[str, dict]]) -> bool:
    """Whether recorded inputs have the size and age that they had."""
    named = {path: about for paths in inputs.values() for path, about in paths.items()}
    return all(about | stamp(path) == about for path, about in named.items())


def main() -> None:
    say(standing(sys.argv[1:]))


if __name__ == "__main__":
    main()
