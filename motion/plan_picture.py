"""A picture of context windows: a row for each window, a column for each frame, the brighter the more the window counts there."""

from __future__ import annotations

import torch
from torch import Tensor

from .windows import Windows, plan

BACKGROUND, EMPTY, FULL = (
    torch.tensor(colour) for colour in ((0.09, 0.09, 0.11), (0.16, 0.17, 0.21), (0.35, 0.72, 0.98))
)
STEPS = 4  # the windows of so many steps, where they move
WIDEST = 1024  # px
ROW, GAP = 10, 8  # px


def picture(settings: Windows, frames: int) -> Tensor:
    """[height, width, 3] in 0..1. Several blocks of rows are the first steps of a schedule whose windows move."""
    plans = list(dict.fromkeys(plan(settings, frames, step) for step in range(STEPS)))
    column = max(1, min(12, WIDEST // frames))
    blocks: list[Tensor] = []
    for one in plans:
        weights = torch.zeros(len(one.windows), frames)
        for row, (window, shares) in enumerate(zip(one.windows, one.weights, strict=True)):
            weights[row, list(window)] = torch.tensor(shares)
        colours = torch.where(weights[..., None] > 0, FULL.lerp(EMPTY, 0.6 * (1 - weights[..., None])), EMPTY)
        cells = colours.repeat_interleave(ROW, 0).repeat_interleave(column, 1)
        cells[ROW - 1 :: ROW] = BACKGROUND
        if column > 3:
            cells[:, column - 1 :: column] = BACKGROUND
        blocks += [cells, BACKGROUND.expand(GAP, frames * column, 3)]
    return torch.cat(blocks[:-1])
