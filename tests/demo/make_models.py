"""`make demo-models`: the demo's models from nothing, by one seed: autoencoder, pictures, then motion and SparseCtrl with our own trainers.

Every stage resumes where it was interrupted (in the cache's demo-training folder; `--afresh` empties it).
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, autocast

from diffdirector.tests.host.inprocess import boot, device_arguments
from diffdirector.tests.host.provision import cache_dir
from diffdirector.trainers.checkpoint import save_tensors
from diffdirector.trainers.loop import StepReport


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--afresh", action="store_true", help="forget earlier runs")
    arguments = parser.parse_args()
    folder = cache_dir() / "demo-training"
    if arguments.afresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    boot([*device_arguments(), "--use-pytorch-cross-attention"], folder)
    make(folder)


def make(folder: Path) -> None:
    """All stages; the weights go to tests/demo/weights in half precision."""
    from diffdirector.trainers import host

    from . import autoencoder, base, motion, sparse, stack

    vae = _kept(folder / "autoencoder.safetensors", lambda: autoencoder.train(folder, _printed("autoencoder")))
    _ship(stack.AUTOENCODER, vae)
    encoder = host.encoder(*_loaded(base.new_state(), vae))
    with autocast("cpu", torch.bfloat16):
        latents, captions = base.pictures(encoder.latents, folder)
    text = _kept(folder / "text.safetensors", lambda: {caption: encoder.text(caption) for caption in {*captions, ""}})
    unet = base.train(latents, captions, text, folder, _printed("base"))
    _ship(stack.UNET, unet)
    module = motion.train(*_loaded(unet, vae), folder, _printed("motion"))
    _ship(stack.MOTION, load_file(module))
    rgb, scribble = sparse.train(*_loaded(unet, vae), module, folder, _printed("SparseCtrl"))
    _ship(stack.SPARSE_RGB, load_file(rgb))
    _ship(
        stack.SPARSE_SCRIBBLE,
        {key: value for key, value in load_file(scribble).items() if any(part in key for part in sparse.OWN)},
    )


def _loaded(unet: dict[str, Tensor], autoencoder: dict[str, Tensor]) -> tuple[Any, Any, Any]:
    """A checkpoint's MODEL, VAE and CLIP, through the host's own loader."""
    import comfy.sd

    from .stack import checkpoint_state

    model, clip, vae, _ = comfy.sd.load_state_dict_guess_config(checkpoint_state(unet, autoencoder))
    return model, vae, clip


def _kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    if not path.exists():
        save_tensors(path, make(), {})
    return load_file(path)


def _ship(path: Path, state: dict[str, Any]) -> None:
    half = {key: value if key.endswith(".pe") else value.half() for key, value in state.items()}
    save_tensors(path, half, {})
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


def _printed(stage: str) -> Callable[[StepReport], None]:
    started, first = time.monotonic(), 0

    def on_step(report: StepReport) -> None:
        nonlocal first
        first = first or report.step
        if report.step % 25 == 0:
            pace = (time.monotonic() - started) / (report.step - first + 1)
            print(f"{stage} {report.step}: loss {report.losses['loss']:.4f}, {pace:.2f} s a step", flush=True)

    return on_step
