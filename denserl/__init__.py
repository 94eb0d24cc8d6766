"""denserl: learn dense rewards from preferences and train language models against them."""

__version__ = "0.1.0"
