"""Rows of these tests are short; every prompt that some have in common is read once, as on CUDA."""

import pytest

from denserl.models import packing


@pytest.fixture(autouse=True)
def every_prompt_is_shared(monkeypatch):
    monkeypatch.setattr(packing, "SHORTEST_SHARED", 0)
