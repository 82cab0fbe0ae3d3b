"""MotionDirector learns one clip's motion on the demo's models, and gives it to other subjects; the page measures it on more clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import proof

CLIPS = 4  # of the page's 20
FASTER = {"steps": 80, "learning_rate": 5e-3, "dropout": 0.0}  # than the page, which takes 300


@pytest.mark.parametrize("path", proof.PATHS)
def test_a_clip_that_is_the_path_correlates_with_it_and_another_does_not(path: str) -> None:
    other = next(name for name in proof.PATHS if name != path)
    clip = proof.world.render(proof.FILMED, proof.FRAMES, path=proof.PATHS[path])
    assert proof.correlation(clip, proof.PATHS[path]) > 0.99
    assert proof.correlation(clip, proof.PATHS[other]) < proof.AS_CLIP


def test_subjects_have_nothing_of_the_filmed_one() -> None:
    scenes = proof.subjects(proof.CLIPS)
    assert len(scenes) == proof.CLIPS
    assert all("red" not in proof.caption(scene) and "circle" not in proof.caption(scene) for scene in scenes)
    assert "moving on a white" in proof.caption(proof.FILMED)


@pytest.mark.slow
def test_other_subjects_follow_the_path_of_the_clip(quick, tmp_path: Path) -> None:
    learnt, _ = proof.run(quick, tmp_path, proof.Trial("circle", changes=FASTER), CLIPS)
    plain, _ = proof.run(quick, tmp_path, proof.Trial("without", temporal=False), CLIPS)
    assert learnt.correlation >= 0.5 and learnt.correlation >= plain.correlation + 0.3, (learnt, plain)
    assert learnt.colour >= 0.5, learnt
