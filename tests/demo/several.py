"""Part of `make proof-stages`: a motion module that several processes train, by the command line under torchrun, moves what is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffdirector.tests.host.provision import ROOT, provision
from diffdirector.trainers.checkpoint import save_tensors

from . import stack, world
from .evaluate import HEADINGS, Row, Studio, chosen, judge, shares

PROCESSES, VIDEOS, VIDEOS_SEED = 2, 384, 1
ROW = Row("16 frames", 12)
BLANK = "blank"
# As the demo's own module is trained (motion.py): what moves how, then where within a cell of the latent.
COARSE = {
    "name": "coarse", "steps": 400, "batch_size": 4, "learning_rate": 4e-4, "weight_decay": 1e-2, "warmup_steps": 20, "lr_schedule": "cosine",
    "truncated_snr_cap": 30.0, "timestep_bias": 0.5, "ema_decay": 0.99, "precision": "bfloat16", "gradient_checkpointing": False,
    "save_every": 50,
}  # fmt: skip
FINE = COARSE | {"name": "fine", "steps": 600, "learning_rate": 3e-4, "truncated_snr_cap": 5.0, "timestep_bias": 0.0}


def write_blank(path: Path) -> None:
    """The shipped module with nothing in the layers that hand its blocks' results on, as a new one: it moves nothing. A module
    from nothing would take hours to learn the rest."""
    state = load_file(stack.MOTION)
    save_tensors(path, {key: 0 * value if ".proj_out." in key else value for key, value in state.items()}, {})


def learn(folder: Path, base: Path) -> tuple[Path, Path, Path]:
    """The module that training begins with, after its first part, and after both. base: whose models/ has the demo's."""
    folder.mkdir(parents=True, exist_ok=True)
    write_blank(folder / f"{BLANK}.safetensors")
    videos = folder / "videos"
    if len(list(videos.glob("*.txt"))) < VIDEOS:
        world.write_dataset(videos, seed=VIDEOS_SEED, n=VIDEOS, frames=ROW.frames)
    coarse = train(folder, base, BLANK, COARSE)
    return folder / f"{BLANK}.safetensors", coarse, train(folder, base, coarse.stem, FINE)


def train(folder: Path, base: Path, start_from: str, settings: Mapping[str, Any]) -> Path:
    """By the command line under torchrun, on the folder's videos; the module's file."""
    tables = {
        "model": {
            "checkpoint": str(base / "models" / "checkpoints" / stack.CHECKPOINT),
            "motion_model": str(folder / f"{start_from}.safetensors"),
        },
        "sample": {"prompt": ""},
        "dataset": {
            "source": str(folder / "videos"), "frames": ROW.frames, "frame_step": 1, "width": 64, "height": 64,
        },
        "training": settings,
    }  # fmt: skip
    recipe = folder / f"{settings['name']}.toml"
    lines = ['recipe = "motion_module"', f"output = {json.dumps(str(folder))}"]
    for table, values in tables.items():
        lines += [f"\n[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    recipe.write_text("\n".join(lines) + "\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES)]
    environment = os.environ | {"COMFYUI_PATH": str(provision().comfyui), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(ROOT / "train.py"), "--config", str(recipe), "--cpu"]
    subprocess.run(command, env=environment, check=True)
    return folder / f"{settings['name']}.safetensors"


def several_table(studio: Studio, folder: Path, _: int) -> tuple[list[str], list[Tensor]]:
    """A line for the module that it begins as, for what several processes make of it in both parts, and for the shipped one."""
    from diffdirector.motion.module import load_motion_model

    key = zlib.crc32(repr((COARSE, FINE, PROCESSES, VIDEOS)).encode() + stack.MOTION.read_bytes())
    blank, coarse, fine = learn(folder / f"several-{key:08x}", folder.parent)  # of other settings in another folder
    ways = {
        "what training begins with": load_motion_model(str(blank)),
        f"after {COARSE['steps']} steps of {PROCESSES} processes": load_motion_model(str(coarse)),
        f"after {FINE['steps']} more, at less noise": load_motion_model(str(fine)),
        "shipped motion module": studio.motion,
    }
    scenes = chosen(ROW.clips)
    lines = ["| clips of | clips | " + " | ".join(HEADINGS) + " |", "|---" * (len(HEADINGS) + 2) + "|"]
    print("\n".join(lines), flush=True)
    rows: list[Tensor] = []
    for name, motion in ways.items():
        with torch.inference_mode():
            clips = [studio.clip(world.caption(scene), seed, ROW, motion) for seed, scene in enumerate(scenes)]
        found = shares([judge(scene, frames) for scene, frames in zip(scenes, clips, strict=True)])
        lines.append(f"| {name} | {len(clips)} | " + " | ".join(f"{share:.0%}" for share in found) + " |")
        print(lines[-1], flush=True)
        rows += clips
    return lines, rows
