"""The demo's trained models as files: what ships (tests/demo/weights), and the checkpoint that the stock loader takes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from diffdirector.tests.host.provision import cache_dir

CHECKPOINT = "diffdirector-demo-sd15.safetensors"
MOTION_MODEL = "diffdirector-demo-motion.safetensors"
WEIGHTS = Path(__file__).with_name("weights")
UNET, AUTOENCODER, MOTION = (WEIGHTS / f"{name}.safetensors" for name in ("unet", "autoencoder", "motion"))


def checkpoint_state(unet: Mapping[str, Tensor], autoencoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything CheckpointLoaderSimple looks for, in half precision (about 290 MB, most of it CLIP-L)."""
    from .text_encoder import clip_l_state

    parts = {
        "model.diffusion_model.": unet,
        "first_stage_model.": autoencoder,
        "cond_stage_model.transformer.": clip_l_state(),
    }
    return {prefix + key: value.half().contiguous() for prefix, part in parts.items() for key, value in part.items()}


def link_models(base: Path) -> None:
    """Put the demo's checkpoint and motion model into the models/ of any base folder; the checkpoint is made once."""
    recipe = [UNET, AUTOENCODER, Path(__file__).with_name("text_encoder.py")]
    key = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in recipe)).hexdigest()[:12]
    checkpoint = cache_dir() / f"demo-{key}" / CHECKPOINT
    if not checkpoint.exists():
        write(checkpoint, checkpoint_state(load_file(UNET), load_file(AUTOENCODER)))
    for folder, name, path in (("checkpoints", CHECKPOINT, checkpoint), ("animatediff_models", MOTION_MODEL, MOTION)):
        link = base / "models" / folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path)


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")  # two first runs may write at the same time
    save_file(dict(state), temporary)
    temporary.rename(path)
