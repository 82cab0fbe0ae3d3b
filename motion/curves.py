"""Numbers that change over the frames of a clip or over the steps of a sampling, and the ways between two values. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .keyframe_text import parse_numbers
from .keyframes import Keyframe, Span, on_frames, on_steps

LINEAR, SLERP, EASE, STEP = "linear", "slerp", "ease", "step"
NUMBER_INTERPOLATIONS = [LINEAR, EASE, STEP]
PROMPT_INTERPOLATIONS = [LINEAR, SLERP, EASE, STEP]


@dataclass(frozen=True)
class Curve:
    """A number at every frame of a clip, or at every step of a sampling.

    keyframes, with interpolation between them; or values, one per frame, of which a single one is a constant. Raises
    ValueError where there are both or neither, and for values that are no finite numbers.
    """

    keyframes: tuple[Keyframe[float], ...] = ()
    values: tuple[float, ...] = ()
    interpolation: str = LINEAR

    def __post_init__(self) -> None:
        if bool(self.keyframes) == bool(self.values):
            raise ValueError("A curve has keyframes or values, one of both.")
        if not all(map(math.isfinite, self.values)):
            raise ValueError("values: expected numbers, found infinite ones or some that are none (NaN).")
        check_interpolation(self.interpolation, NUMBER_INTERPOLATIONS)

    def over_frames(self, frames: int) -> list[float]:
        """A value for each of so many frames. Of values, the last one stays where there are fewer; further ones are left out.

        Raises ValueError, with line and column, for keyframes that such a clip does not have or has twice.
        """
        return list(_over_frames(self, frames))

    def at_places(self, places: Iterable[float], frames: int) -> list[float]:
        """The values of keyframes at places of a clip of so many frames, also between two frames. Raises ValueError as over_frames does."""
        spans = on_frames(self.keyframes, frames)
        return [_number(spans, place, self.interpolation) for place in places]

    def at(self, fraction: float) -> float:
        """The value at a part of the sampling, 0..1; values are spread evenly over it.

        Raises ValueError, with line and column, for keyframes at frames: only percentages are known there.
        """
        if self.values and self.interpolation == STEP:
            return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]
        if self.values:
            spans = [Span(place, place, value) for place, value in enumerate(self.values)]
            return _number(spans, fraction * (len(spans) - 1), self.interpolation)
        return _number(on_steps(self.keyframes), fraction, self.interpolation)


@lru_cache(maxsize=32)
def _over_frames(curve: Curve, frames: int) -> tuple[float, ...]:
    """Kept, because every block of a network asks for the same."""
    if curve.values:
        return tuple(curve.values[min(frame, len(curve.values) - 1)] for frame in range(frames))
    return tuple(curve.at_places(range(frames), frames))


def parse_curve(text: str, interpolation: str = LINEAR) -> Curve:
    """The curve of a text in the syntax of keyframe_text.py: keyframes, a list of numbers, or one number."""
    return Curve(*parse_numbers(text), interpolation)


def between(spans: Sequence[Span[Any]], position: float, interpolation: str) -> tuple[int, int, float]:
    """Two spans by their numbers, and the share of the second: what holds at a position. Outside of all spans the nearest holds.

    linear and slerp go evenly in time, ease slowly at both ends (half a cosine), step holds until the next span.
    """
    before = sum(span.start <= position for span in spans) - 1
    if before < 0:
        return 0, 0, 0.0
    if before == len(spans) - 1 or position <= spans[before].end or interpolation == STEP:
        return before, before, 0.0
    start, end = spans[before].end, spans[before + 1].start
    share = (position - start) / (end - start)
    return before, before + 1, (1 - math.cos(math.pi * share)) / 2 if interpolation == EASE else share


def check_interpolation(interpolation: str, choices: Sequence[str]) -> None:
    if interpolation not in choices:
        raise ValueError(f"interpolation: expected {' or '.join(choices)}, found {interpolation}.")


def _number(spans: Sequence[Span[float]], position: float, interpolation: str) -> float:
    first, second, share = between(spans, position, interpolation)
    return (1 - share) * spans[first].value + share * spans[second].value
