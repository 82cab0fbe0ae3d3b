"""Train without the graph: python train.py --config recipe.toml [options of ComfyUI's own, such as --cpu or --lowvram].

On several GPUs: torchrun --nproc-per-node <GPUs> train.py --config recipe.toml, or accelerate launch --multi_gpu in its place.
Needs the Python that ComfyUI runs in. ComfyUI is the one whose custom_nodes/ this folder lies in, or $COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Commented recipes: trainers/recipes. Ctrl-C keeps what was learnt."
    )
    parser.add_argument("--config", required=True, type=Path, metavar="RECIPE.toml", help="what to train, and on what")
    arguments, for_comfyui = parser.parse_known_args()
    comfyui = Path(os.environ.get("COMFYUI_PATH", ROOT.parents[1]))
    if not (comfyui / "comfy" / "options.py").is_file():
        sys.exit(f"{comfyui} is no ComfyUI folder. Put this pack into ComfyUI/custom_nodes, or set COMFYUI_PATH.")
    sys.path[0] = str(comfyui)  # in place of this folder, whose nodes/ would hide the host's
    sys.argv = ["main.py", *for_comfyui]
    importlib.import_module("comfy.options").enable_args_parsing()
    options = importlib.import_module("comfy.cli_args").args  # it reads sys.argv now
    if "LOCAL_RANK" in os.environ and not options.cpu:
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    spec = importlib.util.spec_from_file_location(
        "diffdirector", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["diffdirector"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.exit(importlib.import_module("diffdirector.trainers.cli").run(arguments.config))


def _take_gpu(number: int) -> None:
    """The one of this process among those of its machine; ComfyUI takes the current one."""
    import torch

    if number and number >= torch.cuda.device_count():
        sys.exit(
            f"torchrun: expected at most a process for each GPU of a machine, {torch.cuda.device_count()}; this is number {number + 1}."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(number)


if __name__ == "__main__":
    main()
