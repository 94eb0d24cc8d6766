"""Judging rewards and policies: plots and the report of a run."""
