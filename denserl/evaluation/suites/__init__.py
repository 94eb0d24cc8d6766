"""The suites by which reward models are judged: one file each, and their registry."""


def __getattr__(name: str) -> None:
    # Until version 0.3: this was a module.
    if name in ("SUITES", "Suite", "read_items"):
        raise ImportError(f"denserl.evaluation.suites.{name} is now in denserl.evaluation.suites.registry (CHANGELOG.md)")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
