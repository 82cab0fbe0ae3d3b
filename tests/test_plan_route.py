"""The plan of Context Windows as its node asks for it over HTTP."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffdirector.motion.plan_picture import BACKGROUND, EMPTY, caption, drawing, first_plans, picture
from diffdirector.motion.windows import BATCHED, LOOPED, UNIFORM, Windows, plan
from diffdirector.nodes.plan_route import drawn_plan

WIDGETS = {
    "context_length": "16", "overlap": "4", "stride": "1", "schedule": "standard_static", "fuse": "pyramid",
    "closed_loop": "false", "plan_frames": "48",
}  # fmt: skip


def drawn(**changes: str) -> np.ndarray:
    """[height, width, 4], in 0..255"""
    kind, data = drawn_plan(WIDGETS | changes)["picture"].split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_drawing_is_the_plan() -> None:
    """A cell of 12 x 10 pixels for each window and frame, as full as the window counts."""
    opacity = drawn()[..., 3]
    found = plan(Windows(), 48)
    assert opacity.shape == (40, 48 * 12)
    for row, (window, weights) in enumerate(zip(found.windows, found.weights, strict=True)):
        shares = dict(zip(window, weights, strict=True))
        for frame in range(48):
            expected = 255 * (0.3 + 0.7 * shares[frame] if frame in shares else 0.16)
            cell = opacity[10 * row : 10 * row + 10, 12 * frame : 12 * frame + 12]
            assert np.abs(cell[:9, :11] - expected).max() < 1
            assert (cell[9] == 0).all() and (cell[:, 11] == 0).all()


def test_every_widget_that_makes_the_plan_changes_the_drawing() -> None:
    moving = {"schedule": UNIFORM}
    pairs = [
        ({}, {"context_length": "12"}), ({}, {"overlap": "8"}), (moving, {"stride": "2"}), ({}, moving), ({}, {"fuse": "flat"}),
        ({"schedule": LOOPED, "plan_frames": "40"}, {"closed_loop": "true"}), ({}, {"plan_frames": "40"}),
    ]  # fmt: skip
    for before, change in pairs:
        assert not np.array_equal(drawn(**before), drawn(**(before | change))), change


@pytest.mark.parametrize(
    ("settings", "frames", "text"),
    [
        (Windows(), 48, "48 frames: 4 windows of 16 at every step"),
        (Windows(schedule=BATCHED), 40, "40 frames: 3 windows of 16 at every step"),
        (Windows(), 16, "16 frames: one window"),
        (Windows(), 9, "9 frames: one window"),
        (Windows(schedule=UNIFORM), 48, "48 frames: 4 to 5 windows of 16 that move with the steps (the first 4 shown)"),
        (Windows(schedule=LOOPED, closed_loop=True), 16, "16 frames: one window, turned with the steps (the first 4 shown)"),
    ],
)  # fmt: skip
def test_the_caption_says_what_is_drawn(settings: Windows, frames: int, text: str) -> None:
    plans = first_plans(settings, frames)
    assert caption(plans) == text
    sizes = {len(one.windows) for one in plans}
    if "windows" in text:
        assert all(str(size) in text for size in (min(sizes), max(sizes)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlap": "16"}, r"overlap: expected less than context_length \(16\), found 16"),
        ({"overlap": "-1"}, "overlap: expected a whole number from 0 to 1023, found -1"),
        ({"context_length": "1025"}, "context_length: expected a whole number from 1 to 1024, found 1025"),
        ({"plan_frames": "2000"}, "plan_frames: expected a whole number from 1 to 1024, found 2000"),
        ({"plan_frames": ""}, "plan_frames: expected a whole number from 1 to 1024, found nothing"),
        ({"plan_frames": "9" * 9999}, "plan_frames: expected a whole number"),
        ({"stride": "nine"}, "stride: expected a whole number from 1 to 8, found nine"),
        ({"schedule": "random"}, "schedule: expected standard_static or .*, found random"),
        ({"fuse": "sum"}, "fuse: expected pyramid or .*, found sum"),
        ({"closed_loop": "yes"}, "closed_loop: expected true or false, found yes"),
    ],
)
def test_wrong_settings_are_refused_in_words(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawn_plan(WIDGETS | change)


def test_drawings_are_of_bounded_size() -> None:
    for settings in (Windows(2, 1), Windows(2, 1, 8, UNIFORM), Windows(512, 256, schedule=UNIFORM)):
        plans = first_plans(settings, 1024)
        height, width, _ = drawing(plans).shape
        assert height <= 4 * 1024 and width <= 1024 and (len(plans) > 1) == (settings.schedule == UNIFORM)


def test_the_picture_for_the_graph_has_the_same_cells() -> None:
    plans = first_plans(Windows(schedule=UNIFORM), 40)
    pixels, opacity = picture(plans), drawing(plans)[..., 3]
    assert pixels.shape[:2] == opacity.shape
    assert torch.equal((pixels == BACKGROUND).all(-1), opacity == 0)
    assert torch.equal((pixels == EMPTY).all(-1), (opacity - 0.16).abs() < 1e-6)
