"""The demo's trained models as files: what ships (tests/demo/weights), and the checkpoint that the stock loader takes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from diffdirector.tests.host.provision import cache_dir

CHECKPOINT = "diffdirector-demo-sd15.safetensors"
MOTION_MODEL = "diffdirector-demo-motion.safetensors"
SPARSE_FILES = {kind: f"diffdirector-demo-sparsectrl-{kind}.safetensors" for kind in ("rgb", "scribble")}
WEIGHTS = Path(__file__).with_name("weights")
UNET, AUTOENCODER, MOTION, SPARSE_RGB, SPARSE_SCRIBBLE = (
    WEIGHTS / f"{name}.safetensors"
    for name in ("unet", "autoencoder", "motion", "sparsectrl-rgb", "sparsectrl-scribble")
)


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
    """Put the demo's checkpoint, motion model and SparseCtrls into the models/ of any base folder; what is put together is put together once."""
    checkpoint = _made_once(
        CHECKPOINT,
        [UNET, AUTOENCODER, Path(__file__).with_name("text_encoder.py")],
        lambda: checkpoint_state(load_file(UNET), load_file(AUTOENCODER)),
    )
    scribble = _made_once(SPARSE_FILES["scribble"], [SPARSE_RGB, SPARSE_SCRIBBLE], scribble_state)
    linked = (
        ("checkpoints", CHECKPOINT, checkpoint),
        ("animatediff_models", MOTION_MODEL, MOTION),
        ("controlnet", SPARSE_FILES["rgb"], SPARSE_RGB),
        ("controlnet", SPARSE_FILES["scribble"], scribble),
    )
    for folder, name, path in linked:
        link = base / "models" / folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path)


def scribble_state() -> dict[str, Tensor]:
    """The SparseCtrl for scribbles: its own weights, and of the other what they share."""
    shared = {
        key: value for key, value in load_file(SPARSE_RGB).items() if not key.startswith("controlnet_cond_embedding.")
    }
    return shared | load_file(SPARSE_SCRIBBLE)


def _made_once(name: str, parts: Sequence[Path], make: Callable[[], dict[str, Tensor]]) -> Path:
    """The file of that name in the cache, for these parts."""
    key = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in parts)).hexdigest()[:12]
    path = cache_dir() / f"demo-{key}" / name
    if not path.exists():
        write(path, make())
    return path


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")  # two first runs may write at the same time
    save_file(dict(state), temporary)
    temporary.rename(path)
