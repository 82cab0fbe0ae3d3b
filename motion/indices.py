"""Which frames of a clip pictures are for, as text: `0, 8, -1 = 0.5`, `50%`, `8-15`, `0-100%/4`, `first`, `even`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from .keyframes import NotFrames, Position, parse_frames

EVEN, START, END, CENTRE = "even", "start", "end", "centre"
SPREADS = {
    EVEN: EVEN,
    "uniform": EVEN,
    START: START,
    "starting": START,
    END: END,
    "ending": END,
    CENTRE: CENTRE,
    "center": CENTRE,
}
NAMED = {"first": Position(0, False), "last": Position(-1, False), "middle": Position(50, True)}
EXPECTED = (
    f"frames such as 0, 8, -1, 50%, 8-15, 0-15/4, {', '.join(NAMED)}, or one of {', '.join((EVEN, START, END, CENTRE))}"
)
_ENTRY = re.compile(r"([^=:/]*)(?:/([^=:/]*))?(?:[=:]([^=:/]*))?")


class Place(NamedTuple):
    """A frame, the number of its picture, and how much that counts."""

    frame: int
    picture: int
    strength: float


class Placing(Protocol):
    """What gives pictures their frames; see Indices.places."""

    def places(self, frames: int, pictures: int) -> list[Place]: ...


class _Range(NamedTuple):
    first: Position
    last: Position
    step: int
    strength: float
    name: str


@dataclass(frozen=True)
class Indices:
    """What a text names: ranges of frames, or a spread of all pictures over the clip, and with which strength."""

    ranges: tuple[_Range, ...]
    spread: str = ""
    strength: float = 1.0

    def places(self, frames: int, pictures: int) -> list[Place]:
        """Of so many pictures in a clip of so many frames: one each, one for all, or those at their frames in a clip as long.

        Raises ValueError for frames that the clip does not have or that are named twice, and for another number of pictures.
        """
        if self.spread:
            if pictures > frames:
                raise ValueError(
                    f"images: expected at most {frames}, one for each frame of the clip; found {pictures}."
                )
            return [
                Place(frame, number, self.strength)
                for number, frame in enumerate(spread(self.spread, frames, pictures))
            ]
        found: list[tuple[int, float]] = []
        for one in self.ranges:
            try:
                first, last = (round(end.at(frames)) for end in (one.first, one.last))
            except NotFrames as error:
                raise ValueError(f"indices: expected {error}, found {one.name}.") from None
            if first > last:
                raise ValueError(
                    f"indices: expected a range that runs forwards, found {one.name} in a clip of {frames} frames."
                )
            found += [(frame, one.strength) for frame in range(first, last + 1, one.step)]
        named = [frame for frame, _ in found]
        twice = sorted({frame for frame in named if named.count(frame) > 1})
        if twice:
            raise ValueError(f"indices: frame {twice[0]} is named twice. Name it once.")
        if pictures == len(named):
            chosen = range(pictures)
        elif pictures in (1, frames):
            chosen = [0] * len(named) if pictures == 1 else named
        else:
            raise ValueError(
                f"images: expected {len(named)}, one for each of the frames {', '.join(map(str, named))}, or 1 for all of them, "
                f"or {frames}, one for each frame of the clip; found {pictures}."
            )
        return [Place(frame, picture, strength) for (frame, strength), picture in zip(found, chosen, strict=True)]


def parse_indices(text: str) -> Indices:
    """Entries are separated by commas, spaces or lines; `= 0.5` after one is its strength. Raises ValueError."""
    words = re.findall(r"[^\s,;]+", re.sub(r"\s*([=:/])\s*", r"\1", text))
    if not words:
        raise ValueError(f"indices: expected {EXPECTED}; found nothing.")
    ranges: list[_Range] = []
    for word in words:
        match = _ENTRY.fullmatch(word)
        name, step, strength = match.groups() if match else ("", None, None)
        if (step and not re.fullmatch(r"[1-9]\d{0,5}", step)) or step == "":
            raise ValueError(f"indices: expected a number of frames after the stroke, such as 0-15/4; found {word!r}.")
        if (strength and not re.fullmatch(r"\d{0,3}\.?\d{1,6}", strength)) or strength == "":
            raise ValueError(f"indices: expected a strength of 0 or more, such as 8 = 0.5; found {word!r}.")
        counts = 1.0 if strength is None else float(strength)
        if name.lower() in SPREADS:
            if len(words) > 1 or step:
                raise ValueError(
                    f"indices: {name} gives all pictures their frames, so it stands alone; found {text!r}."
                )
            return Indices((), SPREADS[name.lower()], counts)
        try:
            named = NAMED.get(name.lower())
            first, last = (named, named) if named else parse_frames(name)
        except NotFrames as error:
            raise ValueError(f"indices: expected {error or EXPECTED}; found {word!r}.") from None
        ranges.append(_Range(first, last, int(step or 1), counts, name))
    return Indices(tuple(ranges))


def spread(kind: str, frames: int, pictures: int) -> list[int]:
    """Frames of so many pictures: even ones from the first to the last; else one in each of as many equal parts of the clip,
    at its start, its end or its centre."""
    if kind == EVEN:
        return [round(number * (frames - 1) / max(1, pictures - 1)) for number in range(pictures)]
    starts = [number * frames // pictures for number in range(pictures + 1)]
    parts = zip(starts[:-1], starts[1:], strict=True)
    return [{START: first, END: end - 1, CENTRE: (first + end - 1) // 2}[kind] for first, end in parts]
