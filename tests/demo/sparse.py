"""The demo's SparseCtrls, for pictures and for scribbles, made by the project's own trainer from the motion module's clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffdirector.motion.scribbles import LINES
from diffdirector.trainers.config import SparseCtrlConfig
from diffdirector.trainers.loop import StepReport

from . import motion

LINE_THRESHOLD = 0.1  # Scribble Preprocessor's
RGB = SparseCtrlConfig(
    "sparsectrl-rgb", kind="rgb", steps=1100, batch_size=4, learning_rate=3e-4, weight_decay=1e-2, warmup_steps=50, lr_schedule="cosine",
    truncated_snr_cap=20.0, timestep_bias=0.5, ema_decay=0.998, precision="bfloat16", gradient_checkpointing=False,
    save_every=100,
)  # fmt: skip
# From what the other learnt, and little else than what it has to learn anew: the file ships without what they share
OWN = ("controlnet_", "motion_modules.")
SCRIBBLE = replace(RGB, name="sparsectrl-scribble", kind="scribble", steps=500, learning_rate=5e-4, trainable=OWN)


def train(
    model: Any, vae: Any, clip: Any, module: Path, folder: Path, on_step: Callable[[StepReport], None]
) -> tuple[Path, Path]:
    """The files for pictures and for scribbles, trained beside the base and the motion module at module."""
    from diffdirector.motion.module import load_motion_model
    from diffdirector.motion.sparsectrl import load_sparse_ctrl
    from diffdirector.trainers import host
    from diffdirector.trainers.dataset import encode_clips, find_videos
    from diffdirector.trainers.sparse_ctrl import train_sparse_ctrl, with_scribbles

    motion_model = load_motion_model(str(module))
    encoder = with_scribbles(host.encoder(model, vae, clip), LINES, LINE_THRESHOLD)
    sources = find_videos(motion.write_videos(folder), frames=motion.FRAMES, width=64, height=64)
    clips = encode_clips(sources, encoder, folder, lambda done, total: None)
    torch.backends.cuda.enable_flash_sdp(
        False
    )  # also the processor's, whose backward takes twice the time of plain attention's
    rgb = train_sparse_ctrl(model, motion_model, clips, RGB, folder, on_step=on_step)
    start = load_sparse_ctrl(str(rgb))
    return rgb, train_sparse_ctrl(model, motion_model, clips, SCRIBBLE, folder, start_from=start, on_step=on_step)
