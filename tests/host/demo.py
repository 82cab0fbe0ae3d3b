"""`make demo`: the shipped workflow `demo` on the real ComfyUI, with the trained demo models: a prompt in, an mp4 and an animated WEBP out."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from diffdirector.tests.demo import stack, world

from .inprocess import boot, device_arguments
from .provision import ROOT, cache_dir, provision
from .server import Server
from .workflow import load_workflow, to_prompt

WORDS = (world.COLOURS, world.SHAPES, [change.words for change in world.MOVEMENTS.values()], world.BACKGROUNDS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Words that the demo's models know: " + "; ".join(", ".join(kind) for kind in WORDS)
    )
    parser.add_argument("prompt", nargs="?", default="", help='such as "a blue square moving left"')
    parser.add_argument("--seed", type=int, help="another clip of the same prompt")
    arguments = parser.parse_args()
    started = time.monotonic()
    boot(device_arguments())
    base = cache_dir() / "demo"
    stack.link_models(base)
    output = ROOT / "output"
    output.mkdir(exist_ok=True)
    print("Starting ComfyUI ...", flush=True)
    with Server(provision(), base, *device_arguments(), "--output-directory", str(output)) as server:
        print(f"Serving at {server.url} after {time.monotonic() - started:.0f} s. Running workflows/demo.json:")
        prompt = to_prompt(load_workflow("demo"), server.get("/object_info"))
        for node in prompt.values():
            if arguments.prompt and node["_meta"]["title"] == "Prompt":
                node["inputs"]["text"] = arguments.prompt
            if arguments.seed is not None and "seed" in node["inputs"]:
                node["inputs"]["seed"] = arguments.seed
        asked = next(node["inputs"]["text"] for node in prompt.values() if node["_meta"]["title"] == "Prompt")
        outputs = server.run(prompt, _show(prompt))
    print(f'\nDone in {time.monotonic() - started:.0f} s: "{asked}"')
    for files in outputs.values():
        for file in files.get("images", []) + files.get("video", []):
            print(f"  {output / file['subfolder'] / file['filename']}")
    known = world.parse_caption(asked)
    if None in known:
        print(
            "Left to chance: "
            + ", ".join(kind for kind, word in zip(known._fields, known, strict=True) if word is None)
        )
        print(parser.epilog)


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
