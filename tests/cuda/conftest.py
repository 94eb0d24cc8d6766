"""What runs on a GPU alone; where torch sees none, it is skipped."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    """The hook sees the tests of all folders."""
    absent = pytest.mark.skip(reason="torch sees no GPU")
    for item in items:
        if "tests/cuda/" in item.path.as_posix() and not torch.cuda.is_available():
            item.add_marker(absent)
