"""`make demo`: the shipped workflow on the real ComfyUI, from a clone to an mp4 and an animated WEBP."""

from __future__ import annotations

import sys
import time
from typing import Any

from .inprocess import boot
from .provision import ROOT, cache_dir, provision
from .server import Server
from .workflow import load_workflow, to_prompt

STEPS, SIZE, FRAMES = 12, 128, 16


def main() -> None:
    started = time.monotonic()
    boot(["--cpu"])
    from .checkpoints import CHECKPOINT, MOTION_MODEL, link_models  # needs the host's modules

    base = cache_dir() / "demo"
    link_models(base)
    output = ROOT / "output"
    output.mkdir(exist_ok=True)
    print("Starting ComfyUI ...", flush=True)
    with Server(provision(), base, "--cpu", "--output-directory", str(output)) as server:
        print(
            f"Serving at {server.url} after {time.monotonic() - started:.0f} s. Running workflows/text-to-animation.json:"
        )
        prompt = to_prompt(
            load_workflow("text-to-animation"),
            server.get("/object_info"),
            CheckpointLoaderSimple={"ckpt_name": CHECKPOINT},
            DiffDirectorLoadMotionModel={"motion_model_name": MOTION_MODEL},
            EmptyLatentImage={"width": SIZE, "height": SIZE, "batch_size": FRAMES},
            KSampler={"steps": STEPS},
        )
        outputs = server.run(prompt, _show(prompt))
    print(
        f"\nDone in {time.monotonic() - started:.0f} s. The weights are random, so the pictures are noise that moves:"
    )
    for files in outputs.values():
        for file in files.get("images", []) + files.get("video", []):
            print(f"  {output / file['subfolder'] / file['filename']}")


def _show(prompt: dict[str, Any]):
    """Progress as the websocket reports it: the node at work, and a bar for its steps."""
    terminal = sys.stdout.isatty()

    def show(kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data.get("node"):
            print(f"\n  {prompt[data['node']]['class_type']}", end="", flush=True)
        elif kind == "progress":
            done, total = data["value"], data["max"]
            text = f"  [{'#' * (20 * done // total):<20}] {done}/{total}"
            print(f"\r  {prompt[data['node']]['class_type']}{text}" if terminal else f" {done}", end="", flush=True)

    return show
