"""The shipped models through the host's own nodes: what is asked for appears and moves, and our trainer can move it elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffdirector.tests.host.provision import ROOT
from diffdirector.trainers.config import MotionModuleConfig

from . import evaluate, stack, tracker, world
from .base import UNET

CLIPS = 12  # of the page's 64
FINE_TUNED_ON = "up"


@pytest.fixture(scope="module")
def clips(studio) -> list[Tensor]:
    with torch.inference_mode():
        return [studio.clip(world.caption(scene), seed) for seed, scene in enumerate(evaluate.chosen(CLIPS))]


def test_they_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in (stack.UNET, stack.AUTOENCODER, stack.MOTION)) <= 60e6


@pytest.mark.slow
def test_the_motion_module_gives_the_same_prediction_in_diffusers(studio) -> None:
    from diffdirector.motion.splice import apply_motion_model
    from diffdirector.tests.host.evaluate import evaluate as predict
    from diffdirector.tests.host.evaluate import randn, relative_error
    from diffdirector.tests.host.oracle import oracle_unet
    from diffdirector.tests.host.weights import load_unet, unet_config

    unet, motion = (
        {key: value.float() for key, value in load_file(path).items()} for path in (stack.UNET, stack.MOTION)
    )
    x, context = randn(16, 4, 8, 8), randn(1, 77, 768, seed=1)
    theirs = oracle_unet(unet_config("sd15", **UNET), unet, motion)
    expected = theirs(x.unsqueeze(0).transpose(1, 2), 800, context.expand(16, -1, -1)).sample[0].transpose(0, 1)
    model = load_unet(unet)
    assert relative_error(predict(apply_motion_model(model, studio.motion), x, context, t=800.0), expected) < 1e-5
    assert relative_error(predict(model, x, context, t=800.0), expected) > 1e-2


@pytest.mark.slow
def test_clips_show_what_was_asked_for(clips) -> None:
    verdicts = [evaluate.judge(scene, frames) for scene, frames in zip(evaluate.chosen(CLIPS), clips, strict=True)]
    found = evaluate.shares(verdicts)
    # the page's figures, less what the luck of 12 clips can take away
    assert found.colour >= 0.9 and found.background >= 0.9 and found.whole >= 0.9, found
    assert found.movement >= 0.7 and found.shape >= 0.85 and found.even >= 0.35, found


@pytest.mark.slow
def test_make_demo_turns_a_prompt_into_a_video() -> None:
    scene = world.Scene("square", "blue", "white", "right")
    command = [sys.executable, str(ROOT / "tests/host/as_package.py"), "tests.host.demo", world.caption(scene)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (video,) = re.findall(r"^  (/.*\.mp4)$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^  /.*\.webp$", done.stdout, flags=re.MULTILINE)
    clip = tracker.read_clip(world.read_video(Path(video)))
    assert len(clip.pictures) == 16
    assert (clip.colour, clip.background, clip.lost) == (scene.colour, scene.background, 0)


@pytest.mark.slow
def test_without_the_motion_module_frames_have_nothing_to_do_with_each_other(quick) -> None:
    alone = evaluate.Row("alone", 3, strength=0.0)
    scenes = [scene for scene in evaluate.chosen(CLIPS) if scene.movement in ("left", "right", "up", "down")][:3]
    for seed, scene in enumerate(scenes):
        clip = tracker.read_clip(quick.clip(world.caption(scene), seed, alone))
        assert not clip.even and clip.movement != scene.movement


@pytest.mark.slow
def test_fine_tuning_on_one_movement_makes_it_more_frequent(quick, tmp_path: Path) -> None:
    from diffdirector.trainers import host
    from diffdirector.trainers.dataset import encode_clips, find_videos
    from diffdirector.trainers.motion_module import train_motion_module

    training = [scene for scene in world.scenes(7, 70) if scene.movement == FINE_TUNED_ON][:8]
    for number, scene in enumerate(training):
        world.write_video(tmp_path / f"{number}.mp4", world.render(scene, frames=8))
        (tmp_path / f"{number}.txt").write_text(world.caption(scene, silent_on="movement"))
    sources = find_videos(tmp_path, frames=8, width=64, height=64)
    clips = encode_clips(sources, host.encoder(quick.model, quick.vae, quick.text), tmp_path / "cache", lambda *_: None)
    config = MotionModuleConfig(
        "tuned", steps=100, batch_size=2, learning_rate=5e-4, truncated_snr_cap=30.0, timestep_bias=1.0, precision="bfloat16",
        gradient_checkpointing=False, save_every=0,
    )  # fmt: skip
    path = train_motion_module(quick.model, clips, config, tmp_path, start_from=quick.motion)

    from diffdirector.motion.module import load_motion_model

    tuned = load_motion_model(str(path))
    prompts = [world.caption(scene, silent_on="movement") for scene in world.scenes(9, 6)]

    def upwards(motion) -> float:
        """Mean travel upwards, px a clip."""
        row = evaluate.Row("8 frames", 6, frames=8)
        travels = [
            tracker.read_clip(quick.clip(prompt, seed, row, motion)).travel for seed, prompt in enumerate(prompts)
        ]
        return -sum(y for _, y, _ in travels) / len(travels)

    before, after = upwards(quick.motion), upwards(tuned)
    assert after > before + 5, (before, after)
