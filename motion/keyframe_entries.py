"""What an editor of keyframes shows: each entry of a text, where it is written and where in the clip it is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .curves import STEP, Curve
from .keyframe_text import Entry, number_entries, parse_numbers, parse_prompts, prompt_entries
from .keyframes import Keyframe, Position, on_frames

POINTS = 240  # parts of a curve's line, at least
PERCENT = 101  # frames of a clip in which a percentage is the number of a frame
JUST_BEFORE = 1e-6  # frames


@dataclass(frozen=True)
class Shown:
    """An entry as it is written, and the part of the clip, in frames, in which its value is held.

    ends: the first and the last place, as they are written; None for an entry of a list, which is where it stands.
    """

    entry: Entry
    value: str
    start: float
    end: float
    ends: tuple[Position, Position] | None


def shown_prompts(text: str, frames: int) -> list[Shown]:
    """Every prompt of a text, in its order. Raises ValueError, with line and column, as a travel over so many frames does."""
    parsed = parse_prompts(text)
    on_frames(parsed.keyframes, frames)
    entries = [entry for entry in prompt_entries(text) if not entry.is_around]
    return _shown(entries, parsed.keyframes, frames)


@dataclass(frozen=True)
class ShownCurve:
    """frames: the curve is drawn over so many; where percent is true they are percentages. line: x and y of its points."""

    entries: list[Shown]
    frames: int
    percent: bool
    line: tuple[list[float], list[float]]


def shown_curve(text: str, frames: int, interpolation: str) -> ShownCurve:
    """Every number of a text, in its order, and the curve. Where only percentages are written they are the places.

    Raises ValueError, with line and column, as a curve over so many frames does.
    """
    keyframes, values = parse_numbers(text)
    curve, entries = Curve(keyframes, values, interpolation), list(number_entries(text))
    percent = bool(keyframes) and all(one.first.percent and one.last.percent for one in keyframes)
    frames = PERCENT if percent else frames
    if values:
        numbers = [
            Shown(entry, f"{value:.12g}", place, place, None)
            for place, (entry, value) in enumerate(zip(entries, values, strict=True))
        ]
        return ShownCurve(numbers[:frames], frames, False, (list(range(frames)), curve.over_frames(frames)))
    shown = _shown(entries, keyframes, frames)
    places = {(frames - 1) * place / POINTS for place in range(POINTS + 1)}
    for one in shown:
        places |= (
            {one.start, one.end, max(0.0, one.start - JUST_BEFORE)} if interpolation == STEP else {one.start, one.end}
        )
    x = sorted(places)
    return ShownCurve(shown, frames, percent, (x, curve.at_places(x, frames)))


def _shown(entries: Sequence[Entry], keyframes: Sequence[Keyframe[Any]], frames: int) -> list[Shown]:
    found = []
    for entry, keyframe in zip(entries, keyframes, strict=True):
        value = keyframe.value if isinstance(keyframe.value, str) else f"{keyframe.value:.12g}"
        ends = None if entry.name is None else (keyframe.first, keyframe.last)
        found.append(Shown(entry, value, keyframe.first.at(frames), keyframe.last.at(frames), ends))
    return found
