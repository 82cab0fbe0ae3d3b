"""Motion metrics, on clips whose motion is known."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffdirector.tests.host.evaluate import randn
from diffdirector.trainers import quality
from diffdirector.trainers.quality import mean_motion, motion_of

WIDTH = 96


def texture(seed: int = 0) -> Tensor:
    """[h, w] of soft blotches."""
    rough = randn(1, 1, 16, 16, seed=seed).mul(0.2).add(0.5)
    return F.interpolate(rough, size=(WIDTH, WIDTH), mode="bicubic").clamp(0, 1)[0, 0]


def in_colour(frames: list[Tensor]) -> Tensor:
    return torch.stack(frames).unsqueeze(-1).expand(-1, -1, -1, 3)


def square(pixels: int, frames: int = 4) -> Tensor:
    """A light square on black, moving so many pixels a frame to the right."""
    clip = torch.zeros(frames, WIDTH, WIDTH)
    for number, frame in enumerate(clip):
        frame[30:60, 20 + pixels * number : 50 + pixels * number] = 1
    return in_colour(list(clip))


def pan(pixels: int) -> Tensor:
    return in_colour([texture().roll(pixels * number, 1) for number in range(4)])


@pytest.mark.parametrize("clip", [square, pan])
@pytest.mark.parametrize("pixels", [3, 6])
def test_flow_is_how_far_things_move_and_what_moves_stays_the_same(clip, pixels: int) -> None:
    found = motion_of(clip(pixels))
    assert found is not None
    assert found.flow * WIDTH == pytest.approx(pixels, rel=0.1)
    assert found.consistency > 0.7


def test_a_still_clip_does_not_move_and_noise_does_not_stay_the_same() -> None:
    for still in (pan(0), square(0), torch.zeros(3, 64, 48, 3)):
        found = motion_of(still)
        assert found is not None and found.flow == 0 and found.consistency == pytest.approx(1, abs=1e-4)
    noise = motion_of(randn(4, WIDTH, WIDTH, 3).mul(0.3).add(0.5))
    others = motion_of(in_colour([texture(number) for number in range(4)]))
    boiling = motion_of(in_colour([0.7 * texture() + 0.3 * texture(number) for number in range(1, 5)]))
    assert noise is not None and others is not None and boiling is not None
    assert noise.consistency < 0.15 and others.consistency < 0.4 and 0.6 < boiling.consistency < 0.85


def test_a_clip_of_another_size_is_measured_alike() -> None:
    large = pan(3)
    small = F.interpolate(large.movedim(-1, 1), scale_factor=0.5, mode="area").movedim(1, -1)
    one, other = motion_of(large), motion_of(small)
    assert one is not None and other is not None
    assert other.flow == pytest.approx(one.flow, rel=0.05) and abs(other.consistency - one.consistency) < 0.05
    both = mean_motion([pan(2), pan(4)])
    assert both is not None and both.flow == pytest.approx(one.flow, rel=0.05)


def test_what_cannot_be_measured_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert motion_of(pan(3)[:1]) is None and mean_motion([]) is None
    spoilt = pan(3).clone()
    spoilt[1] = torch.nan  # of a training that went wrong
    assert motion_of(spoilt) is not None
    monkeypatch.setitem(sys.modules, "cv2", None)  # as where it is not installed
    quality._flow_estimator.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert motion_of(pan(3)) is None and motion_of(pan(3)) is None
    finally:
        quality._flow_estimator.cache_clear()
    said = [record.message for record in caplog.records if "DiffDirector" in record.message]
    assert len(said) == 1 and "pip install opencv-python-headless" in said[0]
