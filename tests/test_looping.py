"""The clips that nodes which output frames show of them: their frames, their moments, their size."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from diffdirector.nodes.clips import ClipGrid, LoopClip
from diffdirector.nodes.looping import MOST_FRAMES, SIDE, looping
from diffdirector.nodes.sparsectrl import MOST_STILLS, ScribblePreprocessor


def read(shown: dict) -> tuple[list[np.ndarray], list[int]]:
    """Frames [height, width, 3] in 0..255 of a node's ui, and how long each is seen, in ms."""
    (saved,) = shown["images"]
    assert shown["animated"] == (True,) and saved["type"] == "temp"
    path = Path(folder_paths.get_temp_directory(), saved["subfolder"], saved["filename"])
    with Image.open(path) as file:
        frames = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(file)]
    return [frame for frame, _ in frames], [duration for _, duration in frames]


def greys(count: int, height: int = 16, width: int = 24) -> torch.Tensor:
    """Each frame is of one grey, [count, height, width, 3]."""
    return torch.linspace(0, 1, count)[:, None, None, None].expand(count, height, width, 3)


def test_a_clip_is_shown_as_it_is() -> None:
    frames, durations = read(looping(greys(9), 12.5))
    assert durations == [80] * 9
    for frame, expected in zip(frames, greys(9), strict=True):
        assert frame.shape == (16, 24, 3) and np.abs(frame / 255 - expected.numpy()).max() < 0.03


def test_a_long_one_is_thinned_out_and_a_large_one_scaled_down() -> None:
    blinking = greys(4, 64, 2 * SIDE).repeat((MOST_FRAMES + 44) // 4, 1, 1, 1)
    frames, durations = read(looping(blinking))
    assert len(frames) == (MOST_FRAMES + 44) // 2 and frames[0].shape == (32, SIDE, 3)
    assert durations == [250] * len(frames)


def test_what_the_nodes_show_is_what_they_give() -> None:
    looped = LoopClip.execute(greys(9), "ping-pong", 1)
    grid = ClipGrid.execute([greys(9), greys(9)], [2], [""], [""])
    for made in (looped, grid):
        frames, _ = read(made.ui)
        assert len(frames) == len(made.result[0]) and frames[0].shape == made.result[0].shape[1:]
        assert np.abs(np.stack(frames) / 255 - made.result[0].numpy()).max() < 0.05


@pytest.mark.parametrize("count", [MOST_STILLS, MOST_STILLS + 1])
def test_scribbles_of_a_storyboard_are_side_by_side_and_of_a_clip_one_after_the_other(count: int) -> None:
    shown = ScribblePreprocessor.execute(torch.rand(count, 32, 32, 3)).ui
    shown = shown if isinstance(shown, dict) else shown.as_dict()
    assert (len(shown["images"]), bool(shown.get("animated", [False])[0])) == (
        (1, True) if count > MOST_STILLS else (count, False)
    )
