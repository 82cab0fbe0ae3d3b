"""Loops against frames written down by hand."""

from __future__ import annotations

import pytest
import torch

from diffdirector.motion.loops import crossfade, ping_pong


def test_crossfade_blends_the_end_into_the_beginning() -> None:
    clip = torch.rand(7, 4, 5, 3)
    found = crossfade(clip, 2)
    by_hand = [(2 * clip[5] + clip[0]) / 3, (clip[6] + 2 * clip[1]) / 3, clip[2], clip[3], clip[4]]
    assert torch.allclose(found, torch.stack(by_hand), atol=1e-6)


def test_a_crossfaded_drift_has_no_seam() -> None:
    """A value that grows by 1 a frame falls back over the blended frames, not at once."""
    found = crossfade(torch.arange(20.0).view(-1, 1, 1, 1), 5).flatten()
    steps = (found.roll(-1) - found).abs()
    assert len(found) == 15 and steps.max() < 2


@pytest.mark.parametrize("frames", [0, 4, 100])
def test_a_crossfade_longer_than_half_the_clip_is_refused(frames: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 3, half of the clip's 7 frames, found {frames}"):
        crossfade(torch.rand(7, 1, 1, 3), frames)


def test_ping_pong_shows_neither_end_twice() -> None:
    numbers = {5: [0, 1, 2, 3, 4, 3, 2, 1], 3: [0, 1, 2, 1], 2: [0, 1], 1: [0]}
    for count, expected in numbers.items():
        assert ping_pong(torch.arange(count).view(-1, 1)).flatten().tolist() == expected
