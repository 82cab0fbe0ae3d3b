"""A picture of context windows: a row for each window, a column for each frame, the brighter the more the window counts there."""

from __future__ import annotations

import torch
from torch import Tensor

from .windows import LOOPED, UNIFORM, Plan, Windows, plan

BACKGROUND, EMPTY, FULL = (
    torch.tensor(colour) for colour in ((0.09, 0.09, 0.11), (0.16, 0.17, 0.21), (0.35, 0.72, 0.98))
)
STEPS = 4  # the windows of so many steps, where they move
MOST_ROWS = 256  # of which only two steps are left where there are more
LARGEST = 1024  # px
COLUMN, ROW, GAP = 12, 10, 8  # px
BETWEEN = -1.0  # in place of a weight: no cell


def first_plans(settings: Windows, frames: int) -> list[Plan]:
    """The plans of the first steps that differ: one, unless the windows of the schedule move."""
    plans: dict[Plan, None] = {}
    for step in range(STEPS if settings.schedule in (UNIFORM, LOOPED) else 1):
        plans[plan(settings, frames, step)] = None
        if len(plans) > 1 and sum(len(one.windows) for one in plans) > MOST_ROWS:
            break
    return list(plans)


def picture(plans: list[Plan]) -> Tensor:
    """[height, width, 3] in 0..1. Several blocks of rows are several steps."""
    weights = _cells(plans)[..., None]
    colours = torch.where(weights > 0, FULL.lerp(EMPTY, 0.6 * (1 - weights)), EMPTY)
    return torch.where(weights == BETWEEN, BACKGROUND, colours)


def drawing(plans: list[Plan]) -> Tensor:
    """The same for a page of any colour: [height, width, 4] in 0..1, the last of which is the opacity."""
    weights = _cells(plans)[..., None]
    blue, grey = torch.tensor([0.2, 0.53, 0.93]), torch.tensor([0.5, 0.5, 0.5])
    opacity = torch.where(weights > 0, 0.3 + 0.7 * weights, torch.where(weights == BETWEEN, 0.0, 0.16))
    return torch.cat([torch.where(weights > 0, blue, grey), opacity], -1)


def caption(plans: list[Plan]) -> str:
    """What the picture shows, in words."""
    frames, length = plans[0].frames, len(plans[0].windows[0])
    stepping = f"with the steps (the first {len(plans)} shown)"
    if length == frames:
        return f"{frames} frames: one window" + (f", turned {stepping}" if plans[1:] else "")
    counts = sorted({len(one.windows) for one in plans})
    many = " to ".join(dict.fromkeys(str(count) for count in (counts[0], counts[-1])))
    return f"{frames} frames: {many} windows of {length} {f'that move {stepping}' if plans[1:] else 'at every step'}"


def _cells(plans: list[Plan]) -> Tensor:
    """[height, width]: what a window counts in a frame, 0 where it does not reach, BETWEEN around the cells."""
    frames, rows = plans[0].frames, sum(len(one.windows) for one in plans)
    column, row = (max(1, min(most, LARGEST // count)) for most, count in ((COLUMN, frames), (ROW, rows)))
    blocks: list[Tensor] = []
    for one in plans:
        weights = torch.zeros(len(one.windows), frames)
        for number, (window, shares) in enumerate(zip(one.windows, one.weights, strict=True)):
            weights[number, list(window)] = torch.tensor(shares)
        cells = weights.repeat_interleave(row, 0).repeat_interleave(column, 1)
        if row > 3:
            cells[row - 1 :: row] = BETWEEN
        if column > 3:
            cells[:, column - 1 :: column] = BETWEEN
        blocks += [cells, torch.full((GAP, frames * column), BETWEEN)]
    return torch.cat(blocks[:-1])
