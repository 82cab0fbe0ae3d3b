"""Footage: frames of a video file at even times, of one size, as a batch of images. No host import."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from .video import DatasetError, cover, frame_times, read_frames, timing

MULTIPLE = 8  # pixels of a latent's cell
SLOWEST = 0.01  # frames a second
ROUNDING = Fraction(1, 1000)  # seconds by which containers round the time of a frame


@dataclass(frozen=True)
class Footage:
    """What is read of a video: numbers has the picture of each frame of the clip, repeated where it is still shown."""

    path: Path
    numbers: tuple[int, ...]
    rate: float  # frames per second
    height: int
    width: int

    @property
    def bytes(self) -> int:
        return len(self.numbers) * self.height * self.width * 3 * 4

    def read(self, on_frame: Callable[[int], None] = lambda done: None) -> Tensor:
        """[frames, height, width, 3] in 0..1; nothing is squashed. on_frame: told how many there are, after each.

        Raises DatasetError where the file turns out to be damaged.
        """
        images = torch.empty(len(self.numbers), self.height, self.width, 3)
        runs = [len(list(run)) for _, run in groupby(self.numbers)]
        done = 0
        for picture, run in zip(read_frames(self.path, sorted(set(self.numbers))), runs, strict=True):
            pixels = picture.permute(2, 0, 1)[None]
            images[done : done + run] = cover(pixels, self.height, self.width)[0].permute(1, 2, 0)
            done += run
            on_frame(done)
        return images


def find_footage(
    path: Path, frame_rate: float = 0, start: float = 0, frames: int = 0, width: int = 0, height: int = 0
) -> Footage:
    """frames frames of the video at path, from start (seconds after its first frame) on; 0 is all there are.

    frame_rate: frames per second, each the picture that a player shows at that time, whatever the durations of the
    file's own; 0 takes every picture of the file once. width, height: pixels; where one is 0 the shape is kept, where
    both are, the video's size, cut to multiples of 8.
    Raises ValueError, before more than one frame is decoded, where the file cannot be read or is too short.
    """
    try:
        times, (tick, own_rate) = frame_times(path), timing(path)
        (first,) = read_frames(path, [0])
    except DatasetError as error:
        raise ValueError(
            f"{str(error).rstrip('.')}. Choose a video that plays in a browser, or convert it to mp4 (H.264)."
        ) from None
    if 0 < frame_rate < SLOWEST:
        raise ValueError(
            f"frame_rate: expected at least {SLOWEST} frames a second, or 0 for the video's own, found {frame_rate:g}."
        )
    rate = Fraction(frame_rate).limit_denominator(10000) if frame_rate else own_rate
    begin = Fraction(start).limit_denominator(10000)
    length = (times[-1] - times[0]) * tick + 1 / own_rate
    if begin >= length:
        raise ValueError(
            f"{path.name} is {float(length):.2f} seconds long, start is {start:g}. Choose a start below that."
        )
    if frame_rate:
        shown = range(math.ceil((length - begin - ROUNDING) * rate) or 1)
        numbers = [_shown_at(times, tick, begin + count / rate) for count in shown[: frames or None]]
    else:
        shown = range(_shown_at(times, tick, begin), len(times))
        numbers = list(shown[: frames or None])
    if len(numbers) < frames:
        raise ValueError(
            f"{path.name} has {len(shown)} frames from {start:g} seconds on at {float(rate):g} frames a second, {frames} were asked for. "
            f"Set frames to 0 (all there are) or at most {len(shown)}, choose an earlier start or a higher frame_rate."
        )
    height, width = _size(first.shape[0], first.shape[1], height, width)
    return Footage(path, tuple(numbers), float(rate), height, width)


def _shown_at(times: Sequence[int], tick: Fraction, seconds: Fraction) -> int:
    """The number of the frame that is shown so many seconds after the first."""
    now = times[0] + (seconds + min(tick, ROUNDING)) / tick
    return max(0, bisect_right(times, now) - 1)


def _size(own_height: int, own_width: int, height: int, width: int) -> tuple[int, int]:
    if not height and not width:
        height, width = own_height // MULTIPLE, own_width // MULTIPLE
    else:
        height, width = (
            round((height or width * own_height / own_width) / MULTIPLE),
            round((width or height * own_width / own_height) / MULTIPLE),
        )
    return max(1, height) * MULTIPLE, max(1, width) * MULTIPLE
