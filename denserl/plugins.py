"""What users bring themselves, named as module:name: reward functions, objectives, segmenters."""

import functools
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from denserl.errors import UserError, require


def load_named(name: str, option: str) -> Callable[..., Any]:
    """The function or class of a name (see `load_object`). UserError as well where what it names cannot be called."""
    found = load_object(name, option)
    if not callable(found):
        raise UserError(f"`{option}` {name} is no function and no class", "give module:name of one")
    return found


def load_object(name: str, option: str) -> Any:
    """What `module:name` or `file.py:name` names; modules are looked for in the working folder as well.

    option: the option that gave the name, for messages.

    Raises:
        UserError: the module cannot be imported, or has no such name.
    """
    module, colon, attribute = name.rpartition(":")
    fix = "give module:name or file.py:name, of what can be imported"
    require(module and colon and attribute, f"`{option}` {name} is no module:name", fix)
    try:
        return getattr(_imported(module), attribute)
    except Exception as error:  # a user's module may raise anything when it is imported
        raise UserError(f"`{option}` {name}: {type(error).__name__}: {error}", fix) from error


def _imported(module: str) -> ModuleType:
    if module.endswith(".py"):
        return _file(Path(module).resolve())
    here = str(Path.cwd())
    if here not in sys.path:
        # As `python -m` does; the console script has its own folder there instead.
        sys.path.append(here)
    return importlib.import_module(module)


@functools.cache
def _file(path: Path) -> ModuleType:
    """The module in a file, run once however many names are taken from it."""
    name = f"_denserl_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise
    return loaded
