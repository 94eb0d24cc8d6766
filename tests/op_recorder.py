"""What a CUDA graph does, on the CPU: operations are noted with the tensors that they read and write, and repeated on these.

What a graph cannot hold is refused: an operation that gives a number to the host, or whose result has a size that depends on
numbers.
"""

from collections.abc import Callable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


class Noted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, object]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ASKING:
            raise RuntimeError(f"{function} cannot be recorded")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result


def op_graph(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """In place of `recording.cuda_graph`. What runs here while it is noted counts as the first replay."""
    noted = Noted()
    with noted:
        result = function()
    runs = [lambda: None]

    def repeat() -> None:
        for call, args, kw, kept in noted.calls:
            for new, old in zip(tree_leaves(call(*args, **kw)), tree_leaves(kept), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def replay() -> Tensor:
        (runs.pop() if runs else repeat)()
        return result

    return replay
