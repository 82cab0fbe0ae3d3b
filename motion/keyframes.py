"""Values at places of a clip or of a sampling: what keyframe_text.py reads, and where that is over so many frames. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

_PLACE = r"(-?[0-9]+(?:\.[0-9]+)?)\s*(%?)"
_FRAMES = re.compile(rf"{_PLACE}(?:\s*-\s*{_PLACE})?")


class Where(NamedTuple):
    """A place in a text, counted from 1."""

    line: int
    column: int

    def error(self, expected: str, found: str) -> ValueError:
        return ValueError(f"Line {self.line}, column {self.column}: expected {expected}, found {found}.")


class NotFrames(ValueError):
    """No frames of a clip; its text is what was expected, empty for a text that is nothing of the kind."""


class Position(NamedTuple):
    """A frame, negative ones counted from the end, or so many percent of the way from the first frame to the last."""

    number: float
    percent: bool

    def at(self, frames: int) -> float:
        """In a clip of so many frames; between two where a percentage falls there. Raises NotFrames."""
        if self.percent:
            return self.number * (frames - 1) / 100
        if not -frames <= self.number < frames:
            raise NotFrames(f"a frame of the clip ({f'0 to {frames - 1}, or -1 for the last' if frames > 1 else '0'})")
        return self.number % frames


def parse_frames(text: str) -> tuple[Position, Position]:
    """(first, last) of `0`, `-1`, `50%` or `8-15`. Raises NotFrames."""
    match = _FRAMES.fullmatch(text)
    if match is None:
        raise NotFrames
    first, first_percent, last, last_percent = match.groups()
    ends = [Position(float(first), bool(first_percent))]
    ends.append(ends[0] if last is None else Position(float(last), bool(last_percent)))
    for end in ends:
        if end.percent and not 0 <= end.number <= 100:
            raise NotFrames("0% to 100%")
        if not end.percent and end.number != int(end.number):
            raise NotFrames("a whole frame, or a part of the clip as a percentage (50%)")
    return ends[0], ends[1]


@dataclass(frozen=True)
class Keyframe(Generic[T]):
    """A value held from first to last; name and where: how and where it is written."""

    first: Position
    last: Position
    value: T
    name: str
    where: Where


@dataclass(frozen=True)
class Span(Generic[T]):
    """A value held from start to end, in frames or as parts of 1; start is end for a single frame."""

    start: float
    end: float
    value: T


def on_frames(keyframes: Sequence[Keyframe[T]], frames: int) -> list[Span[T]]:
    """Where in a clip of so many frames each value is held, in their order; between frames where a percentage falls there.

    Raises ValueError for frames that the clip does not have or that have two values.
    """

    def place(keyframe: Keyframe[T], position: Position) -> float:
        try:
            return position.at(frames)
        except NotFrames as error:
            raise keyframe.where.error(str(error), f'"{keyframe.name}"') from None

    return _ordered([(one, place(one, one.first), place(one, one.last)) for one in keyframes])


def on_steps(keyframes: Sequence[Keyframe[T]]) -> list[Span[T]]:
    """Where in a sampling, from 0 to 1, each value is held, in their order. Raises ValueError for frames: only percentages are known."""
    for keyframe in keyframes:
        if not (keyframe.first.percent and keyframe.last.percent):
            raise keyframe.where.error("a percentage (50%), for this runs over sampling steps", f'"{keyframe.name}"')
    return _ordered([(keyframe, keyframe.first.number / 100, keyframe.last.number / 100) for keyframe in keyframes])


def _ordered(placed: list[tuple[Keyframe[T], float, float]]) -> list[Span[T]]:
    for keyframe, start, end in placed:
        if start > end:
            raise keyframe.where.error("a range that runs forwards", f'"{keyframe.name}"')
    placed = sorted(placed, key=lambda one: one[1:])
    for (earlier, _, end), (later, start, _) in zip(placed[:-1], placed[1:], strict=True):
        if start <= end:
            first, second = sorted((earlier, later), key=lambda keyframe: keyframe.where)
            raise second.where.error(
                f'every frame once (line {first.where.line} has "{first.name}")', f'"{second.name}"'
            )
    return [Span(start, end, keyframe.value) for keyframe, start, end in placed]
