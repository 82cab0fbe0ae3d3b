"""The demo's motion module, made by the project's own trainer from real video files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffdirector.trainers.config import MotionModuleConfig
from diffdirector.trainers.loop import StepReport

from . import world

FRAMES, CLIPS = 16, 1512
SILENCE = 0.1  # share of captions that leave one attribute to chance
CONFIG = MotionModuleConfig(
    "motion", steps=3100, batch_size=4, learning_rate=4e-4, weight_decay=1e-2, warmup_steps=100, lr_schedule="cosine",
    truncated_snr_cap=120.0, timestep_bias=1.0, ema_decay=0.998, image_fraction=0.05, max_frames=32, precision="bfloat16", gradient_checkpointing=False,
    save_every=100,
)  # fmt: skip
# Then where a body stands within a cell of the latent, which is decided at middling noise: else it jitters by a pixel
FINE = replace(
    CONFIG, name="motion-fine", steps=2200, learning_rate=3e-4, warmup_steps=20, truncated_snr_cap=5.0, timestep_bias=0.0,
)  # fmt: skip


def train(model: Any, vae: Any, clip: Any, folder: Path, on_step: Callable[[StepReport], None]) -> Path:
    """Trained beside the base: the file. Clips, latents and training state are kept in folder."""
    from diffdirector.motion.module import load_motion_model
    from diffdirector.trainers import host
    from diffdirector.trainers.dataset import encode_clips, find_videos
    from diffdirector.trainers.motion_module import train_motion_module

    sources = find_videos(write_videos(folder), frames=FRAMES, width=64, height=64)
    clips = encode_clips(sources, host.encoder(model, vae, clip), folder, lambda done, total: None)
    coarse = train_motion_module(model, clips, CONFIG, folder, on_step=on_step)
    return train_motion_module(model, clips, FINE, folder, start_from=load_motion_model(str(coarse)), on_step=on_step)


def write_videos(folder: Path) -> Path:
    """The folder in folder with the videos to learn from, and their captions."""
    videos = folder / "videos"
    if len(list(videos.glob("*.txt"))) < CLIPS:
        world.write_dataset(videos, seed=1, n=CLIPS, frames=FRAMES, silence=SILENCE)
    return videos
