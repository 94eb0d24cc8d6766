"""The hand-made runs of tests/report are used here too; what a command does to logging is undone."""

import logging
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "report"))


@pytest.fixture(autouse=True)
def logging_as_it_was():
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    yield
    logging.setLogRecordFactory(factory)
    logging.captureWarnings(False)
    sys.excepthook = hook
