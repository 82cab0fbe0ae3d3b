"""Clips beside each other in one, with labels: for comparing prompts, seeds and models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

HOLD, LOOP = "hold last frame", "loop"
ENDINGS = [HOLD, LOOP]  # of clips that are shorter than the longest
GAP = 4  # px
MARGIN = 0.4  # around a label, of its size
MOST_LINES = 6  # of a label above a column
BACKGROUND, TEXT = (24, 24, 28), (235, 235, 235)


def clip_grid(
    clips: Sequence[Tensor], columns: int = 0, row_labels: Sequence[str] = (), column_labels: Sequence[str] = (),
    label_size: int = 20, ending: str = HOLD,
) -> Tensor:  # fmt: skip
    """Clips, each [frames, h, w, 3] in 0..1, row by row in one clip as long as the longest, [frames, height, width, 3].

    columns: 0 is as many as there are column_labels, or what row_labels ask for, or about as many as rows. Smaller
    clips are scaled to fit the cell, which is as large as the largest clip, and lie on the background.
    label_size: the letters' height in px. Labels are wrapped, to their cell's width above columns, and cut off with ... where they need more than its height.
    Raises ValueError where the labels are not one for each column and row.
    """
    columns, rows = _layout(len(clips), columns, len(row_labels), len(column_labels))
    cell_height, cell_width = (max(clip.shape[side] for clip in clips) for side in (1, 2))
    font: Any = ImageFont.load_default(size=label_size)
    margin = round(MARGIN * label_size)
    beside, above = max(cell_width, 10 * label_size), cell_width - 2 * margin
    lines = max(1, (cell_height - 2 * margin) // sum(font.getmetrics()))
    rows_drawn = [_drawn(text, font, beside, lines, margin) for text in row_labels]
    columns_drawn = [_drawn(text, font, above, MOST_LINES, margin) for text in column_labels]
    left = max((label.width for label in rows_drawn), default=0)
    top = max((label.height for label in columns_drawn), default=0)
    pitch_y, pitch_x = cell_height + GAP, cell_width + GAP
    sheet = Image.new("RGB", (left + columns * pitch_x + GAP, top + rows * pitch_y + GAP), BACKGROUND)
    for row, label in enumerate(rows_drawn):
        sheet.paste(label, (0, top + GAP + row * pitch_y + (cell_height - label.height) // 2))
    for column, label in enumerate(columns_drawn):
        sheet.paste(label, (left + GAP + column * pitch_x + (cell_width - label.width) // 2, top - label.height))

    frames = max(len(clip) for clip in clips)
    result = _tensor(sheet).repeat(frames, 1, 1, 1)
    for number, clip in enumerate(clips):
        y = top + GAP + number // columns * pitch_y
        x = left + GAP + number % columns * pitch_x
        fitted = _fitted(clip, cell_height, cell_width)
        y, x = y + (cell_height - fitted.shape[1]) // 2, x + (cell_width - fitted.shape[2]) // 2
        shown = torch.arange(frames)
        shown = shown % len(clip) if ending == LOOP else shown.clamp(max=len(clip) - 1)
        result[:, y : y + fitted.shape[1], x : x + fitted.shape[2]] = fitted[shown]
    return result


def _layout(clips: int, columns: int, row_labels: int, column_labels: int) -> tuple[int, int]:
    """(columns, rows)"""
    if not columns:
        columns = column_labels or (math.ceil(clips / row_labels) if row_labels else math.ceil(math.sqrt(clips)))
    rows = math.ceil(clips / columns)
    for name, found, expected in (("column", column_labels, columns), ("row", row_labels, rows)):
        if found and found != expected:
            raise ValueError(
                f"{name}_labels: {clips} clips in {columns} columns have {rows} rows, expected {expected} labels, one in each line; found {found}."
            )
    return columns, rows


def _drawn(text: str, font: Any, width: int, lines: int, margin: int) -> Image.Image:
    wrapped = _wrapped(text, font, width)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], _wrapped(wrapped[lines - 1], font, width - font.getlength("..."))[0] + "..."]
    block = "\n".join(wrapped)
    right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), block, font=font)[2:]
    picture = Image.new("RGB", (math.ceil(right) + 2 * margin, math.ceil(bottom) + 2 * margin), BACKGROUND)
    ImageDraw.Draw(picture).multiline_text((margin, margin), block, TEXT, font, align="center")
    return picture


def _wrapped(text: str, font: Any, width: float) -> list[str]:
    """Lines of text no wider than width; words that are wider are broken, but never below one letter."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _fitted(clip: Tensor, height: int, width: int) -> Tensor:
    """clip [frames, h, w, 3 or 4] as large as fits into height x width, without its transparency."""
    pixels = clip[..., :3].float()
    scale = min(height / clip.shape[1], width / clip.shape[2])
    size = [max(1, round(side * scale)) for side in clip.shape[1:3]]
    if size == list(clip.shape[1:3]):
        return pixels
    scaled = F.interpolate(pixels.movedim(-1, 1), size=size, mode="bicubic", antialias=True, align_corners=False)
    return scaled.clamp(0, 1).movedim(1, -1)


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).float() / 255
