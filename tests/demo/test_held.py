"""Clips begin and end at the pictures that the demo's SparseCtrls are shown; the page measures it on more of them."""

from __future__ import annotations

import pytest
import torch

from . import evaluate, held, world

CLIPS = 2  # of the page's 8
BOTH_ENDS = [trial for trial in held.TRIALS if trial.shown and trial.indices == "0, -1" and not trial.unsaid]


@pytest.fixture(scope="module")
def without(studio: evaluate.Studio) -> held.Found:
    with torch.inference_mode():
        return held.run(studio, held.TRIALS[0], CLIPS)[0]


def test_what_is_measured() -> None:
    """A clip has its own ends; the same clip backwards has not."""
    subjects = held.scenes(4)
    filmed = [world.render(scene, held.FRAMES) for scene in subjects]
    assert held.measured(filmed, [clip + 1e-3 for clip in filmed], subjects)[1:] == (1, 1, 1, 1)
    backwards = held.measured(filmed, [clip.flip(0) for clip in filmed], subjects)
    assert backwards.first == backwards.last == 0 and backwards.psnr < 20


@pytest.mark.slow
@pytest.mark.parametrize("trial", BOTH_ENDS, ids=lambda trial: trial.shown)
def test_clips_hold_what_they_were_shown(studio, without: held.Found, trial: held.Trial) -> None:
    with torch.inference_mode():
        shown, _ = held.run(studio, trial, CLIPS)
    assert shown.first >= 0.5 and shown.last >= 0.5, (shown, without)
    assert shown.psnr > without.psnr + 5, (shown, without)
