"""The tiny trainings that tests/faults uses too."""

from faults.conftest import pairs, trainings, world  # noqa: F401
