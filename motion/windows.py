"""Context windows: which frames are denoised together at a step, and how what several windows say of a frame is averaged.

Pure. The schedules go by the names that ComfyUI and AnimateDiff-Evolved give them; the uniform ones move with every step by
the base-2 van der Corput sequence, so that seams fall elsewhere each time. The pyramid is FreeNoise's (arXiv:2310.15169).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .settings import check

STATIC, UNIFORM, LOOPED, BATCHED = "standard_static", "standard_uniform", "looped_uniform", "batched"
SCHEDULES = [STATIC, UNIFORM, LOOPED, BATCHED]

Window = tuple[int, ...]  # frames, in the order in which the motion model sees them


@dataclass(frozen=True)
class Windows:
    """Settings of a plan. Raises ValueError for those that no plan can have.

    length: frames per window. overlap: frames that neighbours share. stride: how many levels of windows that skip frames
    (1: none; 2: also every second frame; 3: also every fourth), with uniform schedules. closed_loop: the last frame is
    followed by the first; with the looped schedule.
    """

    length: int = 16
    overlap: int = 4
    stride: int = 1
    schedule: str = STATIC
    fuse: str = "pyramid"
    closed_loop: bool = False

    def __post_init__(self) -> None:
        check(self.length >= 1, "context_length", "at least 1", self.length)
        check(0 <= self.overlap < self.length, "overlap", f"less than context_length ({self.length})", self.overlap)
        check(self.stride >= 1, "stride", "at least 1", self.stride)
        check(self.schedule in SCHEDULES, "schedule", " or ".join(SCHEDULES), self.schedule)
        check(self.fuse in FUSES, "fuse", " or ".join(FUSES), self.fuse)

    @property
    def loops(self) -> bool:
        return self.closed_loop and self.schedule == LOOPED

    def needed(self, frames: int) -> bool:
        """Whether the plan for so many frames is more than one window with all of them in their order."""
        return frames > self.length or (self.loops and frames > 1)


@dataclass(frozen=True)
class Plan:
    """The windows of one step over so many frames, and the weight of each frame in each; a frame's weights sum to 1."""

    frames: int
    windows: tuple[Window, ...]
    weights: tuple[tuple[float, ...], ...]


@lru_cache(maxsize=8)  # the blocks of one evaluation ask for the same
def plan(settings: Windows, frames: int, step: int = 0) -> Plan:
    """The plan of the step with this number, counted from 0. Windows have settings.length frames, or all where there are fewer."""
    windows = tuple(dict.fromkeys(_windows(settings, frames, step)))
    raw = [_weights(settings, window, frames) for window in windows]
    totals = [0.0] * frames
    for window, weights in zip(windows, raw, strict=True):
        for frame, weight in zip(window, weights, strict=True):
            totals[frame] += weight
    return Plan(
        frames,
        windows,
        tuple(
            tuple(weight / totals[frame] for frame, weight in zip(window, weights, strict=True))
            for window, weights in zip(windows, raw, strict=True)
        ),
    )


def together(windows: Sequence[Window], most: int) -> list[list[Window]]:
    """The windows in groups of at most so many, of which no two share a frame."""
    groups: list[list[Window]] = []
    for window in windows:
        for group in groups:
            if len(group) < most and not any(set(window) & set(other) for other in group):
                group.append(window)
                break
        else:
            groups.append([window])
    return groups


def van_der_corput(number: int) -> float:
    """The binary digits of number behind the point, the last one first: 0, 1/2, 1/4, 3/4, 1/8, ..."""
    result, digit = 0.0, 0.5
    while number:
        result += digit * (number & 1)
        number, digit = number >> 1, digit / 2
    return result


def _windows(settings: Windows, frames: int, step: int) -> list[Window]:
    length, overlap, schedule = settings.length, settings.overlap, settings.schedule
    if frames <= length:
        turn = round(van_der_corput(step) * frames) if settings.loops else 0
        return [tuple((frame + turn) % frames for frame in range(frames))]
    if schedule in (STATIC, BATCHED):
        spacing = length if schedule == BATCHED else length - overlap
        return [_straight(start, 1, length) for start in _clipped(0, spacing, frames - length)]
    result: list[Window] = []
    for skip in (2**level for level in range(settings.stride)):
        if length * skip > frames:  # a window would see a frame twice
            break
        spacing = length * skip - overlap
        first = round(van_der_corput(step) * spacing)
        if schedule == LOOPED:
            count = math.ceil((frames if settings.closed_loop else frames - overlap) / spacing)
            starts = range(first, first + count * spacing, spacing)
            result += [tuple(frame % frames for frame in _straight(start, skip, length)) for start in starts]
        else:
            last = frames - ((length - 1) * skip + 1)
            result += [_straight(start, skip, length) for start in _clipped(-first, spacing, last)]
    return result


def _straight(start: int, skip: int, length: int) -> Window:
    return tuple(range(start, start + skip * length, skip))


def _clipped(first: int, spacing: int, last: int) -> list[int]:
    """Starts from first on, moved into 0..last, until last is reached."""
    count = math.ceil((last - first) / spacing) + 1
    return [min(max(first + number * spacing, 0), last) for number in range(count)]


def _flat(settings: Windows, window: Window, frames: int) -> list[float]:
    return [1.0] * len(window)


def _pyramid(settings: Windows, window: Window, frames: int) -> list[float]:
    return [float(min(place + 1, len(window) - place)) for place in range(len(window))]


def _relative(settings: Windows, window: Window, frames: int) -> list[float]:
    middle = (len(window) - 1) / 2
    return [max(0.01, 1 - abs(place - middle) / (middle + 0.005)) for place in range(len(window))]


def _overlap_linear(settings: Windows, window: Window, frames: int) -> list[float]:
    """Even, with ramps over the overlap on the sides where there is a neighbour."""
    size, skip = len(window), window[1] - window[0] if len(window) > 1 else 1
    ramp = min(settings.overlap, size)
    has_left = settings.schedule == LOOPED or min(window) >= skip
    has_right = settings.schedule == LOOPED or max(window) + skip < frames
    return [
        min(
            1.0,
            (place + 1) / (ramp + 1) if has_left else 1.0,
            (size - place) / (ramp + 1) if has_right else 1.0,
        )
        for place in range(size)
    ]


def _smooth(settings: Windows, window: Window, frames: int) -> list[float]:
    """A raised cosine."""
    return [math.sin(math.pi * (place + 0.5) / len(window)) ** 2 for place in range(len(window))]


_FUNCTIONS: dict[str, Callable[[Windows, Window, int], list[float]]] = {
    "pyramid": _pyramid,
    "flat": _flat,
    "overlap-linear": _overlap_linear,
    "relative": _relative,
    "smooth": _smooth,
}
FUSES = list(_FUNCTIONS)


def _weights(settings: Windows, window: Window, frames: int) -> list[float]:
    return _FUNCTIONS[settings.fuse](settings, window, frames)
