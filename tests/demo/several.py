"""Part of `make proof-stages`: a motion module that several processes train, by the command line under torchrun, moves what is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffdirector.tests.host.provision import ROOT, provision
from diffdirector.trainers.checkpoint import save_tensors

from . import stack, world
from .evaluate import HEADINGS, Row, Studio, chosen, judge, shares

PROCESSES, VIDEOS, VIDEOS_SEED = 2, 384, 1
ROW = Row("16 frames", 12)
BLANK, NAME = "blank", "several"
# As the demo's own module is trained (motion.py), both of its phases in one.
SETTINGS = {
    "name": NAME, "steps": 400, "batch_size": 4, "learning_rate": 4e-4, "weight_decay": 1e-2, "warmup_steps": 20, "lr_schedule": "cosine",
    "truncated_snr_cap": 30.0, "timestep_bias": 0.5, "ema_decay": 0.99, "precision": "bfloat16", "gradient_checkpointing": False,
    "save_every": 50,
}  # fmt: skip


def write_blank(path: Path) -> None:
    """The shipped module with nothing in the layers that hand its blocks' results on, as a new one: it moves nothing. A module
    from nothing would take hours to learn the rest."""
    state = load_file(stack.MOTION)
    save_tensors(path, {key: 0 * value if ".proj_out." in key else value for key, value in state.items()}, {})


def learn(folder: Path, base: Path) -> Path:
    """The module after training, and beside it the one that it began as. base: whose models/ has the demo's."""
    folder.mkdir(parents=True, exist_ok=True)
    write_blank(folder / f"{BLANK}.safetensors")
    videos = folder / "videos"
    if len(list(videos.glob("*.txt"))) < VIDEOS:
        world.write_dataset(videos, seed=VIDEOS_SEED, n=VIDEOS, frames=ROW.frames)
    tables = {
        "model": {
            "checkpoint": str(base / "models" / "checkpoints" / stack.CHECKPOINT),
            "motion_model": str(folder / f"{BLANK}.safetensors"),
        },
        "sample": {"prompt": ""},
        "dataset": {"source": str(videos), "frames": ROW.frames, "frame_step": 1, "width": 64, "height": 64},
        "training": SETTINGS,
    }
    recipe = folder / "recipe.toml"
    lines = ['recipe = "motion_module"', f"output = {json.dumps(str(folder))}"]
    for table, values in tables.items():
        lines += [f"\n[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    recipe.write_text("\n".join(lines) + "\n")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(PROCESSES),
        str(ROOT / "train.py"),
    ]
    environment = os.environ | {"COMFYUI_PATH": str(provision().comfyui), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--config", str(recipe), "--cpu"], env=environment, check=True)
    return folder / f"{NAME}.safetensors"


def several_table(studio: Studio, folder: Path, _: int) -> tuple[list[str], list[Tensor]]:
    """A line for the module that it begins as, for what several processes make of it, and for the shipped one."""
    from diffdirector.motion.module import load_motion_model

    key = zlib.crc32(repr((SETTINGS, PROCESSES, VIDEOS)).encode() + stack.MOTION.read_bytes())
    trained = learn(folder / f"{NAME}-{key:08x}", folder.parent)  # of other settings in another folder
    ways = {
        "what training begins with": load_motion_model(str(trained.with_stem(BLANK))),
        f"the same after {SETTINGS['steps']} steps of {PROCESSES} processes": load_motion_model(str(trained)),
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
