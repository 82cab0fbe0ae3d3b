"""The shipped workflows, small: the files that they ask for, and the values with which they run in seconds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffdirector.motion.sparse_formats import SparseKind
from diffdirector.tests.demo import world

from . import loras
from .checkpoints import CHECKPOINT, MOTION_MODEL, link_models
from .provision import ROOT
from .server import Server
from .sparse import in_original_naming, sparse_state
from .weights import TINY, unet_config, unet_state
from .workflow import load_workflow, to_prompt

WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
FRAMES, SIZE = 10, 48  # px; of fewer, FreeInit's frames are not all different once they are a video
SCENE = world.Scene("circle", "red", "white", "right")
FEW_STEPS = {"lcm-fast": 6, "lightning-fast": 4}  # which Few-Step Settings tells the sampler
TRAINING = "DiffDirectorTrainMotionDirector"
SMALL: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
    "DiffDirectorLoadMotionModel": {"motion_model_name": MOTION_MODEL},
    "LoraLoaderModelOnly": {"lora_name": "lcm.safetensors"},
    "DiffDirectorDomainAdapter": {"adapter_name": "lcm.safetensors"},
    "EmptyLatentImage": {"width": SIZE, "height": SIZE, "batch_size": FRAMES},
    "DiffDirectorContextWindows": {"context_length": 8, "overlap": 2},
    "DiffDirectorPromptTravel": {"frames": FRAMES},
    "DiffDirectorLoadFootage": {"video": "clip.mp4", "width": SIZE, "height": SIZE, "frames": FRAMES},
    "DiffDirectorVideoDataset": {"source": "my-clips", "frames": 4, "width": 64, "height": 64},
    TRAINING: {"steps": 2, "sample_every": 2, "rank": 4},
    "KSampler": {"steps": 2},
}


def small(server: Server, name: str, models: dict[str, dict[str, Any]] | None = None, **sampler: Any) -> dict[str, Any]:
    """A shipped workflow's prompt, for the small models."""
    chosen = {kind: dict(values) for kind, values in (SMALL | (models or {})).items()}
    chosen["KSampler"] = {} if name in FEW_STEPS else chosen["KSampler"] | sampler
    return to_prompt(load_workflow(name), server.get("/object_info"), **chosen)


def write_files(base: Path) -> None:
    """Models, footage and pictures in a base folder, under the names that the workflows ask for or SMALL gives."""
    link_models(base)
    for folder in ("input", "models/loras", "models/animatediff_motion_lora", "models/controlnet"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    motion = load_file(base / "models/animatediff_models" / MOTION_MODEL)
    for seed, move in enumerate(("ZoomIn", "PanLeft")):
        lora = loras.in_original_naming(loras.motion_lora(motion, rank=4, seed=seed))
        torch.save({"state_dict": lora}, base / f"models/animatediff_motion_lora/v2_lora_{move}.ckpt")
    own = loras.in_original_naming(loras.motion_lora(motion, rank=4, seed=2))
    save_file({key: value.contiguous() for key, value in own.items()}, base / "models/animatediff_motion_lora/my-motion.safetensors")  # fmt: skip
    config = unet_config("sd15", **TINY)
    lora = loras.in_original_naming(loras.spatial_lora(config, unet_state(config), rank=2, seed=3))
    save_file({key: value.contiguous() for key, value in lora.items()}, base / "models/loras/lcm.safetensors")
    for kind in SparseKind:
        path = base / f"models/controlnet/v3_sd15_sparsectrl_{kind.name.lower()}.ckpt"
        torch.save({"controlnet": in_original_naming(sparse_state(kind))}, path)
    world.write_video(base / "input" / "clip.mp4", world.render(SCENE, 16))
    world.write_dataset(base / "input" / "my-clips", seed=4, n=2, frames=12)
    for number, name in enumerate(("first", "middle", "last", "drawing")):
        still = (world.render_still(SCENE, number / 3).movedim(0, -1) * 255).byte().numpy()
        Image.fromarray(still).save(base / "input" / f"{name}.png")


def decoded(content: bytes, name: str) -> np.ndarray:
    """Frames of a saved clip, [frames, height, width, 3]."""
    if Path(name).suffix == ".webp":
        picture, frames = Image.open(io.BytesIO(content)), []
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
        return np.stack(frames).astype(int)
    with av.open(io.BytesIO(content)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(int)
