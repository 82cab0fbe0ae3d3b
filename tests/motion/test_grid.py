"""Grids, read off their pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffdirector.motion.grid import BACKGROUND, GAP, LOOP, clip_grid

DARK = torch.tensor(BACKGROUND) / 255


def plain(value: float, frames: int = 2, height: int = 40, width: int = 60) -> Tensor:
    """A clip of one colour that grows by 0.01 a frame."""
    return torch.stack([torch.full((height, width, 3), value + 0.01 * index) for index in range(frames)])


def cell(grid: Tensor, row: int, column: int, top: int = 0, left: int = 0) -> Tensor:
    y, x = top + GAP + row * (40 + GAP), left + GAP + column * (60 + GAP)
    return grid[:, y : y + 40, x : x + 60]


def test_clips_lie_row_by_row_pixel_for_pixel() -> None:
    clips = [torch.rand(3, 40, 60, 3) for _ in range(5)]
    grid = clip_grid(clips, columns=3)
    assert grid.shape == (3, 2 * 44 + GAP, 3 * 64 + GAP, 3)
    for number, clip in enumerate(clips):
        assert torch.equal(cell(grid, number // 3, number % 3), clip)
    assert torch.equal(cell(grid, 1, 2), DARK.expand(3, 40, 60, 3))
    assert torch.equal(grid[:, :GAP], DARK.expand(3, GAP, 196, 3))


@pytest.mark.parametrize(
    ("clips", "settings", "across"),
    [
        (5, {}, 3),
        (9, {}, 3),
        (2, {}, 2),
        (6, {"column_labels": "ab"}, 2),
        (6, {"row_labels": "ab"}, 3),
        (5, {"row_labels": "ab", "columns": 4}, 4),
    ],
)
def test_columns_follow_from_the_labels_or_the_number_of_clips(clips: int, settings: dict, across: int) -> None:
    with_labels = clip_grid([plain(0.5)] * clips, **settings)
    top = with_labels.shape[1] - GAP - 44 * -(-clips // across)
    left = with_labels.shape[2] - GAP - 64 * across
    assert (top > 0) == ("column_labels" in settings) and (left > 0) == ("row_labels" in settings)
    assert torch.allclose(
        cell(with_labels, (clips - 1) // across, (clips - 1) % across, top, left)[0], torch.tensor(0.5)
    )


def test_shorter_clips_hold_their_last_frame_or_start_again() -> None:
    clips = [plain(0.2, frames=5), plain(0.6, frames=2)]
    held, again = clip_grid(clips, 2), clip_grid(clips, 2, ending=LOOP)
    assert cell(held, 0, 1).mean((1, 2, 3)).tolist() == pytest.approx([0.6, 0.61, 0.61, 0.61, 0.61])
    assert cell(again, 0, 1).mean((1, 2, 3)).tolist() == pytest.approx([0.6, 0.61, 0.6, 0.61, 0.6])
    assert cell(again, 0, 0).mean((1, 2, 3)).tolist() == pytest.approx([0.2, 0.21, 0.22, 0.23, 0.24])


def test_other_sizes_are_scaled_to_fit_and_centred() -> None:
    grid = clip_grid([plain(0.2), plain(0.8, height=10, width=10), plain(0.8, height=10, width=30)], 3)
    square, flat = cell(grid, 0, 1)[0], cell(grid, 0, 2)[0]
    assert torch.allclose(square[:, 10:50], torch.tensor(0.8), atol=1e-3)
    assert torch.equal(square[:, :10], DARK.expand(40, 10, 3)) and torch.equal(square[:, 50:], DARK.expand(40, 10, 3))
    assert torch.allclose(flat[10:30], torch.tensor(0.8), atol=1e-3)
    assert torch.equal(flat[:10], DARK.expand(10, 60, 3)) and torch.equal(flat[30:], DARK.expand(10, 60, 3))


def test_labels_are_legible_beside_and_above_their_clips() -> None:
    long = "a very long prompt that goes on and on, with unbelievablylongwordswithoutanyspace in it " * 3
    grid = clip_grid([plain(0.5)] * 4, 2, ["cfg 4", long], ["seed 1", long], label_size=12)
    top, left = grid.shape[1] - GAP - 88, grid.shape[2] - GAP - 128
    for number in range(4):  # no label lies on a clip
        assert torch.allclose(cell(grid, number // 2, number % 2, top, left)[0], torch.tensor(0.5))
    ink = (grid[0] - DARK).abs().amax(-1) > 0.5
    areas = {
        "first column": ink[:top, left + GAP : left + GAP + 60],
        "second column": ink[:top, left + GAP + 64 : left + GAP + 124],
        "first row": ink[top + GAP : top + GAP + 40, :left],
        "second row": ink[top + GAP + 44 : top + GAP + 84, :left],
    }
    for name, area in areas.items():
        assert area.sum() > 40, name
        assert not area[:, 0].any() and not area[:, -1].any(), f"{name} is cut off"
    assert areas["second column"].sum() > 3 * areas["first column"].sum()
    assert not areas["first column"][: top // 2].any()  # a short label lies at its clip
    assert not ink[: top + GAP, :left].any()
    larger = clip_grid([plain(0.5)] * 4, 2, ["cfg 4", "b"], ["seed 1", "b"], label_size=24)
    assert larger.shape[1] - 92 > 1.5 * (clip_grid([plain(0.5)] * 4, 2, (), ["a", "b"], label_size=12).shape[1] - 92)


def test_labels_that_are_too_many_or_too_few_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match="column_labels: 4 clips in 2 columns have 2 rows, expected 2 labels, one in each line; found 3",
    ):
        clip_grid([plain(0.5)] * 4, 2, (), ["a", "b", "c"])
    with pytest.raises(ValueError, match="row_labels: 4 clips in 4 columns have 1 rows, expected 1 labels"):
        clip_grid([plain(0.5)] * 4, 4, ["a", "b"])
