"""What runs in the environment of a server of vLLM, found there by PYTHONPATH: nothing of denserl is imported."""
