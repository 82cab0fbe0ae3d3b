"""What the page of the training stages measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffdirector.tests.host.evaluate import randn

from . import several, stages, world
from .evaluate import Studio

SCENES = world.scenes(stages.ASKED_SEED, 5)


@pytest.mark.parametrize("scene", SCENES, ids=world.caption)
def test_the_mark_is_seen_where_it_is_and_only_there(scene: world.Scene) -> None:
    clip = world.render(scene, stages.FRAMES)
    marked = stages.watermarked(clip)
    assert stages.opacity(marked) == pytest.approx(1, abs=1e-4)
    assert stages.opacity(clip) == pytest.approx(0, abs=0.01)
    assert stages.opacity((clip + marked) / 2) == pytest.approx(0.5, abs=0.01)
    assert stages.opacity((clip + 0.2).clamp(0, 1)) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("movement", "least", "most"),
    [("still", 0.98, 1.02), ("left", 0.95, 1.05), ("growing", 1.4, 1.9), ("shrinking", 0.5, 0.7)],
)
def test_growth_is_how_many_times_as_large_a_body_gets(movement: str, least: float, most: float) -> None:
    for colour in world.COLOURS:
        clip = world.render(world.Scene("square", colour, "white", movement), stages.FRAMES)
        assert least <= stages.growth(clip) <= most, colour


def test_stills_are_filmed_as_a_camera_that_moves_in(tmp_path: Path) -> None:
    from diffdirector.trainers.dataset import find_videos

    source = stages.photograph(tmp_path, 4)
    clips = find_videos(source, frames=stages.FRAMES, width=64, height=64, **stages.ZOOM)
    assert len(clips) == 4
    for clip in clips:
        assert stages.growth(clip.read()) == pytest.approx(1 + stages.ZOOM["camera_amount"], abs=0.1)
        assert "still" not in clip.caption and "background" in clip.caption


def test_what_several_processes_begin_with_moves_nothing(studio: Studio, tmp_path: Path) -> None:
    from diffdirector.motion.module import load_motion_model
    from diffdirector.motion.splice import apply_motion_model
    from diffdirector.tests.host.evaluate import evaluate as predict

    several.write_blank(tmp_path / "blank.safetensors")
    x, context = randn(4, 4, 8, 8), randn(1, 77, 768, seed=1)
    for motion, alike in ((load_motion_model(str(tmp_path / "blank.safetensors")), True), (studio.motion, False)):
        seen = predict(apply_motion_model(studio.model, motion), x, context, t=800.0)
        assert torch.equal(seen, predict(studio.model, x, context, t=800.0)) is alike
