"""Reward sources behind HTTP, for whoever trains a policy elsewhere."""
