"""What makes a model random in training mode: dropout, and noise that routers of experts are given. How it is switched off.

Settings are found by name, and that none was missed is found by running the model (`unsteady` in measured.py).
"""

import contextlib
import re
from collections.abc import Iterator

from torch import nn

_RANDOM = re.compile("drop|jitter|noise")


# Of what drops attention weights: settings of any module, and what modules of attention call simply so.
_OF_ATTENTION = re.compile("att.*drop")


def drop_attention(model: nn.Module, share: float) -> None:
    """Let a model that was loaded without dropout drop such a share of its attention weights, in training mode.

    Whether its attention honours that is found by running it.
    """
    for path, module in model.named_modules():
        is_attention = "Attention" in type(module).__name__
        for name, value in list(vars(module).items()):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and (_OF_ATTENTION.search(name) or (is_attention and name == "dropout")):
                setattr(module, name, share)
        if isinstance(module, nn.Dropout) and _OF_ATTENTION.search(path.rpartition(".")[2]):
            module.p = share


def disable_dropout(model: nn.Module) -> None:
    """Switch off for good whatever is random in training mode, where old and new log-probabilities must agree."""
    for module, name in _settings(model):
        setattr(module, name, 0.0)


@contextlib.contextmanager
def without_dropout(model: nn.Module):
    """Within the context nothing of the model is random."""
    before = [(module, name, getattr(module, name)) for module, name in _settings(model)]
    disable_dropout(model)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _settings(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The modules' own numbers above 0 that say how much of something random there is."""
    for module in model.modules():
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and value > 0 and (_RANDOM.search(name) or (is_dropout and name == "p")):
                yield module, name
