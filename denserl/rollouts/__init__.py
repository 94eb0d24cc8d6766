"""Samplers: prompts in, responses with end flags out."""
