"""What tensorboard shows of a run's folder, read as its own pages read it."""

from pathlib import Path

Points = list[tuple[int, float]]  # steps and values


def scalars(folder: Path, name: str) -> Points:
    return [(event.step, event.tensor_proto.float_val[0]) for event in _events(folder, name)]


def texts(folder: Path, name: str) -> list[tuple[int, str]]:
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in _events(folder, f"{name}/text_summary")]


def _events(folder: Path, tag: str) -> list:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "denserl")).Reload().Tensors(tag)
