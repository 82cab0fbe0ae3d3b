"""Pictures of what changes over a clip: a curve's value at every frame, and how much of each prompt a frame sees."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .curves import Curve
from .travel import Travel

Colour = tuple[int, int, int]
BACKGROUND, EMPTY, GRID, TEXT, FULL, SOFT = (
    (23, 23, 28), (41, 43, 54), (58, 60, 72), (196, 199, 208), (89, 184, 250), (43, 82, 112),
)  # fmt: skip
WIDTH, HEIGHT = 640, 288  # px
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 20, 44  # margins, px
SCALE = 2  # drawn larger by so much, for smooth lines
FONT = 15  # px
ROW, BAR = 44, 16  # px of a prompt's row, of the bar in it
ROWS = 48  # prompts in a picture
LETTERS = 80  # of a prompt


class Canvas:
    """A drawing in px, whatever it is drawn at."""

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(FONT * SCALE)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.draw.rectangle(
            [left * SCALE, top * SCALE, max(left, right) * SCALE, max(top, bottom) * SCALE], fill=colour
        )

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float) -> None:
        self.draw.line(
            [(x * SCALE, y * SCALE) for x, y in points], fill=colour, width=round(width * SCALE), joint="curve"
        )

    def dot(self, x: float, y: float, radius: float) -> None:
        self.draw.circle((x * SCALE, y * SCALE), radius * SCALE, fill=FULL)

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        """anchor: Pillow's two letters, for the point of the text that lies at x, y."""
        self.draw.text((x * SCALE, y * SCALE), text, fill=TEXT, font=self.font, anchor=anchor)

    def picture(self) -> Tensor:
        """[height, width, 3] in 0..1."""
        small = self.image.resize(self.size, Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)


def curve_picture(curve: Curve, frames: int) -> Tensor:
    """[height, width, 3] in 0..1: a bar for every frame, and a line through their tops, with dots where there is room."""
    values = curve.over_frames(frames)
    canvas, ticks = Canvas(WIDTH, HEIGHT), value_ticks(min(values), max(values))
    column = (WIDTH - LEFT - RIGHT) / frames

    def x(frame: float) -> float:
        return LEFT + (frame + 0.5) * column

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    for tick in ticks:
        canvas.line([(LEFT, y(tick)), (WIDTH - RIGHT, y(tick))], GRID, 1)
        canvas.text(LEFT - 8, y(tick), f"{tick:.6g}", "rm")
    gap = 1 if column >= 4 else 0
    for frame, value in enumerate(values):
        top, bottom = sorted((y(value), y(0)))
        canvas.box(x(frame - 0.5) + gap, top, x(frame + 0.5) - gap, bottom, SOFT)
    _frame_axis(canvas, frames, LEFT, column, HEIGHT - BOTTOM)
    canvas.line([(x(frame), y(value)) for frame, value in enumerate(values)], FULL, 2)
    if column >= 6:
        for frame, value in enumerate(values):
            canvas.dot(x(frame), y(value), 3)
    return canvas.picture()


def travel_picture(travel: Travel) -> Tensor:
    """[height, width, 3] in 0..1: a row for each prompt with a column for each frame, the brighter the more the frame sees of it."""
    frames, shown = len(travel.frames), travel.prompts[:ROWS]
    words = shortened(shown)
    left_out = len(travel.prompts) - len(shown)
    canvas = Canvas(WIDTH, TOP // 2 + ROW * len(shown) + BOTTOM + (ROW // 2 if left_out else 0))
    column, bottom = (WIDTH - 2 * RIGHT) / frames, TOP // 2 + ROW * len(shown)
    gap = 1 if column >= 4 else 0
    for number in range(len(shown)):
        top = TOP // 2 + ROW * number
        canvas.text(RIGHT, top + 9, words[number], "lm")
        for frame, (first, second, share) in enumerate(travel.frames):
            weight = (first == number) * (1 - share) + (second == number) * share
            left = RIGHT + frame * column
            canvas.box(left, top + 22, left + column - gap, top + 22 + BAR, _mixed(EMPTY, FULL, weight))
    _frame_axis(canvas, frames, RIGHT, column, bottom)
    if left_out:
        canvas.text(RIGHT, bottom + BOTTOM, f"and {left_out} more", "lm")
    return canvas.picture()


def shortened(prompts: Sequence[str]) -> list[str]:
    """In a line each; where there are long ones, without the words that all of them start with."""
    lines = [" ".join(prompt.split()) or "(empty)" for prompt in prompts]
    if len(lines) > 1 and max(map(len, lines)) > LETTERS:
        common = os.path.commonprefix(lines).rfind(" ") + 1  # noqa: RUF071  letters, not folders
        lines = ["..." + line[common:] for line in lines] if common else lines
    return [line if len(line) <= LETTERS else line[: LETTERS - 3] + "..." for line in lines]


def value_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, evenly spaced and about as many as most, from 0 or below low to 0 or above high."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = 1.0
    rough = (high - low) / (most - 1)
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10, 20) if size * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _frame_axis(canvas: Canvas, frames: int, left: float, column: float, top: float) -> None:
    """Numbers of frames below their columns, the last one always."""
    every = next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 200, 500, 10**9) if step * column >= 40)
    named = [frame for frame in range(0, frames, every) if (frames - 1 - frame) * column >= 40] + [frames - 1]
    for frame in named:
        canvas.text(left + (frame + 0.5) * column, top + 13, str(frame), "mm")
    canvas.text(left + frames * column / 2, top + 31, "frame", "mm")


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(one + (other - one) * share) for one, other in zip(first, second, strict=True))
    return red, green, blue
