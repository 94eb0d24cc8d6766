"""Scored texts at the terminal: segments on colours, or without any, and their numbers in columns."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence

from denserl.data.messages import whole_text
from denserl.pages.segments import share_of
from denserl.scored import words
from denserl.scored.results import ScoredPrompt, SourceScore
from denserl.scored.words import Shown
from denserl.terminal import say, visible

DECIDING = 8  # parts of a difference that are shown
COLUMN = 12  # characters of a column of numbers
LEAST = 24  # characters of the text beside them
# Of xterm's 256 colours, from the lowest number to the highest; black is read on all of them.
SCALE = (215, 216, 223, 230, 231, 195, 153, 117, 110)


def wants_colour(choice: str) -> bool:
    """Whether standard output is to have colours, by the option's word."""
    asked = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return choice == "always" or (choice == "auto" and asked and sys.stdout.isatty())


def in_words(scored: Sequence[ScoredPrompt], coloured: bool = False, width: int | None = None) -> str:
    """What texts score, as lines. Foreign text has its control characters by their code points.

    coloured: segments stand on the ANSI colours of their normalised numbers. width: of the terminal, in characters.
    """
    painter = _Painter(words.how_shown(scored), coloured, width or shutil.get_terminal_size().columns)
    heading = "\n".join(f"by {each.source}" for each in painter.shown)
    return "\n\n".join([heading, *("\n".join(painter.of_prompt(each)) for each in scored)])


def show(scored: Sequence[ScoredPrompt], coloured: bool) -> None:
    """Print what texts score."""
    say(in_words(scored, coloured), coloured=coloured)


class _Painter:
    def __init__(self, shown: Sequence[Shown], coloured: bool, width: int):
        self.shown, self.coloured, self.width = shown, coloured, width

    def of_prompt(self, scored: ScoredPrompt) -> Iterator[str]:
        for message in scored.prompt:
            yield f"{visible(message['role'], kept='')}: {visible(whole_text(message).strip())}"
        for response in scored.responses:
            yield ""
            yield self._bold(words.about(response))
            for score, shown in zip(response.sources, self.shown, strict=True):
                yield shown.name + words.heading(score)
                if score.segments and not words.is_whole(score):
                    yield from self._flow(score, shown) if self.coloured else ()
                    yield from self._table(score, shown)
            if all(words.is_whole(score) for score in response.sources):
                yield visible(response.text)
        for place, found in enumerate(scored.comparisons):
            yield ""
            yield self._bold(self.shown[place].name + words.decided(found, [response.name for response in scored.responses]))
            if words.can_tell_parts(scored, place):
                yield from self._difference(scored, place)

    def _flow(self, score: SourceScore, shown: Shown) -> Iterator[str]:
        # Blanks in front of a segment part it from the one before.
        texts = [words.text_of(segment, "↵\n") for segment in score.segments]
        blanks = [text[: len(text) - len(text.lstrip(" "))] if text.strip(" ") else "" for text in texts]
        shares = [segment.normalised / shown.limit for segment in score.segments]
        painted = [self._painted(text[len(blank) :], share) for text, blank, share in zip(texts, blanks, shares)]
        yield "".join(blank + text for blank, text in zip(blanks, painted))

    def _table(self, score: SourceScore, shown: Shown) -> Iterator[str]:
        yield "".join(name.rjust(COLUMN) for name in shown.columns)
        for segment in score.segments:
            numbers = "".join(words.number(segment, name).rjust(COLUMN) for name in shown.columns)
            text = self._fitting(words.line_of(segment), len(numbers) + 2)
            yield f"{numbers}  {self._painted(text, segment.normalised / shown.limit)}"

    def _difference(self, scored: ScoredPrompt, place: int) -> Iterator[str]:
        parts, names = scored.comparisons[place].parts, [visible(response.name, kept="") for response in scored.responses]
        limit, longest = abs(parts[0].adds) or 1.0, max(map(len, [*names, words.BOTH]))
        yield f"{'adds'.rjust(COLUMN)}{'raw'.rjust(COLUMN)}  what decides: + for {names[0]}, - for {names[1]}"
        for adds, name, segment in words.deciding(scored, place, DECIDING):
            before = f"{words.signed(adds).rjust(COLUMN)}{words.number(segment, 'raw').rjust(COLUMN)}  {name.ljust(longest)}  "
            yield before + self._painted(self._fitting(words.line_of(segment), len(before)), adds / limit)
        rest = parts[DECIDING:]
        if rest:
            together = words.signed(sum(part.adds for part in rest))
            yield f"{together.rjust(COLUMN)}{''.rjust(COLUMN)}  {len(rest)} others together"

    def _fitting(self, text: str, before: int) -> str:
        room = max(self.width - before, LEAST)
        return text if len(text) <= room else text[: room - 1] + "…"

    def _painted(self, text: str, share: float) -> str:
        """The text on the colour of a share from -1 to 1, line by line, so that no line ends in one."""
        if not self.coloured:
            return text
        step = round((share_of(share, 1.0) + 1) / 2 * (len(SCALE) - 1))
        return "\n".join(f"\x1b[38;5;16;48;5;{SCALE[step]}m{line}\x1b[0m" if line else "" for line in text.split("\n"))

    def _bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self.coloured else text
