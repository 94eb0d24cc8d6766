"""What is counted of each record: a few numbers, so that memory grows by some tens of bytes a row, whatever a row holds."""

import struct
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from denserl.data.messages import whole_text
from denserl.inspection.kinds import LABELS, Kind, Record
from denserl.inspection.measures import clustered_share, histogram, repeats, spread, turned_round
from denserl.inspection.scripts import main_script

PROMPT = "prompt"
UNITS = ("characters", "words")


class Tally:
    """Records of one kind, counted one after the other.

    Texts are told apart by hashes of 64 bits: of a hundred million, two would be taken for one with a chance of 0.0003.
    """

    def __init__(self, kind: Kind):
        self.kind, self.records = kind, 0
        self.parts = (PROMPT, *kind.sides)
        self._lengths = {unit: {part: array("I") for part in self.parts} for unit in UNITS}
        self._numbers = {name: array("d") for name in kind.numbers}
        self._rows, self._prompts, self._pairs = array("Q"), array("Q"), array("Q")
        self._first = array("b")  # of a pair: whether the chosen response's hash is the lower one
        self.scripts: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        self.records += 1
        prompt = [whole_text(message) for message in record.prompt]
        responses = [whole_text(response) for response in record.responses]
        for part, texts in zip(self.parts, (prompt, *([text] for text in responses)), strict=True):
            if part == PROMPT and not prompt:
                continue  # plain text has none
            self._lengths["characters"][part].append(sum(map(len, texts)))
            self._lengths["words"][part].append(sum(len(text.split()) for text in texts))
        for name, number in zip(self.kind.numbers, record.numbers, strict=True):
            self._numbers[name].append(number)
        roles = [message["role"] for message in record.prompt]
        key = xxh3_64_digest("\0".join([*roles, *prompt]).encode())
        digests = [xxh3_64_digest(text.encode()) for text in responses]
        if prompt:
            self._prompts.append(int.from_bytes(key, "big"))
        self._rows.append(_key(key, *digests, struct.pack(f"{len(record.numbers)}d", *record.numbers)))
        if len(digests) == 2:
            self._first.append(digests[0] < digests[1])
            self._pairs.append(_key(key, *sorted(digests)))
        self.scripts[main_script([*prompt, *responses])] += 1

    def lengths(self) -> dict[str, dict]:
        """part -> unit -> quantiles."""
        return {part: {unit: spread(_array(self._lengths[unit][part])) for unit in UNITS} for part in self.parts}

    def duplicates(self) -> dict[str, int]:
        """How many rows are, in all, or in their prompt, such as one before them; and pairs that stand both ways round."""
        found = {"rows": repeats(_array(self._rows)), "prompts": repeats(_array(self._prompts))}
        if self._pairs:
            found["turned_round"] = turned_round(_array(self._pairs), _array(self._first).astype(bool))
        return found

    def longer(self) -> dict[str, Any] | None:
        """In how many pairs the chosen response has more characters, or as many as the other; None of what are no pairs."""
        if not self._pairs:
            return None
        chosen, rejected = (_array(self._lengths["characters"][side]).astype(np.int64) for side in self.kind.sides)
        return {
            **clustered_share((chosen > rejected).astype(float), _array(self._prompts)),
            "equal": int((chosen == rejected).sum()),
            "difference": spread(chosen - rejected),
        }

    def numbers(self) -> dict[str, dict]:
        """name -> quantiles and histogram; of a pair's labels only of those that say something."""
        found = {}
        for name, values in self._numbers.items():
            known = _array(values)
            if (known != LABELS.get(name, np.nan)).any():
                found[name] = {
                    **spread(known),
                    "zero": int((known == 0).sum()),
                    "below_zero": int((known < 0).sum()),
                    "missing": int(np.isnan(known).sum()),
                    "histogram": histogram(known),
                }
        return found


def _key(*parts: bytes) -> int:
    return xxh3_64_intdigest(b"".join(parts))


def _array(values: Sequence) -> np.ndarray:
    return np.asarray(values)
