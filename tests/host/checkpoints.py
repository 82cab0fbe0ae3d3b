"""Whole checkpoint files that the stock loader accepts, small and made from a seed: SD1.5-shaped UNet, CLIP-L, TAESD."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffdirector.motion.formats import Version

from .provision import cache_dir
from .weights import TINY, motion_config, motion_state, seeded, unet_config, unet_state

CHECKPOINT = "diffdirector-tiny-sd15.safetensors"
MOTION_MODEL = "diffdirector-tiny-motion-v2.safetensors"


def write_models(models: Path) -> None:
    """Put the small checkpoint and a motion model that fits it into a host's models/ folder, unless they are there."""
    targets = {
        models / "checkpoints" / CHECKPOINT: checkpoint_state,
        models / "animatediff_models" / MOTION_MODEL: lambda: motion_state(tiny_motion_config()),
    }
    for path, make in targets.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")  # two first runs may write at the same time
            save_file(make(), temporary)
            temporary.rename(path)


def link_models(base: Path) -> None:
    """The same in the models/ of any base folder; the files themselves are made once, in the cache."""
    recipe = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("checkpoints.py", "weights.py"))
    store = cache_dir() / f"models-{hashlib.sha256(recipe).hexdigest()[:12]}"
    write_models(store)
    for name in (f"checkpoints/{CHECKPOINT}", f"animatediff_models/{MOTION_MODEL}"):
        path, link = store / name, base / "models" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path)


def tiny_motion_config(version: Version = Version.V2):
    """The shape of a motion model for the small checkpoint: two levels of one block each."""
    return motion_config(version, channels=(320, 320), modules=1)


def checkpoint_state() -> dict[str, Tensor]:
    """Everything CheckpointLoaderSimple looks for, in half precision (about 300 MB, most of it CLIP-L)."""
    parts = {
        "model.diffusion_model.": unet_state(unet_config("sd15", **TINY), seed=0),
        "cond_stage_model.transformer.": _clip_l(seed=2),
        "first_stage_model.": taesd_state(seed=3),
    }
    return {prefix + key: value.half().contiguous() for prefix, part in parts.items() for key, value in part.items()}


def _clip_l(seed: int) -> dict[str, Tensor]:
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip

    config = json.loads((Path(comfy.sd1_clip.__file__).with_name("sd1_clip_config.json")).read_text())
    with torch.device("meta"):
        model = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)
    return seeded({key: tuple(value.shape) for key, value in model.state_dict().items()}, seed)


def taesd_state(seed: int) -> dict[str, Tensor]:
    import comfy.taesd.taesd

    with torch.device("meta"):
        model = comfy.taesd.taesd.TAESD(latent_channels=4)
    state = seeded({key: tuple(value.shape) for key, value in model.state_dict().items() if value.ndim}, seed)
    return state | {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
