"""Judges: what says which of two answers is better, or how good one is, and the store of what it said."""
