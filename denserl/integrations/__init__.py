"""Rewards of `denserl serve-rewards` inside libraries that train policies: a file for each, which imports that library.

Of denserl they import light files alone: they run in that library's environment, where denserl is installed without what else
it needs.
"""
