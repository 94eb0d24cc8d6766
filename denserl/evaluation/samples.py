"""Several responses to each prompt, sampled into a file from which a stopped run goes on.

Scoring them is done elsewhere.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from denserl import distributed
from denserl.errors import Stopped, UserError
from denserl.files import cut_torn_line, write_flushed
from denserl.rollouts.base import Sampler, Stream
from denserl.trainer.checkpoint import check_settings
from denserl.trainer.stopping import StopRequest

log = logging.getLogger(__name__)
Key = tuple[int, int]  # the prompt's row in the data, the number of the sample


class Prompt(NamedTuple):
    """What a response is sampled to."""

    messages: list[dict]
    ids: list[int]


class Sample(NamedTuple):
    """A sampled response, as a row of the file has it."""

    id: int  # the prompt's row in the data
    sample: int  # 0, 1, ... of the prompt
    prompt: list[dict]  # messages
    response: str
    ended: bool  # with an end token, and not cut off at the longest length
    prompt_ids: list[int]  # as the policy read and wrote them
    response_ids: list[int]
    label: str = ""  # what the prompt's row says of the right answer, as it is read now; no row of the file has it


class SampleFile:
    """A JSON-lines file of Samples and, beside it, `<name>.settings.json` with what they were sampled with.

    Args:
        settings: JSON-able; samples that were drawn with others are refused. Given the same on every rank.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.settings = path, settings

    def read(self, wanted: Mapping[Key, Prompt]) -> dict[Key, Sample]:
        """The samples that are wanted and there, the same on every rank. A torn last line is cut off.

        Raises:
            UserError: they were sampled with other settings, or for other prompts, or the file holds something else.
        """
        found = self._read(wanted) if distributed.rank() == 0 else None
        return distributed.gather_objects(found)[0]

    def append(self, samples: list[Sample]) -> None:
        """Write samples and wait until they are on the disk. By rank 0."""
        if distributed.rank() > 0:
            return
        if not self.settings_path.exists():
            write_flushed(self.settings_path, json.dumps(self.settings, indent=2) + "\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(
                json.dumps({key: value for key, value in sample._asdict().items() if key != "label"}) + "\n"
                for sample in samples
            )
            file.flush()
            os.fsync(file.fileno())

    @property
    def settings_path(self) -> Path:
        """What the samples were drawn with."""
        return self.path.with_suffix(".settings.json")

    def _read(self, wanted: Mapping[Key, Prompt]) -> dict[Key, Sample]:
        # Without settings beside it the file is none of these, and is not touched.
        settings = self._read_settings() if self.path.exists() else {}
        if not settings or not cut_torn_line(self.path):
            for left in (self.path, self.settings_path):
                if left.exists():  # of no folder, which unlink would not pass over
                    left.unlink()
            return {}
        check_settings(settings, self.settings, frozenset(), self.path)
        samples = [self._sample(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        found = {(sample.id, sample.sample): sample for sample in samples if (sample.id, sample.sample) in wanted}
        for key, sample in found.items():
            if sample.prompt != wanted[key].messages:
                raise UserError(f"{self.path}: samples of id {sample.id} are of another prompt", "give the data they are of")
        return found

    def _read_settings(self) -> dict:
        try:
            return dict(json.loads(self.settings_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.settings_path} does not say what {self.path.name} was sampled with ({error})",
                "restore it, or give another file",
            ) from error

    def _sample(self, line: str) -> Sample:
        try:
            sample = Sample(**json.loads(line))
            return sample._replace(id=int(sample.id), sample=int(sample.sample))
        except (ValueError, TypeError) as error:
            fix = "give another file; one that denserl 0.1 wrote holds no token ids: sample anew"
            raise UserError(f"{self.path} holds a row that is no sample ({error})", fix) from error


def draw_samples(
    file: SampleFile,
    missing: Mapping[Key, Prompt],
    sampler: Sampler,
    decode: Callable[[list[int]], str],
    *,
    numbers: Callable[[Key], Stream],
    at_once: int,
) -> dict[Key, Sample]:
    """Sample what is missing and append it to the file, `at_once` responses at a time on each rank.

    The random numbers of a response are a function of its key alone: they are the same on any number of ranks and after any
    stop.

    Args:
        decode: token ids -> text. numbers: key -> stream of random numbers.

    Returns: all that was sampled, on every rank.

    Raises:
        Stopped: SIGTERM or SIGINT asked for it; what was being sampled was finished and written.
    """
    drawn: dict[Key, Sample] = {}
    keys, size = list(missing), at_once * distributed.world_size()
    with StopRequest() as stop, tqdm(total=len(keys), desc="samples", disable=distributed.rank() > 0) as bar:
        for first in range(0, len(keys), size):
            part = keys[first : first + size]
            mine = part[distributed.rank() :: distributed.world_size()]
            rollouts = sampler([missing[key].ids for key in mine], [numbers(key) for key in mine])
            found = [
                Sample(*key, missing[key].messages, decode(ids), ended, prompt_ids, ids)
                for key, prompt_ids, ids, ended in zip(mine, *rollouts[:3], strict=True)
            ]
            found = sorted((s for share in distributed.gather_objects(found) for s in share), key=lambda s: (s.id, s.sample))
            file.append(found)
            drawn |= {(sample.id, sample.sample): sample for sample in found}
            bar.update(len(part))
            if stop.requested() and len(drawn) < len(keys):
                left = len(keys) - len(drawn)
                raise Stopped(f"stopped with {left} responses still to sample; {file.path} keeps the others")
    return drawn
